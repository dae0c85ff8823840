//! What callers do to jobs and workers, from whichever port they come.

use coxswain_core::cluster::{CancelWhen, Event};
use coxswain_proto::{limits, wire};
use coxswain_types::ids::WorkerId;
use tonic::Status;

use crate::auth::{Caller, shown};
use crate::handle::Handle;
use crate::service::{bounded, ending, unknown};

/// Cancels a job of the caller's.
pub(crate) async fn cancel(
    handle: &Handle,
    caller: &Caller,
    request: wire::CancelRequest,
) -> Result<wire::CancelReply, Status> {
    let wire::CancelRequest { job, reason, now } = request;
    caller.job(&job)?;
    bounded("reason", &reason, limits::MAX_REASON_BYTES)?;
    let summary = handle.get(&job).await.map_err(ending)?.ok_or_else(|| unknown(&job))?;
    if summary.state.is_over() {
        return Err(Status::failed_precondition(format!("job {job} is over already: {}", summary.reason)));
    }
    let when = if now { CancelWhen::Now } else { CancelWhen::AfterStep };
    handle.happened(Event::Cancelled { job: job.clone(), reason, when }).await.map_err(ending)?;
    let summary = handle.get(&job).await.map_err(ending)?.ok_or_else(|| unknown(&job))?;
    Ok(wire::CancelReply { over: summary.state.is_over(), reason: summary.reason })
}

/// Takes a worker out.
pub(crate) async fn drain(
    handle: &Handle,
    caller: &Caller,
    request: wire::DrainRequest,
) -> Result<wire::DrainReply, Status> {
    let wire::DrainRequest { worker, reason } = request;
    bounded("reason", &reason, limits::MAX_REASON_BYTES)?;
    // A worker is not one job's: the next that would have it waits for another.
    caller.all_jobs(&format!("worker {}", shown(&worker)))?;
    let (_, workers) = handle.list().await.map_err(ending)?;
    let worker = WorkerId(worker);
    if !workers.iter().any(|here| here.info.id == worker) {
        return Err(Status::not_found(format!(
            "there is no worker {}; `coxswain status` lists those that are here",
            shown(&worker.0)
        )));
    }
    handle.happened(Event::Drain { worker, reason }).await.map_err(ending)?;
    Ok(wire::DrainReply {})
}
