//! Any bytes are a message that converts, or are refused: the two that carry the most, one each way.

use coxswain_proto::wire;
use coxswain_types::status::{DesiredState, WorkerStatus};
use prost::Message as _;

/// Reads a status, and what is wanted of a worker.
pub fn run(bytes: &[u8]) {
    if let Ok(message) = wire::WorkerStatus::decode(bytes)
        && let Ok(status) = WorkerStatus::try_from(message)
    {
        let again = WorkerStatus::try_from(wire::WorkerStatus::from(status.clone()));
        assert!(again.is_ok(), "{status:?}");
    }
    if let Ok(message) = wire::DesiredState::decode(bytes)
        && let Ok(desired) = DesiredState::try_from(message)
    {
        let again = DesiredState::try_from(wire::DesiredState::from(desired.clone()));
        assert!(again.is_ok(), "{desired:?}");
    }
}
