//! What can be wrong with a checkpoint, said so that a person knows which file to look at.

use std::io;
use std::path::{Path, PathBuf};

use crate::region::CoverError;

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder could not be read or written.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file of the checkpoint has another size than was recorded.
    #[error("{path} has {found} bytes where the checkpoint recorded {expected}; it is cut short or another file", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A file of the checkpoint has other contents than were recorded.
    #[error("{path} has digest {found} where {expected} was recorded; it is damaged or another file", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest that it should have.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// A file cannot be understood.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A manifest of an older or newer program.
    #[error("{path} has format {found}, and this program reads {known}", path = path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format that can be read.
        known: u32,
    },
    /// The slices of a tensor do not make it up.
    #[error("tensor `{name}`: {cause}")]
    Cover {
        /// The tensor.
        name: String,
        /// The gap or overlap.
        cause: CoverError,
    },
    /// Two files disagree on a tensor.
    #[error("tensor `{name}` has shape {one:?} in one file and {other:?} in {file}")]
    Shapes {
        /// The tensor.
        name: String,
        /// Its shape in the first file.
        one: Vec<u64>,
        /// The file that disagrees.
        file: String,
        /// Its shape there.
        other: Vec<u64>,
    },
    /// The checkpoint has no such tensor.
    #[error("the checkpoint in {folder} has no tensor `{name}`; is it of another model?", folder = folder.display())]
    NoTensor {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A slice was asked for or given that the tensor does not have.
    #[error("tensor `{name}` of shape {shape:?} has no slice {offset}+{len} along dimension {dim}")]
    Slice {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
        /// The dimension of the slice.
        dim: u8,
        /// Where the slice starts.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// What was to be written cannot be.
    #[error("{path} cannot be written: {what}", path = path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

impl CheckpointError {
    /// Adds the path to an I/O error.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
        let path = path.to_owned();
        move |cause| CheckpointError::Io { path, cause }
    }

    /// Whether the checkpoint's files are not what was written, so that an older checkpoint may be better. A
    /// file that this user may not read, or that is of another version, is not damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            CheckpointError::Io { cause, .. } => {
                matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
                    || self.is_device_error()
            }
            CheckpointError::Size { .. }
            | CheckpointError::Digest { .. }
            | CheckpointError::Damaged { .. }
            | CheckpointError::Cover { .. }
            | CheckpointError::Shapes { .. } => true,
            CheckpointError::Format { .. }
            | CheckpointError::NoTensor { .. }
            | CheckpointError::Slice { .. }
            | CheckpointError::Unwritable { .. } => false,
        }
    }

    /// Whether the device failed to read a file, for a moment or for good.
    pub(crate) fn is_device_error(&self) -> bool {
        let lost = Some(rustix::io::Errno::IO.raw_os_error());
        matches!(self, CheckpointError::Io { cause, .. } if cause.raw_os_error() == lost)
    }

    pub(crate) fn damaged(path: &Path, what: impl ToString) -> CheckpointError {
        CheckpointError::Damaged { path: path.to_owned(), what: what.to_string() }
    }
}
