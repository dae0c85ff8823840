//! Any bytes are a message that converts, or are refused: the two that carry the most, one each way.
#![no_main]

use coxswain_proto::wire;
use coxswain_types::status::{Desired, WorkerStatus};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = wire::WorkerStatus::decode(bytes)
        && let Ok(status) = WorkerStatus::try_from(message)
    {
        let again = WorkerStatus::try_from(wire::WorkerStatus::from(status.clone()));
        assert!(again.is_ok(), "{status:?}");
    }
    if let Ok(message) = wire::Desired::decode(bytes) {
        drop(Desired::try_from(message));
    }
});
