//! Tensors in safetensors files, one or several with an index: read and written by ranges of bytes, never
//! a file at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::HfError;
use crate::atomic::{AtomicFile, write_atomic};
use crate::region::elements;
use crate::regular;

/// The largest header or index that is read; one of a hundred thousand tensors takes less.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// The length of a header comes first, as a `u64`.
const LENGTH_BYTES: u64 = 8;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// `model.safetensors.index.json`.
#[derive(Serialize, Deserialize)]
struct Index {
    metadata: serde_json::Map<String, serde_json::Value>,
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a folder.
#[derive(Debug)]
pub(super) struct TensorStore {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Stored>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<u64>,
    start: u64,
}

/// Rows and columns of a tensor that is taken for a matrix; a vector has one column.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatrixBlock {
    pub(super) rows: (u64, u64),
    pub(super) cols: (u64, u64),
}

impl TensorStore {
    /// Reads the headers of a folder's files.
    pub(super) fn open(folder: &Path) -> Result<TensorStore, HfError> {
        let mut store = TensorStore { files: Vec::new(), tensors: BTreeMap::new() };
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        // A whole file goes before an index, which may be left from before.
        if single.is_file() || !index.is_file() {
            expect_safetensors(folder, &single)?;
            store.add(&single)?;
            return Ok(store);
        }
        let bytes = read_limited(&index)?;
        let parsed: Index = serde_json::from_slice(&bytes).map_err(|e| HfError::damaged(&index, e))?;
        let names: BTreeSet<&String> = parsed.weight_map.values().collect();
        for name in names {
            let mut parts = Path::new(name).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !plain {
                return Err(HfError::damaged(&index, format!("`{name}` is not a file of this folder")));
            }
            store.add(&folder.join(name))?;
        }
        match parsed.weight_map.keys().find(|name| !store.tensors.contains_key(*name)) {
            Some(name) => Err(HfError::damaged(&index, format!("`{name}` is not in its file"))),
            None => Ok(store),
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), HfError> {
        let (mut file, metadata) = regular::open(path).map_err(HfError::io(path))?;
        let bytes = metadata.len();
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(HfError::io(path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > bytes - LENGTH_BYTES {
            return Err(HfError::damaged(path, format!("it claims a header of {length} bytes")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(HfError::io(path))?;
        // The library checks that data follows without gaps and has the size of each shape.
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| HfError::damaged(path, e))?;
        let data = metadata.data_len() as u64;
        if (LENGTH_BYTES + length).checked_add(data) != Some(bytes) {
            return Err(HfError::damaged(
                path,
                format!("its header describes {data} bytes of data, not those there"),
            ));
        }
        for (name, TensorInfo { dtype, shape, data_offsets }) in metadata.tensors() {
            let start = LENGTH_BYTES + length + data_offsets.0 as u64;
            let shape = shape.iter().map(|&n| n as u64).collect();
            let stored = Stored { file: self.files.len(), dtype: *dtype, shape, start };
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(HfError::damaged(path, format!("`{name}` is in another file too")));
            }
        }
        self.files.push((path.to_owned(), file));
        Ok(())
    }

    /// The names of all tensors, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[u64]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// The name of a tensor's type, as the format writes it.
    pub(super) fn dtype(&self, name: &str) -> Option<String> {
        let stored = self.tensors.get(name)?;
        serde_json::to_value(stored.dtype).ok()?.as_str().map(str::to_owned)
    }

    /// A block of a tensor as f32s, row by row.
    pub(super) fn read(&self, name: &str, block: MatrixBlock) -> Result<Vec<f32>, HfError> {
        let missing = || HfError::Tensor(format!("there is no block {block:?} of `{name}`"));
        let stored = self.tensors.get(name).ok_or_else(missing)?;
        let (rows, cols) = match *stored.shape.as_slice() {
            [len] => (len, 1),
            [rows, cols] => (rows, cols),
            _ => return Err(missing()),
        };
        let ((row, row_end), (col, col_end)) = (block.rows, block.cols);
        if row > row_end || row_end > rows || col > col_end || col_end > cols {
            return Err(missing());
        }
        let (path, file) = &self.files[stored.file];
        let width = width(stored.dtype).ok_or_else(|| {
            HfError::Tensor(format!("`{name}` is {:?}; F32, F16 and BF16 can be read", stored.dtype))
        })?;
        // Rows that are taken whole follow each other in the file.
        let whole = col == 0 && col_end == cols;
        let reads = if whole { 1 } else { row_end - row };
        let each = if whole { (row_end - row) * cols } else { col_end - col };
        let mut bytes = vec![0; (reads * each * width) as usize];
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        for (at, part) in (0..).zip(bytes.chunks_exact_mut((each * width) as usize)) {
            let from = stored.start + ((row + at) * cols + col) * width;
            file.read_exact_at(part, from).map_err(HfError::io(path))?;
        }
        Ok(floats(stored.dtype, &bytes))
    }
}

/// Says what to do with a folder whose weights are pickled only.
fn expect_safetensors(folder: &Path, single: &Path) -> Result<(), HfError> {
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    match pickled.iter().find(|name| !single.exists() && folder.join(name).exists()) {
        Some(name) => Err(HfError::Tensor(format!(
            "there is {name} and no {SINGLE}; this program reads safetensors alone: load the model with the \
             transformers library and save it again"
        ))),
        None => Ok(()),
    }
}

pub(super) fn read_limited(path: &Path) -> Result<Vec<u8>, HfError> {
    regular::read(path, MAX_HEADER_BYTES).map_err(HfError::io(path))
}

/// Bytes of a number of the types that weights have.
fn width(dtype: Dtype) -> Option<u64> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F16 => halves().map(from_half).collect(),
        Dtype::BF16 => halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// The f32 of a half-precision number, exactly.
pub(crate) fn from_half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, bits >> 10 & 31, u32::from(bits & 1023));
    match exponent {
        // Below the normal numbers: so many times 2^-24.
        0 => f32::from_bits(sign | (fraction as f32 * 2_f32.powi(-24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (u32::from(exponent) + 112) << 23 | fraction << 13),
    }
}

/// The nearest half-precision number, to even where two are as near.
fn to_half(x: f32) -> u16 {
    let (bits, sign) = (x.to_bits(), (x.to_bits() >> 16 & 0x8000) as u16);
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return sign | 0x7e00;
    }
    if magnitude >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // So many times 2^-24; adding 2^-1 leaves that count in the last places, rounded to even.
        let count = (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits();
        return sign | count as u16;
    }
    let rounded = magnitude + 0x0fff + (magnitude >> 13 & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// The nearest bfloat16, to even where two are as near.
fn to_bf16(x: f32) -> u16 {
    if x.is_nan() {
        return (x.to_bits() >> 16) as u16 | 0x40;
    }
    ((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) >> 16) as u16
}

fn bytes_of(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|x| to_half(*x).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|x| to_bf16(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<u64>,
    pub(super) dtype: Option<String>,
}

impl Planned {
    fn dtype(&self) -> Dtype {
        let named = self.dtype.clone().and_then(|name| serde_json::from_value(name.into()).ok());
        named.filter(|dtype| width(*dtype).is_some()).unwrap_or(Dtype::F32)
    }

    fn bytes(&self) -> u64 {
        elements(&self.shape).unwrap_or(0) * width(self.dtype()).unwrap_or(4)
    }
}

/// Writes tensors into a folder, in files of at most so many bytes unless one tensor is larger. `values`
/// gives those of a tensor, one at a time.
pub(super) fn write(
    folder: &Path,
    tensors: &[Planned],
    max_file_bytes: u64,
    mut values: impl FnMut(&str) -> Result<Vec<f32>, HfError>,
) -> Result<(), HfError> {
    let mut files: Vec<Vec<&Planned>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        if files.is_empty() || tensor.bytes() > room {
            files.push(Vec::new());
            room = max_file_bytes;
        }
        room = room.saturating_sub(tensor.bytes());
        files.last_mut().map(|file| file.push(tensor)).unwrap_or_default();
    }
    let count = files.len();
    let name = |at: usize| match count {
        1 => SINGLE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
    };
    let mut weight_map = BTreeMap::new();
    for (at, tensors) in files.iter().enumerate() {
        let path = folder.join(name(at));
        write_file(&path, tensors, &mut values)?;
        weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name(at))));
    }
    if count > 1 {
        let total: u64 = tensors.iter().map(Planned::bytes).sum();
        let metadata = [("total_size".to_owned(), total.into())].into_iter().collect();
        let path = folder.join(INDEX);
        let json = serde_json::to_vec_pretty(&Index { metadata, weight_map });
        write_atomic(&path, &json.map_err(|e| HfError::damaged(&path, e))?).map_err(HfError::io(&path))?;
    }
    Ok(())
}

fn write_file(
    path: &Path,
    tensors: &[&Planned],
    values: &mut impl FnMut(&str) -> Result<Vec<f32>, HfError>,
) -> Result<(), HfError> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes() as usize;
        let shape = tensor.shape.iter().map(|&n| n as usize).collect();
        (tensor.name.clone(), TensorInfo { dtype: tensor.dtype(), shape, data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).map_err(|e| HfError::damaged(path, e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| HfError::damaged(path, e))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let io = |error| HfError::io(path)(error);
    let mut file = AtomicFile::create(path).map_err(io)?;
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(&header).map_err(io)?;
    for tensor in tensors {
        let values = values(&tensor.name)?;
        if Some(values.len() as u64) != elements(&tensor.shape) {
            let what = format!("`{}` came with {} numbers", tensor.name, values.len());
            return Err(HfError::Tensor(what));
        }
        file.write_all(&bytes_of(tensor.dtype(), &values)).map_err(io)?;
    }
    file.commit().map_err(io)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_precisions_go_both_ways() {
        for bits in 0..=u16::MAX {
            let x = from_half(bits);
            assert!(x.is_nan() || to_half(x) == bits, "{bits:#x}: {x}");
            let x = f32::from_bits(u32::from(bits) << 16);
            assert!(x.is_nan() || to_bf16(x) == bits, "{bits:#x}: {x}");
        }
        assert_eq!((from_half(0x3c00), from_half(0xc000), from_half(1)), (1.0, -2.0, 2_f32.powi(-24)));
        // Halfway to the next number goes to the even one.
        assert_eq!([to_half(1.0 + 2_f32.powi(-11)), to_half(1.0 + 3.0 * 2_f32.powi(-11))], [0x3c00, 0x3c02]);
        assert_eq!([to_half(65520.0), to_half(65519.0), to_half(-1e9)], [0x7c00, 0x7bff, 0xfc00]);
        assert_eq!([to_bf16(1.0 + 2_f32.powi(-8)), to_bf16(1.0 + 3.0 * 2_f32.powi(-8))], [0x3f80, 0x3f82]);
        assert!(from_half(to_half(f32::NAN)).is_nan());
    }
}
