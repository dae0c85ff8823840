//! What a GGUF file says of itself: keys with values, then where each tensor lies.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};

use super::blocks::BlockFormat;

/// The longest text: a chat template is the longest in use.
const MAX_TEXT_BYTES: u64 = 1 << 22;
/// The most entries of a list: tokens and merges of the largest vocabularies.
const MAX_LIST: u64 = 1 << 22;
/// The most keys, and the most tensors.
const MAX_ENTRIES: u64 = 1 << 16;

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Number(f64),
    Text(String),
    Numbers(Vec<f64>),
    Texts(Vec<String>),
}

/// The keys of a file. [`Meta::unread`] lists the keys never read.
#[derive(Debug, Default)]
pub(super) struct Meta {
    keys: BTreeMap<String, Given>,
    read: RefCell<BTreeSet<String>>,
}

/// A value that may be missing, but not be of another kind.
type Found<T> = Result<Option<T>, String>;

impl Meta {
    fn get<'a, T>(&'a self, key: &str, must: &str, value: impl Fn(&'a Given) -> Option<T>) -> Found<T> {
        let Some(given) = self.keys.get(key) else { return Ok(None) };
        self.read.borrow_mut().insert(key.to_owned());
        value(given).map(Some).ok_or_else(|| format!("{key} must be {must}"))
    }

    pub(super) fn text(&self, key: &str) -> Found<&str> {
        self.get(key, "a text", |given| match given {
            Given::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn texts(&self, key: &str) -> Found<&[String]> {
        self.get(key, "a list of texts", |given| match given {
            Given::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub(super) fn numbers(&self, key: &str) -> Found<&[f64]> {
        self.get(key, "a list of finite numbers", |given| match given {
            Given::Numbers(numbers) => {
                Some(numbers.as_slice()).filter(|all| all.iter().all(|x| x.is_finite()))
            }
            _ => None,
        })
    }

    pub(super) fn number(&self, key: &str) -> Found<f64> {
        self.get(key, "a finite number", |given| match given {
            Given::Number(number) => Some(*number).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    pub(super) fn count(&self, key: &str) -> Found<u32> {
        let whole = |x: f64| (x >= 0.0 && x <= f64::from(u32::MAX) && x.fract() == 0.0).then_some(x as u32);
        let count =
            self.number(key)?.map(|x| whole(x).ok_or_else(|| format!("{key} is {x}; must be a count")));
        count.transpose()
    }

    pub(super) fn flag(&self, key: &str) -> Found<bool> {
        match self.count(key)? {
            None => Ok(None),
            Some(flag @ 0..=1) => Ok(Some(flag == 1)),
            Some(other) => Err(format!("{key} is {other}; must be true or false")),
        }
    }

    /// Refuses a value that would change numbers in a way that no model here follows.
    pub(super) fn only(&self, key: &str, wanted: u32) -> Result<(), String> {
        match self.count(key)? {
            Some(found) if found != wanted => {
                Err(format!("{key} is {found}, and this program follows {wanted} only"))
            }
            _ => Ok(()),
        }
    }

    /// The keys never read.
    pub(super) fn unread(&self) -> Vec<&str> {
        let read = self.read.borrow();
        self.keys.keys().map(String::as_str).filter(|key| !read.contains(*key)).collect()
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// Its sizes, the innermost first.
    pub(super) dims: Vec<u64>,
    pub(super) format: BlockFormat,
    /// From the start of the data.
    pub(super) offset: u64,
}

/// A file's header.
#[derive(Debug)]
pub(super) struct GgufHeader {
    pub(super) meta: Meta,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) data_start: u64,
}

/// Reads numbers and texts, and counts the bytes.
struct Reader<R> {
    inner: R,
    at: u64,
    /// Bytes of the whole file.
    end: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|e| format!("its header ends too early: {e}"))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        if len > MAX_TEXT_BYTES || len > self.end - self.at.min(self.end) {
            return Err(format!("a text of {len} bytes is too long"));
        }
        let mut bytes = vec![0; len as usize];
        self.inner.read_exact(&mut bytes).map_err(|e| format!("its header ends too early: {e}"))?;
        self.at += len;
        String::from_utf8(bytes).map_err(|_| "a text is not valid UTF-8".to_owned())
    }

    fn number(&mut self, kind: u32) -> Result<f64, String> {
        Ok(match kind {
            0 | 7 => f64::from(self.bytes::<1>()?[0]),
            1 => f64::from(self.bytes::<1>()?[0] as i8),
            2 => f64::from(u16::from_le_bytes(self.bytes()?)),
            3 => f64::from(i16::from_le_bytes(self.bytes()?)),
            4 => f64::from(self.u32()?),
            5 => f64::from(i32::from_le_bytes(self.bytes()?)),
            // The decimal that was meant, not the float's own: 1e-5 and not 9.999999747e-6.
            6 => f32::from_le_bytes(self.bytes()?).to_string().parse().unwrap_or(f64::NAN),
            10 => self.u64()? as f64,
            11 => i64::from_le_bytes(self.bytes()?) as f64,
            12 => f64::from_le_bytes(self.bytes()?),
            other => return Err(format!("a value is of the kind {other}, which there is none of")),
        })
    }

    fn value(&mut self) -> Result<Given, String> {
        match self.u32()? {
            8 => self.text().map(Given::Text),
            9 => {
                let (kind, len) = (self.u32()?, self.u64()?);
                // Each entry takes a byte at least.
                if len > MAX_LIST || len > self.end - self.at.min(self.end) {
                    return Err(format!("a list of {len} entries is too long"));
                }
                if kind == 8 {
                    return (0..len).map(|_| self.text()).collect::<Result<_, _>>().map(Given::Texts);
                }
                (0..len).map(|_| self.number(kind)).collect::<Result<_, _>>().map(Given::Numbers)
            }
            kind => self.number(kind).map(Given::Number),
        }
    }
}

impl GgufHeader {
    /// Reads the header of a file of so many bytes.
    pub(super) fn read(file: &File, bytes: u64) -> Result<GgufHeader, String> {
        let mut reader = Reader { inner: BufReader::new(file), at: 0, end: bytes };
        if reader.bytes::<4>()? != *b"GGUF" {
            return Err("it does not begin as a GGUF file does".to_owned());
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("it is of version {version}; 2 and 3 can be read"));
        }
        let (tensors, keys) = (reader.u64()?, reader.u64()?);
        if tensors > MAX_ENTRIES || keys > MAX_ENTRIES {
            return Err(format!("it claims {tensors} tensors and {keys} keys"));
        }
        let mut meta = Meta::default();
        for _ in 0..keys {
            let key = reader.text()?;
            let value = reader.value()?;
            if meta.keys.insert(key.clone(), value).is_some() {
                return Err(format!("it has the key {key} twice"));
            }
        }
        let mut infos = BTreeMap::new();
        for _ in 0..tensors {
            let (name, info) = tensor(&mut reader)?;
            if infos.insert(name.clone(), info).is_some() {
                return Err(format!("it has the tensor {name} twice"));
            }
        }
        let align = meta.count("general.alignment")?.unwrap_or(32);
        if !align.is_power_of_two() {
            return Err(format!("its data is aligned to {align} bytes"));
        }
        let data_start = reader.at.next_multiple_of(align.into());
        for (name, info) in &infos {
            let size = info.dims.iter().try_fold(1_u64, |all, n| all.checked_mul(*n));
            let cols = info.dims.first().copied().unwrap_or(0);
            let own = size.filter(|_| info.format.fits(cols)).map(|numbers| info.format.bytes(numbers));
            let end = own.and_then(|own| data_start.checked_add(info.offset)?.checked_add(own));
            if end.is_none_or(|end| end > bytes) {
                return Err(format!("the tensor {name} does not lie in the file"));
            }
        }
        Ok(GgufHeader { meta, tensors: infos, data_start })
    }
}

fn tensor<R: Read>(reader: &mut Reader<R>) -> Result<(String, TensorInfo), String> {
    let name = reader.text()?;
    let count = reader.u32()?;
    if count > 4 {
        return Err(format!("the tensor {name} has {count} dimensions"));
    }
    let dims = (0..count).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    let kind = reader.u32()?;
    let format = BlockFormat::of(kind).ok_or_else(|| {
        format!("the tensor {name} is of the kind {kind}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 can be read")
    })?;
    Ok((name, TensorInfo { dims, format, offset: reader.u64()? }))
}
