//! The bounds of a job file's numbers, which stand in [`coxswain_types::bounds::limits`], because a job that is
//! read from a checkpoint's manifest has to lie within them too. The structs of [`super::raw`] say which key has
//! which of them.

pub(super) use coxswain_types::bounds::limits::*;

/// Byte-level BPE begins with the 256 bytes and the end-of-text token.
pub(super) const TEXT_VOCAB: u32 = 257;
