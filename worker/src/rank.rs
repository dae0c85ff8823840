//! One assignment on the engine's thread: an engine is built from it and runs to its end, which is a phase.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use coxswain_comm::{DataPort, Links};
use coxswain_engine::{Engine, EngineError, State};
use coxswain_files::atomic::hashed_bytes;
use coxswain_types::Assignment;
use coxswain_types::ids::Rank as RankId;
use coxswain_types::status::{Fault, Phase};

use crate::device::of_tensors;
use crate::engine_handle::EngineControl;
use crate::machine;
use crate::store::Rendezvous;

/// An assignment to work on.
pub(crate) struct Order {
    pub(crate) assignment: Assignment,
    pub(crate) store: Rendezvous,
    /// Where peers reach this worker.
    pub(crate) port: Arc<DataPort>,
    pub(crate) runtime: String,
}

/// Works on an assignment, to its end. The phase tells how that was; where the engine was told to end, it says nothing.
pub(crate) fn work(order: Order, control: &EngineControl, remains: &mut Option<State>) -> Phase {
    let Order { assignment, store, port, runtime } = order;
    let span = tracing::info_span!(
        "rank",
        job = %assignment.job,
        generation = assignment.generation.0,
        rank = assignment.rank.0,
    );
    let _entered = span.enter();
    tracing::info!(
        pipeline = assignment.pipeline_index,
        tensor = assignment.tensor_index,
        data = assignment.data_index,
        threads = assignment.threads,
        "joining from {}",
        port.address()
    );
    // libtorch's operators panic in tch where memory runs out or a device fails; that ends this rank with a
    // message, and the process after it was said.
    let hashed_before = hashed_bytes();
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut engine = Engine::build(assignment, store, &port, (&runtime, of_tensors()), control, remains)?;
        tracing::info!(hashed_bytes = hashed_bytes() - hashed_before, "ready");
        let result = engine.run(control);
        *remains = Some(engine.leave());
        result
    }));
    let phase = match result {
        Ok(Ok(())) => Phase::Done,
        Ok(Err(error)) => {
            Phase::Failed { message: error.to_string(), fault: fault(&error, control.links().as_ref()) }
        }
        Err(panic) => {
            *remains = None;
            Phase::Failed { message: panic_text(panic.as_ref()), fault: Fault::Device }
        }
    };
    let step = control.step().0;
    match &phase {
        Phase::Failed { message, .. } if control.dismissed() => {
            tracing::info!(step, "ended as told: {message}")
        }
        // What went wrong there its peer or the coordinator says.
        Phase::Failed { message, fault: Fault::Peer | Fault::Path { .. } } => {
            tracing::warn!(step, "{message}")
        }
        Phase::Failed { message, .. } => tracing::error!(step, "{message}"),
        Phase::Idle | Phase::Preparing | Phase::Running | Phase::Done => tracing::info!(
            step,
            peak_rss_bytes = machine::peak_rss_bytes(),
            peak_tensor_bytes = coxswain_native::memory::peak_bytes(),
            "done"
        ),
    }
    phase
}

/// Whose fault an error is. A damaged checkpoint has a fault of its own. A rank whose exchange failed has most likely
/// lost a peer or the way to it, and one where libtorch fails otherwise, its device; all else is its own fault.
fn fault(error: &EngineError, links: Option<&Links>) -> Fault {
    let (broken, unreachable) = (links.is_some_and(Links::is_broken), links.and_then(Links::unreachable));
    match (error, unreachable) {
        (EngineError::Damaged(_), _) => Fault::Checkpoint,
        (_, Some(peer)) => Fault::Path { peer: RankId(peer) },
        _ if broken => Fault::Peer,
        (EngineError::Joining { .. }, _) => Fault::Peer,
        (EngineError::Torch { .. }, _) => Fault::Device,
        _ => Fault::Own,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    format!("the engine panicked: {}", text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use coxswain_files::CheckpointError;
    use coxswain_native::TorchError;

    use super::*;

    #[test]
    fn what_libtorch_fails_with_is_its_device_and_what_a_file_fails_with_is_not() {
        let torch = EngineError::from(TorchError("CUDA error: device-side assert".to_owned()));
        assert_eq!(fault(&torch, None), Fault::Device);
        assert_eq!(fault(&EngineError::Other("the disk is full".to_owned()), None), Fault::Own);
        let what = || CheckpointError::Damaged { path: "model".into(), what: "it is cut short".to_owned() };
        assert_eq!(fault(&EngineError::Damaged(what()), None), Fault::Checkpoint);
        assert_eq!(fault(&EngineError::Checkpoint(what()), None), Fault::Own);
    }
}
