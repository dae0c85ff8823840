//! The manifest: what makes the shard files of a folder a checkpoint.
//!
//! It is put last and appears whole, so a folder without one holds only leftovers, and readers need
//! it alone to know all. Whether a checkpoint is to be published is decided by the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use coxswain_types::JobSpec;
use coxswain_types::assignment::PreparedData;
use coxswain_types::status::SavedFile;
use serde::{Deserialize, Serialize};

use crate::atomic::digest_bytes;
use crate::error::CheckpointError;
use crate::region::{CoverError, Slab, cover, elements};
use crate::shards::{ELEMENT_BYTES, ShardFile};
use crate::store::{StoreFolder, StoredObject};

/// The name of the manifest in a checkpoint's folder.
pub const MANIFEST: &str = "manifest.json";

/// The format that this program writes and reads. It grows when a manifest says more than before.
pub const FORMAT: u32 = 4;

/// How every manifest of this format begins; 64 digits follow.
const SEAL_BEGIN: &str = "{\n  \"format\": 4,\n  \"checksum\": \"";

/// What stands between the digits and the bytes of which they are the digest.
const SEAL_END: &str = "\",\n";

/// The digits of a digest.
const DIGEST_DIGITS: usize = 64;

/// The largest manifest that is read: some 200,000 pieces of tensors.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// A checkpoint, as its folder describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format; [`FORMAT`].
    pub format: u32,
    /// The job's id.
    pub job: String,
    /// Steps that had been applied.
    pub step: u64,
    /// The job.
    pub spec: JobSpec,
    /// What the numbers depend on beside the job; `None` for an import, which no run computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// The tokens that were trained on.
    pub data: PreparedData,
    /// The shard files, in the order of their names.
    pub files: Vec<SavedFile>,
    /// The tensors, in the order of their names.
    pub tensors: Vec<ManifestTensor>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestTensor {
    /// Its name.
    pub name: String,
    /// Its global shape.
    pub shape: Vec<u64>,
    /// The slabs that make it up, each element in exactly one.
    pub pieces: Vec<SavedSlab>,
}

/// A slab of a tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSlab {
    /// The name of the file in the checkpoint's folder.
    pub file: String,
    /// The dimension of the cut.
    pub dim: u8,
    /// Where the slab starts along it.
    pub offset: u64,
    /// How long it is along it.
    pub len: u64,
}

impl SavedSlab {
    /// The slab without its file.
    pub fn cut(&self) -> Slab {
        Slab { dim: self.dim, offset: self.offset, len: self.len }
    }
}

/// What the bits of a run depend on beside the job's own numbers. A run goes on bit for bit only
/// where the fingerprint is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The libtorch and what the processor offers it, as one comparable text.
    pub runtime: String,
    /// Threads of each worker's libtorch.
    pub threads: u32,
    /// The type of weights and sums: `fp32`.
    pub dtype: String,
    /// What forward and backward compute in: `fp32`, `bf16` or `fp16`.
    pub precision: String,
    /// Micro-batches in a step.
    pub global_micro_batches: u32,
    /// Samples in a micro-batch.
    pub micro_batch_size: u32,
    /// Gradient groups of a step; 0 where each data rank is one
    /// (`train.reduction: fast`).
    pub gradient_groups: u32,
    /// Logical tensor shards; 0 where each tensor rank is one (`train.tensor_shards` not set).
    pub tensor_shards: u32,
}

impl Fingerprint {
    /// What differs, a line each, under the names of the job's keys; empty where a run goes on bit for
    /// bit. `self` is the checkpoint's.
    pub fn differences(&self, other: &Fingerprint) -> Vec<String> {
        let count = |number: u32, zero: &str| if number == 0 { zero.to_owned() } else { number.to_string() };
        let runs = |of: &Fingerprint| count(of.gradient_groups, "one for each data rank (fast)");
        let shards = |of: &Fingerprint| count(of.tensor_shards, "none");
        let rows = [
            ("runtime", self.runtime.clone(), other.runtime.clone()),
            ("train.threads", self.threads.to_string(), other.threads.to_string()),
            ("dtype", self.dtype.clone(), other.dtype.clone()),
            ("train.precision", self.precision.clone(), other.precision.clone()),
            (
                "train.global_micro_batches",
                self.global_micro_batches.to_string(),
                other.global_micro_batches.to_string(),
            ),
            ("train.micro_batch_size", self.micro_batch_size.to_string(), other.micro_batch_size.to_string()),
            ("train.gradient_groups", runs(self), runs(other)),
            ("train.tensor_shards", shards(self), shards(other)),
        ];
        rows.into_iter()
            .filter(|(_, one, other)| one != other)
            .map(|(name, one, other)| format!("{name}: the checkpoint has {one}, this run {other}"))
            .collect()
    }
}

/// What a manifest says beside its files and tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The job's id.
    pub job: String,
    /// Steps that have been applied.
    pub step: u64,
    /// The job.
    pub spec: JobSpec,
    /// What the numbers depend on beside the job; `None` for an import.
    pub fingerprint: Option<Fingerprint>,
    /// The tokens that are trained on.
    pub data: PreparedData,
}

/// Publishes the checkpoint in `folder`, made up of `files`, and returns the digest of its manifest.
/// Publishing the same again, in any order of files, changes nothing.
///
/// # Errors
/// [`CheckpointError`] where a file is missing or has another size, or where the slabs of a tensor
/// leave a gap or overlap; nothing is published then.
pub fn publish(folder: &StoreFolder, files: &[SavedFile], header: Header) -> Result<String, CheckpointError> {
    let path = folder.place(MANIFEST);
    let mut files = files.to_vec();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let Header { job, step, spec, fingerprint, data } = header;
    let tensors = compose(folder, &files)?;
    let manifest = Manifest { format: FORMAT, job, step, spec, fingerprint, data, files, tensors };
    manifest.check(&path)?;
    let unwritable = |what: String| CheckpointError::Unwritable { path: path.clone(), what };
    let json = serde_json::to_string_pretty(&manifest).map_err(|e| unwritable(e.to_string()))?;
    let bytes = seal(&json).ok_or_else(|| unwritable("it does not begin with its format".to_owned()))?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(unwritable(format!("{} bytes are more than {MAX_MANIFEST_BYTES}", bytes.len())));
    }
    folder.put_once(MANIFEST, &bytes).map_err(CheckpointError::io(&path))?;
    Ok(digest_bytes(&bytes))
}

/// The tensors that the headers of `files` describe, in the order of their names.
fn compose(folder: &StoreFolder, files: &[SavedFile]) -> Result<Vec<ManifestTensor>, CheckpointError> {
    let mut tensors: BTreeMap<String, ManifestTensor> = BTreeMap::new();
    for file in files {
        let name = plain_name(&folder.place(MANIFEST), &file.name)?;
        for slab in ShardFile::open(folder, name, file.bytes)?.tensors() {
            let (name, shape) = (slab.name.clone(), slab.shape.clone());
            let tensor = tensors.entry(name.clone()).or_insert_with(|| ManifestTensor {
                name,
                shape,
                pieces: Vec::new(),
            });
            if tensor.shape != slab.shape {
                return Err(CheckpointError::Shapes {
                    name: slab.name.clone(),
                    one: tensor.shape.clone(),
                    file: file.name.clone(),
                    other: slab.shape.clone(),
                });
            }
            let Slab { dim, offset, len } = slab.cut();
            tensor.pieces.push(SavedSlab { file: file.name.clone(), dim, offset, len });
        }
    }
    let mut tensors: Vec<_> = tensors.into_values().collect();
    for tensor in &mut tensors {
        tensor.pieces.sort_by_key(|piece| piece.offset);
    }
    Ok(tensors)
}

/// A name that stays in the checkpoint's folder. It may come from another process.
fn plain_name<'a>(manifest: &Path, name: &'a str) -> Result<&'a str, CheckpointError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(part)), None) if part == name && name != MANIFEST => Ok(name),
        _ => Err(CheckpointError::damaged(manifest, format!("`{name}` can be no shard file"))),
    }
}

/// Opens a file of a checkpoint that was recorded to have `bytes` bytes. It lies in the checkpoint's folder: what a
/// link leads to may be anything.
pub(crate) fn own_file(
    folder: &StoreFolder,
    name: &str,
    bytes: u64,
) -> Result<Box<dyn StoredObject>, CheckpointError> {
    let file = folder.open(name).map_err(unopened(&folder.place(name)))?;
    let found = file.size();
    if found != bytes {
        return Err(CheckpointError::Size { path: folder.place(name), expected: bytes, found });
    }
    Ok(file)
}

/// Why a file of a checkpoint cannot be opened. What is in the place of a file is damage.
fn unopened(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |cause| match cause.kind() {
        io::ErrorKind::InvalidInput => CheckpointError::damaged(&path, cause),
        _ => CheckpointError::Io { path, cause },
    }
}

/// What every manifest says, in whatever format.
#[derive(Deserialize)]
struct FormatVersion {
    format: u32,
}

fn check_format(path: &Path, found: u32) -> Result<(), CheckpointError> {
    if found == FORMAT {
        return Ok(());
    }
    Err(CheckpointError::Format { path: path.to_owned(), found, known: FORMAT })
}

/// The text of a manifest with the checksum of what follows its format: whoever finds a manifest without
/// having been told its digest sees by it that no byte of it was changed.
pub(crate) fn seal(json: &str) -> Option<Vec<u8>> {
    let rest = json.split_once(",\n")?.1.to_owned() + "\n";
    Some([SEAL_BEGIN, &digest_bytes(rest.as_bytes()), SEAL_END, &rest].concat().into_bytes())
}

fn check_seal(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let (checksum, rest) = bytes
        .strip_prefix(SEAL_BEGIN.as_bytes())
        .and_then(|rest| rest.split_at_checked(DIGEST_DIGITS))
        .and_then(|(checksum, rest)| Some((checksum, rest.strip_prefix(SEAL_END.as_bytes())?)))
        .ok_or_else(|| CheckpointError::damaged(path, "it does not begin with its format and checksum"))?;
    let found = digest_bytes(rest);
    if found.as_bytes() == checksum {
        return Ok(());
    }
    let expected = String::from_utf8_lossy(checksum).into_owned();
    Err(CheckpointError::Digest { path: path.to_owned(), expected, found })
}

impl Manifest {
    /// Reads the manifest of a checkpoint's folder. With `expected_digest`, it must be that one.
    ///
    /// # Errors
    /// [`CheckpointError`] where it is missing, damaged, of another format, or another one.
    pub fn read(folder: &StoreFolder, expected_digest: Option<&str>) -> Result<Manifest, CheckpointError> {
        Manifest::read_digested(folder, expected_digest).map(|(manifest, _)| manifest)
    }

    /// As [`Manifest::read`], and its digest.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn read_digested(
        folder: &StoreFolder,
        expected_digest: Option<&str>,
    ) -> Result<(Manifest, String), CheckpointError> {
        let path = folder.place(MANIFEST);
        let bytes = folder.read(MANIFEST, MAX_MANIFEST_BYTES).map_err(|cause| match cause.kind() {
            io::ErrorKind::FileTooLarge => CheckpointError::damaged(&path, cause),
            _ => unopened(&path)(cause),
        })?;
        let found = digest_bytes(&bytes);
        if let Some(expected) = expected_digest.filter(|&expected| expected != found) {
            return Err(CheckpointError::Digest { path, expected: expected.to_owned(), found });
        }
        // The format alone first: in another one, some other part is missing, and that would be told.
        let FormatVersion { format } =
            serde_json::from_slice(&bytes).map_err(|e| CheckpointError::damaged(&path, e))?;
        check_format(&path, format)?;
        check_seal(&path, &bytes)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| CheckpointError::damaged(&path, e))?;
        manifest.check(&path)?;
        Ok((manifest, found))
    }

    /// Checks all that can be checked without the files.
    fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        let damaged = |what: String| Err(CheckpointError::damaged(path, what));
        check_format(path, self.format)?;
        // Whoever reads a manifest, coordinator or worker, plans and allocates by the numbers of its job.
        self.spec.check_bounds().map_err(|e| CheckpointError::damaged(path, format!("its job says {e}")))?;
        let mut names = BTreeSet::new();
        let mut file_bytes = 0u64;
        for file in &self.files {
            if !names.insert(plain_name(path, &file.name)?) {
                return damaged(format!("file {} is named twice", file.name));
            }
            file_bytes = file_bytes.saturating_add(file.bytes);
        }
        let mut tensor_bytes = 0u64;
        for (at, tensor) in self.tensors.iter().enumerate() {
            if at > 0 && self.tensors[at - 1].name >= tensor.name {
                return damaged(format!("tensor `{}` is out of order", tensor.name));
            }
            tensor.check()?;
            if let Some(piece) = tensor.pieces.iter().find(|piece| !names.contains(piece.file.as_str())) {
                return damaged(format!(
                    "tensor `{}` lies in {}, which it does not list",
                    tensor.name, piece.file
                ));
            }
            let bytes = elements(&tensor.shape).map_or(0, |n| n * ELEMENT_BYTES);
            tensor_bytes = tensor_bytes.saturating_add(bytes);
        }
        // Whoever reads a tensor allocates its size: no more than what lies in the files.
        if tensor_bytes > file_bytes {
            return damaged(format!(
                "{tensor_bytes} bytes of tensors cannot lie in {file_bytes} bytes of files"
            ));
        }
        Ok(())
    }
}

impl ManifestTensor {
    fn check(&self) -> Result<(), CheckpointError> {
        let cuts: Vec<Slab> = self.pieces.iter().map(SavedSlab::cut).collect();
        cover(&self.shape, &cuts)
            .map_err(|cause: CoverError| CheckpointError::Cover { name: self.name.clone(), cause })
    }
}

#[cfg(test)]
mod tests;
