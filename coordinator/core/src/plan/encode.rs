//! An assignment as the text that is journaled, sent and hashed.

use coxswain_types::Assignment;

/// The assignment's JSON and its digest: blake3, in hex, the identity of the assignment on both
/// sides.
///
/// An assignment out of [`super::plan`] always has one; the plan has tried it.
pub fn encode(assignment: &Assignment) -> (String, String) {
    let json = serde_json::to_string(assignment).unwrap_or_default();
    let digest = blake3::hash(json.as_bytes()).to_hex().to_string();
    (json, digest)
}

/// Whether the assignment is the same after it has been encoded and read back. JSON has no NaN, for
/// one.
pub(super) fn survives(assignment: &Assignment) -> bool {
    let (json, _) = encode(assignment);
    serde_json::from_str::<Assignment>(&json).is_ok_and(|read| read == *assignment)
}
