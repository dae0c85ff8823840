//! Reading a checkpoint, in any other cut than it was written in.
//!
//! Opening reads the manifest and looks at sizes; values are read where they are needed, by
//! position, and only those that are asked for. [`Checkpoint::verify`] reads everything once, and
//! [`Checkpoint::verify_share`] one share of the files, where several processes verify together.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::sync::OnceLock;

use coxswain_types::params::parameter_table;

use crate::error::CheckpointError;
use crate::manifest::{MANIFEST, Manifest, ManifestTensor, own_file};
use crate::region::{Slab, elements, runs};
use crate::shards::{ELEMENT_BYTES, ShardFile};
use crate::store::StoreFolder;

/// Bytes of a tensor that are in memory at a time while it is hashed.
const DIGEST_CHUNK_BYTES: u64 = 16 << 20;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    folder: StoreFolder,
    manifest: Manifest,
    digest: String,
    /// The place of each file and tensor in the manifest, by name.
    files: BTreeMap<String, usize>,
    tensors: BTreeMap<String, usize>,
    /// The shard files, opened when first needed.
    shards: Vec<OnceLock<ShardFile>>,
}

impl Checkpoint {
    /// Opens the checkpoint in a folder: reads its manifest, which must have `expected_digest` where
    /// one is given, and checks that all its files are there and have their sizes.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file.
    pub fn open(folder: &StoreFolder, expected_digest: Option<&str>) -> Result<Checkpoint, CheckpointError> {
        let (manifest, digest) = Manifest::read_digested(folder, expected_digest)?;
        for file in &manifest.files {
            own_file(folder, &file.name, file.bytes)?;
        }
        Ok(Checkpoint {
            folder: folder.clone(),
            files: manifest.files.iter().map(|file| file.name.clone()).zip(0..).collect(),
            tensors: manifest.tensors.iter().map(|tensor| tensor.name.clone()).zip(0..).collect(),
            shards: manifest.files.iter().map(|_| OnceLock::new()).collect(),
            manifest,
            digest,
        })
    }

    /// Checks the digests of all files, and that their headers are what the manifest says.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file.
    pub fn verify(&self) -> Result<(), CheckpointError> {
        self.verify_by(StoreFolder::digest)
    }

    /// As [`Checkpoint::verify`], with digests that may be remembered.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file.
    pub fn verify_by(
        &self,
        digest: impl Fn(&StoreFolder, &str) -> io::Result<String>,
    ) -> Result<(), CheckpointError> {
        self.verify_files(|_| true, |name| Ok(digest(&self.folder, name)))
    }

    /// As [`Checkpoint::verify`], for share `own` of `shares`. Calls `go_on` before each chunk and stops at its
    /// error.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file, and what `go_on` says.
    pub fn verify_share<E: From<CheckpointError>>(
        &self,
        own: u32,
        shares: u32,
        mut go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes: Vec<u64> = self.manifest.files.iter().map(|file| file.bytes).collect();
        let falls_to = shared_out(&bytes, shares);
        self.verify_files(|at| falls_to[at] == own, |name| self.folder.digest_while(name, &mut go_on))
    }

    /// Checks the files that `wanted` names by their place in the manifest.
    fn verify_files<E: From<CheckpointError>>(
        &self,
        wanted: impl Fn(usize) -> bool,
        mut digest: impl FnMut(&str) -> Result<io::Result<String>, E>,
    ) -> Result<(), E> {
        for (_, file) in self.manifest.files.iter().enumerate().filter(|(at, _)| wanted(*at)) {
            let path = self.folder.place(&file.name);
            let found = digest(&file.name)?.map_err(CheckpointError::io(&path))?;
            if found != file.digest {
                return Err(CheckpointError::Digest { path, expected: file.digest.clone(), found }.into());
            }
        }
        let listed = |file: &str| self.files.get(file).is_none_or(|&at| wanted(at));
        for tensor in &self.manifest.tensors {
            for piece in tensor.pieces.iter().filter(|piece| listed(&piece.file)) {
                self.shard(tensor, &piece.file, piece.cut())?;
            }
        }
        Ok(())
    }

    /// Checks that the model of its job has all its parameters here, in their shapes. Whoever makes that model
    /// takes memory for them: no more than lies in its files.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the parameter.
    pub fn expect_model(&self) -> Result<(), CheckpointError> {
        for parameter in parameter_table(&self.manifest.spec.model) {
            let found = self.shape(&parameter.name)?;
            if found != parameter.shape {
                let what = format!(
                    "its tensor `{}` has the shape {found:?}, and the model of its job has {:?}",
                    parameter.name, parameter.shape
                );
                return Err(CheckpointError::damaged(&self.folder.place(MANIFEST), what));
            }
        }
        Ok(())
    }

    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The names of all tensors, in order.
    pub fn tensor_names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The global shape of a tensor.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`].
    pub fn shape(&self, name: &str) -> Result<&[u64], CheckpointError> {
        self.tensor(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The little-endian `f32`s of a slab of a tensor, row-major: the elements whose index along
    /// `dim` lies in `offset..offset + len`.
    ///
    /// # Errors
    /// [`CheckpointError`] for an unknown tensor, a slab that it does not have, and files that
    /// cannot be read. Damaged values are found by [`Checkpoint::verify`] only.
    pub fn read_slice(&self, name: &str, dim: u8, offset: u64, len: u64) -> Result<Vec<u8>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let wanted = Slab { dim, offset, len };
        let slice_error = || CheckpointError::Slice {
            name: name.to_owned(),
            shape: tensor.shape.clone(),
            dim,
            offset,
            len,
        };
        // The manifest's check bounds this by the size of the files.
        let bytes = wanted.shape(&tensor.shape).and_then(|shape| elements(&shape)).map(|n| n * ELEMENT_BYTES);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(slice_error)?;
        let mut out = vec![0; bytes];
        for piece in &tensor.pieces {
            let mut shared = runs(&tensor.shape, piece.cut(), wanted).ok_or_else(slice_error)?.peekable();
            if shared.peek().is_none() {
                continue;
            }
            let shard = self.shard(tensor, &piece.file, piece.cut())?;
            for run in shared {
                // Runs lie inside both slabs, so their bytes lie inside `out`.
                let (start, end) = (run.to * ELEMENT_BYTES, (run.to + run.len) * ELEMENT_BYTES);
                shard.read(name, run.from, &mut out[start as usize..end as usize])?;
            }
        }
        Ok(out)
    }

    /// The blake3 digest, in hex, of the bytes of a whole tensor. It does not depend on how the
    /// tensor is cut into files.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read_slice`].
    pub fn digest_of(&self, name: &str) -> Result<String, CheckpointError> {
        let shape = self.shape(name)?;
        let rows = shape.first().copied().unwrap_or(0);
        let row_bytes = elements(shape).unwrap_or(0) / rows.max(1) * ELEMENT_BYTES;
        let step = (DIGEST_CHUNK_BYTES / row_bytes.max(1)).max(1);
        let mut hasher = blake3::Hasher::new();
        let mut row = 0;
        while row < rows {
            let len = step.min(rows - row);
            hasher.update(&self.read_slice(name, 0, row, len)?);
            row += len;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The name and digest of every tensor, in the order of names.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read_slice`].
    pub fn digests(&self) -> Result<Vec<(String, String)>, CheckpointError> {
        self.tensors.keys().map(|name| Ok((name.clone(), self.digest_of(name)?))).collect()
    }

    fn tensor(&self, name: &str) -> Result<&ManifestTensor, CheckpointError> {
        let at = self.tensors.get(name).and_then(|&at| self.manifest.tensors.get(at));
        at.ok_or_else(|| CheckpointError::NoTensor { folder: self.folder.path(), name: name.to_owned() })
    }

    /// The shard file in which a piece of a tensor lies, so long as its header says the same.
    fn shard(&self, tensor: &ManifestTensor, file: &str, cut: Slab) -> Result<&ShardFile, CheckpointError> {
        let path = || self.folder.place(file);
        let unlisted = || CheckpointError::damaged(&path(), "the manifest does not list it");
        let &at = self.files.get(file).ok_or_else(unlisted)?;
        let shard = match self.shards[at].get() {
            Some(shard) => shard,
            None => {
                let opened = ShardFile::open(&self.folder, file, self.manifest.files[at].bytes)?;
                self.shards[at].get_or_init(|| opened)
            }
        };
        if !shard.holds(&tensor.name, &tensor.shape, cut) {
            let what = format!("it does not hold the slab of `{}` that the manifest names", tensor.name);
            return Err(CheckpointError::damaged(&path(), what));
        }
        Ok(shard)
    }
}

/// Assigns each file to one of `shares` so that all read about the same number of bytes: largest first, to the share
/// with the least so far.
fn shared_out(bytes: &[u64], shares: u32) -> Vec<u32> {
    let mut order: Vec<usize> = (0..bytes.len()).collect();
    order.sort_by_key(|&at| (Reverse(bytes[at]), at));
    let mut loads: BinaryHeap<Reverse<(u64, u32)>> =
        (0..shares.max(1)).map(|share| Reverse((0, share))).collect();
    let mut falls_to = vec![0; bytes.len()];
    for at in order {
        if let Some(Reverse((load, share))) = loads.pop() {
            falls_to[at] = share;
            loads.push(Reverse((load.saturating_add(bytes[at]), share)));
        }
    }
    falls_to
}

#[cfg(test)]
mod tests;
