//! An assignment as the text that is journaled, sent and hashed.

use coxswain_types::Assignment;

use super::PlanError;

/// The most bytes of an assignment: a message to a worker has at most 16 MiB, and what else is wanted of it fits into
/// the rest.
pub const MAX_ASSIGNMENT_BYTES: usize = 15 << 20;

/// The assignment's JSON and its digest: blake3, in hex, the identity of the assignment on both
/// sides.
///
/// An assignment out of [`super::plan`] always has one; the plan has tried it.
pub fn encode(assignment: &Assignment) -> (String, String) {
    let json = serde_json::to_string(assignment).unwrap_or_default();
    let digest = blake3::hash(json.as_bytes()).to_hex().to_string();
    (json, digest)
}

/// Refuses an assignment that no message carries, or that is another one once it has been encoded and read back: JSON
/// has no NaN, for one.
pub(super) fn check(assignment: &Assignment) -> Result<(), PlanError> {
    let (json, _) = encode(assignment);
    if json.len() > MAX_ASSIGNMENT_BYTES {
        return Err(PlanError::TooLong { bytes: json.len() as u64 });
    }
    match serde_json::from_str::<Assignment>(&json) {
        Ok(read) if read == *assignment => Ok(()),
        _ => Err(PlanError::Encoding(assignment.rank.0)),
    }
}
