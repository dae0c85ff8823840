//! The thread that owns libtorch: builds an engine from each assignment and runs it to its end. What an
//! engine held when it ended early stays here, for the generation that follows.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use coxswain_comm::{DataPort, Links};
use coxswain_engine::{Engine, EngineError, State};
use coxswain_files::atomic::hashed_bytes;
use coxswain_types::Assignment;
use coxswain_types::ids::Rank as RankId;
use coxswain_types::status::{Fault, Phase};
use tokio::sync::watch;

use crate::device::of_tensors;
use crate::machine;
use crate::state::Shared;
use crate::store::Rendezvous;

/// How long a worker without work keeps what its last engine held: a run that waits longer for workers
/// goes on from its checkpoint, and the memory is free for others.
const REMAINS_KEPT: Duration = Duration::from_secs(600);

/// Work for the thread, with what the last engine has left there.
pub(crate) type Job = Box<dyn FnOnce(&mut Option<State>) + Send>;

/// An assignment to work on. Its phase shows in `shared`; [`Shared::dismiss`] ends it early.
pub(crate) struct Order {
    pub(crate) assignment: Assignment,
    pub(crate) store: Rendezvous,
    /// Where peers reach this worker.
    pub(crate) port: Arc<DataPort>,
    pub(crate) runtime: String,
    pub(crate) shared: Shared,
}

/// The way to the thread. It ends with this.
pub(crate) struct Rank {
    jobs: Sender<Job>,
    begun: u64,
    /// How many jobs have ended.
    ended: watch::Receiver<u64>,
}

impl Rank {
    /// Starts the thread.
    pub(crate) fn start() -> Result<Rank> {
        let (jobs, queue) = channel();
        let (ends, ended) = watch::channel(0);
        let thread = std::thread::Builder::new().name("engine".to_owned());
        thread.spawn(move || serve(&queue, &ends)).context("starting the engine's thread")?;
        Ok(Rank { jobs, begun: 0, ended })
    }

    /// Starts a job, after those before it.
    pub(crate) fn begin(&mut self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_| anyhow!("the engine's thread has ended"))?;
        self.begun += 1;
        Ok(())
    }

    /// Whether a job is worked on.
    pub(crate) fn is_busy(&self) -> bool {
        *self.ended.borrow() < self.begun && self.ended.has_changed().is_ok()
    }

    /// Ready once no job is worked on.
    pub(crate) async fn ended(&self) {
        // An error says that the thread has ended, and all work with it.
        self.ended.clone().wait_for(|ended| *ended >= self.begun).await.ok();
    }
}

fn serve(jobs: &Receiver<Job>, ends: &watch::Sender<u64>) {
    let mut remains = None;
    loop {
        match jobs.recv_timeout(REMAINS_KEPT) {
            Ok(job) => {
                job(&mut remains);
                ends.send_modify(|ended| *ended += 1);
            }
            Err(RecvTimeoutError::Timeout) => remains = None,
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Works on an assignment, to its end.
pub(crate) fn work(order: Order, remains: &mut Option<State>) {
    let Order { assignment, store, port, runtime, shared } = order;
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
        let mut engine = Engine::build(assignment, store, &port, (&runtime, of_tensors()), &shared, remains)?;
        tracing::info!(hashed_bytes = hashed_bytes() - hashed_before, "ready");
        let result = engine.run(&shared);
        *remains = Some(engine.leave());
        result
    }));
    let phase = match result {
        Ok(Ok(())) => Phase::Done,
        Ok(Err(error)) => Phase::Failed { message: error.to_string(), fault: fault(&error, &shared) },
        Err(panic) => {
            *remains = None;
            Phase::Failed { message: panic_text(panic.as_ref()), fault: Fault::Device }
        }
    };
    let state = shared.lock();
    let (step, dismissed) = (state.status.step.0, state.dismissed);
    drop(state);
    match &phase {
        Phase::Failed { message, .. } if dismissed => tracing::info!(step, "ended as told: {message}"),
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
    shared.update(|state| {
        // A manifest that could not be published has ended the run already. An engine that was told to end did not
        // fail, whatever its last operation says.
        if !state.dismissed && !matches!(state.status.phase, Phase::Failed { .. }) {
            state.status.phase = phase;
        }
    });
}

/// A checkpoint that is damaged is nobody's fault here. A rank whose exchange failed has most likely lost a peer or the
/// way to it, and
/// one where libtorch fails otherwise, its device; all else is its own fault.
fn fault(error: &EngineError, shared: &Shared) -> Fault {
    let (broken, unreachable) = {
        let state = shared.lock();
        let links = state.links.as_ref();
        (links.is_some_and(Links::is_broken), links.and_then(Links::unreachable))
    };
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
    use coxswain_types::ids::{Generation, WorkerId};
    use coxswain_types::status::{WorkerInfo, WorkerStatus};

    use super::*;

    #[test]
    fn what_libtorch_fails_with_is_its_device_and_what_a_file_fails_with_is_not() {
        let info = WorkerInfo {
            id: WorkerId("w".to_owned()),
            incarnation: 1,
            host: "h".to_owned(),
            pid: 1,
            cores: 1,
            device: "cpu".to_owned(),
            runtime: "r".to_owned(),
            serves: None,
        };
        let shared = Shared::new(WorkerStatus::idle(info, Generation(1)));
        let torch = EngineError::from(TorchError("CUDA error: device-side assert".to_owned()));
        assert_eq!(fault(&torch, &shared), Fault::Device);
        assert_eq!(fault(&EngineError::Other("the disk is full".to_owned()), &shared), Fault::Own);
        let what = || CheckpointError::Damaged { path: "model".into(), what: "it is cut short".to_owned() };
        assert_eq!(fault(&EngineError::Damaged(what()), &shared), Fault::Checkpoint);
        assert_eq!(fault(&EngineError::Checkpoint(what()), &shared), Fault::Own);
    }
}
