//! Numbers as GGUF keeps them: plain, or in blocks of 32 that share a scale.

use crate::hf::store::from_half;

/// Numbers of a quantized block.
const BLOCK: u64 = 32;

/// How the numbers of a tensor are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockFormat {
    F32,
    F16,
    Bf16,
    /// A scale, and 4 bits each, of which 8 stand for zero.
    Q4_0,
    /// A scale and a least number, and 4 bits each.
    Q4_1,
    /// As `Q4_0` with a fifth bit each, of which 16 stand for zero.
    Q5_0,
    /// As `Q4_1` with a fifth bit each.
    Q5_1,
    /// A scale, and 8 bits each.
    Q8_0,
}

impl BlockFormat {
    /// The format by its number in files.
    pub(super) fn of(number: u32) -> Option<BlockFormat> {
        Some(match number {
            0 => BlockFormat::F32,
            1 => BlockFormat::F16,
            2 => BlockFormat::Q4_0,
            3 => BlockFormat::Q4_1,
            6 => BlockFormat::Q5_0,
            7 => BlockFormat::Q5_1,
            8 => BlockFormat::Q8_0,
            30 => BlockFormat::Bf16,
            _ => return None,
        })
    }

    /// Numbers that stand together, and their bytes.
    fn unit(self) -> (u64, u64) {
        match self {
            BlockFormat::F32 => (1, 4),
            BlockFormat::F16 | BlockFormat::Bf16 => (1, 2),
            BlockFormat::Q4_0 => (BLOCK, 18),
            BlockFormat::Q4_1 => (BLOCK, 20),
            BlockFormat::Q5_0 => (BLOCK, 22),
            BlockFormat::Q5_1 => (BLOCK, 24),
            BlockFormat::Q8_0 => (BLOCK, 34),
        }
    }

    /// Whether rows of so many numbers can be kept.
    pub(super) fn fits(self, cols: u64) -> bool {
        cols.is_multiple_of(self.unit().0)
    }

    /// Bytes of so many numbers. A file claims any number; as many bytes as can be counted lie in no file.
    pub(super) fn bytes(self, numbers: u64) -> u64 {
        let (unit, bytes) = self.unit();
        (numbers / unit).saturating_mul(bytes)
    }

    /// The numbers of whole units.
    pub(super) fn floats(self, bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(self.unit().1 as usize).flat_map(|unit| self.unit_floats(unit)).collect()
    }

    fn unit_floats(self, b: &[u8]) -> Vec<f32> {
        let half = |at: usize| from_half(u16::from_le_bytes([b[at], b[at + 1]]));
        // The low bits of the bytes are the first half of a block, the high bits the second.
        let nibbles = |from: usize| {
            let low = b[from..].iter().map(|byte| u32::from(byte & 15));
            low.chain(b[from..].iter().map(|byte| u32::from(byte >> 4)))
        };
        let fifth = |from: usize, at: usize| u32::from(b[from + at / 8] >> (at % 8) & 1) << 4;
        match self {
            BlockFormat::F32 => vec![f32::from_le_bytes([b[0], b[1], b[2], b[3]])],
            BlockFormat::F16 => vec![half(0)],
            BlockFormat::Bf16 => vec![f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)],
            BlockFormat::Q4_0 => nibbles(2).map(|q| (q as f32 - 8.0) * half(0)).collect(),
            BlockFormat::Q4_1 => nibbles(4).map(|q| q as f32 * half(0) + half(2)).collect(),
            BlockFormat::Q5_0 => {
                let wide = nibbles(6).enumerate().map(|(at, q)| q | fifth(2, at));
                wide.map(|q| (q as f32 - 16.0) * half(0)).collect()
            }
            BlockFormat::Q5_1 => {
                let wide = nibbles(8).enumerate().map(|(at, q)| q | fifth(4, at));
                wide.map(|q| q as f32 * half(0) + half(2)).collect()
            }
            BlockFormat::Q8_0 => b[2..].iter().map(|q| f32::from(*q as i8) * half(0)).collect(),
        }
    }
}
