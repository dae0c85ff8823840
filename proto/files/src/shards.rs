//! A shard: one rank's part of a checkpoint, as a safetensors file that explains itself.
//!
//! A shard holds slabs of parameters (`<name>`) or of optimizer state (`exp_avg/<name>`,
//! `exp_avg_sq/<name>`), as `f32`. The file's `__metadata__` says of each tensor, as JSON text, the
//! global shape, the dimension of the cut and where the slab starts. Which shards make up a
//! checkpoint is the manifest's matter ([`crate::manifest`]).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use coxswain_types::status::SavedFile;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use crate::error::CheckpointError;
use crate::manifest::own_file;
use crate::region::{Slab, elements};
use crate::store::{ObjectWriter, StoreFolder, StoredObject};

/// The largest header that is written or read: some 30,000 tensors, far more than a rank holds.
pub const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Bytes of an `f32`.
pub const ELEMENT_BYTES: u64 = 4;

/// The length of the header comes first, as a `u64`.
const LENGTH_BYTES: u64 = 8;

/// The key of the header that is not a tensor.
const METADATA: &str = "__metadata__";

/// A slab of a tensor, as a shard holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardTensor {
    /// The name, unique over the whole checkpoint.
    pub name: String,
    /// The global shape.
    pub shape: Vec<u64>,
    /// The dimension of the cut; 0 for a whole.
    pub dim: u8,
    /// Where the slab starts along `dim`.
    pub offset: u64,
    /// How long the slab is along `dim`.
    pub len: u64,
}

impl ShardTensor {
    /// The slab without its name.
    pub fn cut(&self) -> Slab {
        Slab { dim: self.dim, offset: self.offset, len: self.len }
    }

    /// The slab's own shape and its size in bytes; `None` where it is not a slab of the tensor.
    fn extent(&self) -> Option<(Vec<usize>, u64)> {
        elements(&self.shape)?;
        let shape = self.cut().shape(&self.shape)?;
        let bytes = elements(&shape)? * ELEMENT_BYTES;
        let shape = shape.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>();
        shape.ok().map(|shape| (shape, bytes))
    }
}

/// What `__metadata__` says of a tensor.
#[derive(Serialize, Deserialize)]
struct TensorPlace {
    shape: Vec<u64>,
    dim: u8,
    offset: u64,
}

/// The header as it is written: in the order of names, so that equal slabs give equal bytes.
#[derive(Serialize)]
struct ShardHeader<'a> {
    #[serde(rename = "__metadata__")]
    places: BTreeMap<&'a str, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// Takes the bytes of a slab, piece by piece.
#[derive(Debug)]
pub struct SlabWriter<'a> {
    file: &'a mut ObjectWriter,
    path: &'a Path,
    written: u64,
}

impl SlabWriter<'_> {
    /// Adds bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.written += bytes.len() as u64;
        self.file.write_all(bytes).map_err(CheckpointError::io(self.path))
    }
}

/// Writes a shard: whole, synced and under its name, or not there. `write_slab` writes the little-endian
/// `f32`s of a tensor's slab, row-major, by its place in `tensors`, in pieces as small as it likes.
///
/// # Errors
/// [`CheckpointError::Io`]; [`CheckpointError::Unwritable`] for slabs that are none, sizes that do
/// not match and names that repeat; and what `write_slab` fails with.
pub fn write_shard<E: From<CheckpointError>>(
    folder: &StoreFolder,
    name: &str,
    tensors: &[ShardTensor],
    mut write_slab: impl FnMut(usize, &mut SlabWriter<'_>) -> Result<(), E>,
) -> Result<SavedFile, E> {
    let path = &folder.place(name);
    let unwritable = |what: String| CheckpointError::Unwritable { path: path.clone(), what };
    let io = |error| CheckpointError::io(path)(error);
    let by_name: BTreeMap<&str, usize> =
        tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    if by_name.len() != tensors.len() {
        return Err(unwritable("two of its tensors have the same name".to_owned()).into());
    }
    let in_order = by_name.values().map(|&index| &tensors[index]);
    let (header, sizes) = header_of(in_order).map_err(unwritable)?;
    let mut file = begin(folder, name, &header).map_err(io)?;
    for ((name, &index), expected) in by_name.iter().zip(sizes) {
        let mut slab = SlabWriter { file: &mut file, path, written: 0 };
        write_slab(index, &mut slab)?;
        let found = slab.written;
        if found != expected {
            let what = format!("tensor `{name}` came with {found} bytes where {expected} are expected");
            return Err(unwritable(what).into());
        }
    }
    let written = file.commit().map_err(io)?;
    Ok(SavedFile { name: name.to_owned(), bytes: written.bytes, digest: written.digest })
}

/// The header of a file with these tensors, which come in the order of their names, and how many
/// bytes each takes.
fn header_of<'a>(tensors: impl Iterator<Item = &'a ShardTensor>) -> Result<(Vec<u8>, Vec<u64>), String> {
    let mut header = ShardHeader { places: BTreeMap::new(), tensors: BTreeMap::new() };
    let (mut end, mut sizes) = (0, Vec::new());
    for tensor in tensors {
        let ShardTensor { name, shape, dim, offset, len } = tensor;
        if name == METADATA {
            return Err(format!("no tensor can be named {METADATA}"));
        }
        let (own_shape, bytes) = tensor.extent().ok_or_else(|| {
            format!("tensor `{name}` of shape {shape:?} has no slice {offset}+{len} along dimension {dim}")
        })?;
        let data_offsets = (end, end + bytes as usize);
        end = data_offsets.1;
        sizes.push(bytes);
        let place = TensorPlace { shape: shape.clone(), dim: *dim, offset: *offset };
        header.places.insert(name, serde_json::to_string(&place).map_err(|e| e.to_string())?);
        header.tensors.insert(name, TensorInfo { dtype: Dtype::F32, shape: own_shape, data_offsets });
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    // The format wants data aligned to eight bytes, and blanks before it.
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    if header.len() as u64 > MAX_HEADER_BYTES {
        return Err(format!(
            "its header takes {} bytes where {MAX_HEADER_BYTES} are allowed; spread the tensors over more files",
            header.len()
        ));
    }
    Ok((header, sizes))
}

fn begin(folder: &StoreFolder, name: &str, header: &[u8]) -> io::Result<ObjectWriter> {
    let mut file = folder.create(name)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header)?;
    Ok(file)
}

/// An open shard whose header has been read and checked.
#[derive(Debug)]
pub(crate) struct ShardFile {
    path: PathBuf,
    file: Box<dyn StoredObject>,
    tensors: BTreeMap<String, PlacedSlab>,
}

/// A slab and where its data lies in the file.
#[derive(Debug)]
struct PlacedSlab {
    tensor: ShardTensor,
    start: u64,
    bytes: u64,
}

impl ShardFile {
    /// Opens a shard that was recorded to have `bytes` bytes, and reads its header.
    pub(crate) fn open(folder: &StoreFolder, name: &str, bytes: u64) -> Result<ShardFile, CheckpointError> {
        let path = folder.place(name);
        let file = own_file(folder, name, bytes)?;
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_at(0, &mut length).map_err(CheckpointError::io(&path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > bytes.saturating_sub(LENGTH_BYTES) {
            return Err(CheckpointError::damaged(&path, format!("it claims a header of {length} bytes")));
        }
        let mut header = vec![0; length as usize];
        file.read_at(LENGTH_BYTES, &mut header).map_err(CheckpointError::io(&path))?;
        let tensors = slabs_of(&header, LENGTH_BYTES + length, bytes)
            .map_err(|what| CheckpointError::damaged(&path, what))?;
        Ok(ShardFile { path, file, tensors })
    }

    /// The slabs that it holds, in the order of their names.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &ShardTensor> {
        self.tensors.values().map(|slab| &slab.tensor)
    }

    /// Whether it holds exactly this slab.
    pub(crate) fn holds(&self, name: &str, shape: &[u64], cut: Slab) -> bool {
        self.tensors.get(name).is_some_and(|slab| slab.tensor.shape == shape && slab.tensor.cut() == cut)
    }

    /// Fills `out` with the elements of a slab from element `from` on.
    pub(crate) fn read(&self, name: &str, from: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        let outside = || CheckpointError::damaged(&self.path, format!("tensor `{name}` ends too early"));
        let slab = self.tensors.get(name).ok_or_else(outside)?;
        let skip = from.checked_mul(ELEMENT_BYTES).ok_or_else(outside)?;
        if skip.checked_add(out.len() as u64).is_none_or(|end| end > slab.bytes) {
            return Err(outside());
        }
        self.file.read_at(slab.start + skip, out).map_err(CheckpointError::io(&self.path))
    }
}

/// The slabs of a header, so long as it and its `__metadata__` agree with each other and the file.
fn slabs_of(header: &[u8], data_start: u64, file_bytes: u64) -> Result<BTreeMap<String, PlacedSlab>, String> {
    // The library checks that data follows without gaps and has the size of each shape.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    let data_bytes = metadata.data_len() as u64;
    if data_start.checked_add(data_bytes) != Some(file_bytes) {
        return Err(format!("its header describes {data_bytes} bytes of data, not those that follow"));
    }
    let none = HashMap::new();
    let places = metadata.metadata().as_ref().unwrap_or(&none);
    metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let place = places.get(&name).ok_or_else(|| format!("it does not say where `{name}` belongs"))?;
            let slab = slab_of(&name, info, place, data_start)
                .ok_or_else(|| format!("what it says of `{name}` is contradictory: {place}"))?;
            Ok((name, slab))
        })
        .collect()
}

fn slab_of(name: &str, info: &TensorInfo, place: &str, data_start: u64) -> Option<PlacedSlab> {
    let TensorPlace { shape, dim, offset } = serde_json::from_str(place).ok()?;
    let len = *info.shape.get(usize::from(dim))? as u64;
    let tensor = ShardTensor { name: name.to_owned(), shape, dim, offset, len };
    let (shape, bytes) = tensor.extent()?;
    let start = data_start + info.data_offsets.0 as u64;
    (info.dtype == Dtype::F32 && info.shape == shape).then_some(PlacedSlab { tensor, start, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slabs whose bytes are at hand.
    fn write(path: &Path, entries: &[(ShardTensor, &[u8])]) -> Result<SavedFile, CheckpointError> {
        let tensors: Vec<_> = entries.iter().map(|(tensor, _)| tensor.clone()).collect();
        let (folder, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        write_shard(&folder.into(), name, &tensors, |index, slab| slab.write(entries[index].1))
    }

    fn open(path: &Path, bytes: u64) -> Result<ShardFile, CheckpointError> {
        let (folder, name) = (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
        ShardFile::open(&folder.into(), name, bytes)
    }

    fn tensor(name: &str, shape: &[u64], dim: u8, offset: u64, len: u64) -> ShardTensor {
        ShardTensor { name: name.into(), shape: shape.to_vec(), dim, offset, len }
    }

    #[test]
    fn a_shard_is_a_safetensors_file_and_explains_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step/model-g1-r000.safetensors");
        let (a, b) = ([1u8; 24], [2u8; 16]);
        let entries =
            [(tensor("w", &[4, 3], 0, 2, 2), a.as_slice()), (tensor("exp_avg/v", &[2, 8], 1, 6, 2), &b)];
        let saved = write(&path, &entries).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((saved.name.as_str(), saved.bytes), ("model-g1-r000.safetensors", bytes.len() as u64));
        assert_eq!(saved.digest, crate::atomic::digest_bytes(&bytes));

        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let w = file.tensor("w").unwrap();
        assert_eq!((w.dtype(), w.shape(), w.data()), (Dtype::F32, [2, 3].as_slice(), a.as_slice()));
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let places = metadata.metadata().clone().unwrap();
        assert_eq!(places["exp_avg/v"], r#"{"shape":[2,8],"dim":1,"offset":6}"#);

        let shard = open(&path, saved.bytes).unwrap();
        let held: Vec<_> = shard.tensors().cloned().collect();
        assert_eq!(held, [entries[1].0.clone(), entries[0].0.clone()]);
        let mut out = [0; 8];
        shard.read("w", 4, &mut out).unwrap();
        assert_eq!(out, [1; 8]);
        shard.read("w", 5, &mut out).unwrap_err();
        shard.read("w", u64::MAX, &mut out).unwrap_err();
    }

    #[test]
    fn equal_slabs_give_equal_files() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = ((tensor("a", &[1], 0, 0, 1), [1u8; 4]), (tensor("b", &[2], 0, 0, 2), [2u8; 8]));
        let (a, b) = ((a.0, a.1.as_slice()), (b.0, b.1.as_slice()));
        let one = write(&dir.path().join("x"), &[a.clone(), b.clone()]).unwrap();
        let other = write(&dir.path().join("x"), &[b, a]).unwrap();
        assert_eq!(one, other);
    }

    #[test]
    fn what_is_no_shard_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let four = [0u8; 4];
        type Row<'a> = (&'a [(ShardTensor, &'a [u8])], &'static str);
        let rows: [Row; 5] = [
            (&[(tensor("a", &[2], 0, 0, 2), &four)], "tensor `a` came with 4 bytes where 8 are expected"),
            (
                &[(tensor("a", &[2], 0, 2, 1), &four)],
                "tensor `a` of shape [2] has no slice 2+1 along dimension 0",
            ),
            (&[(tensor("a", &[], 0, 0, 1), &four)], "tensor `a` of shape [] has no slice"),
            (&[(tensor(METADATA, &[1], 0, 0, 1), &four)], "no tensor can be named __metadata__"),
            (
                &[(tensor("a", &[1], 0, 0, 1), &four), (tensor("a", &[1], 0, 0, 1), &four)],
                "two of its tensors have the same name",
            ),
        ];
        for (tensors, expected) in rows {
            let error = write(&path, tensors).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn contradictory_headers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let header = |dtype: &str, shape: &str, end: u64, place: &str| {
            format!(
                r#"{{"__metadata__":{{"a":"{}"}},"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#,
                place.replace('"', "\\\"")
            )
        };
        let good = r#"{"shape":[2],"dim":0,"offset":0}"#;
        let rows = [
            (header("F32", "[2]", 8, good), ""),
            (header("I32", "[2]", 8, good), "contradictory"),
            (header("F32", "[2]", 8, r#"{"shape":[1],"dim":0,"offset":0}"#), "contradictory"),
            (header("F32", "[2]", 8, r#"{"shape":[2],"dim":1,"offset":0}"#), "contradictory"),
            (
                header("F32", "[2]", 8, r#"{"shape":[2],"dim":0,"offset":18446744073709551615}"#),
                "contradictory",
            ),
            (header("F32", "[1]", 8, good), "its header"),
            (header("F32", "[1]", 4, good), "describes 4 bytes of data"),
            (header("F32", "[4611686018427387905]", 8, good), "its header"),
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.into(),
                "does not say where `a` belongs",
            ),
            ("{".into(), "its header"),
        ];
        for (header, expected) in rows {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend([0; 8]);
            std::fs::write(&path, &bytes).unwrap();
            match open(&path, bytes.len() as u64) {
                Ok(_) => assert_eq!(expected, "", "{header}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!expected.is_empty() && text.contains(expected), "{header}: {text}");
                }
            }
        }
        for claim in [17u64, MAX_HEADER_BYTES + 1, u64::MAX] {
            std::fs::write(&path, [claim.to_le_bytes(), [0; 8]].concat()).unwrap();
            let error = open(&path, 16).unwrap_err().to_string();
            assert!(error.contains("it claims a header"), "{error}");
        }
        std::fs::write(&path, [0; 4]).unwrap();
        open(&path, 4).unwrap_err();
    }
}
