//! The thread that owns libtorch: builds an engine from an assignment and runs it to its end.

use std::panic::AssertUnwindSafe;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use coxswain_comm::Links;
use coxswain_engine::{Engine, EngineError};
use coxswain_types::Assignment;
use coxswain_types::status::{Fault, Phase};

use crate::machine;
use crate::state::Shared;
use crate::store::Rendezvous;

/// Starts an engine. Its phase shows in `shared`; to end it early, abort its links.
pub(crate) fn spawn(
    assignment: Assignment,
    store: Rendezvous,
    address: String,
    runtime: String,
    shared: Shared,
) -> Result<JoinHandle<()>> {
    let span = tracing::info_span!(
        "rank",
        job = %assignment.job,
        generation = assignment.generation.0,
        rank = assignment.rank.0,
    );
    let work = move || {
        let _entered = span.enter();
        // libtorch's operators panic in tch where memory runs out; that ends this rank with a
        // message, not the process without one.
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            tracing::info!(
                pipeline = assignment.pipeline_index,
                tensor = assignment.tensor_index,
                data = assignment.data_index,
                threads = assignment.threads,
                "joining from {address}"
            );
            let mut engine = Engine::build(assignment, store, &address, &runtime, &shared)?;
            engine.run(&shared)
        }));
        let phase = match result {
            Ok(Ok(())) => Phase::Done,
            Ok(Err(error)) => Phase::Failed { message: error.to_string(), fault: fault(&error, &shared) },
            Err(panic) => Phase::Failed { message: panic_text(panic.as_ref()), fault: Fault::Own },
        };
        let step = shared.lock().status.step.0;
        match &phase {
            Phase::Failed { message, .. } => tracing::error!(step, "{message}"),
            Phase::Idle | Phase::Preparing | Phase::Running | Phase::Done => tracing::info!(
                step,
                peak_rss_bytes = machine::peak_rss_bytes(),
                peak_tensor_bytes = coxswain_native::memory::peak_bytes(),
                "done"
            ),
        }
        shared.update(|state| {
            // A manifest that could not be published has ended the run already.
            if !matches!(state.status.phase, Phase::Failed { .. }) {
                state.status.phase = phase;
            }
        });
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(work).context("starting the engine's thread")
}

/// A rank whose exchange failed has most likely lost a peer; all else is its own fault.
fn fault(error: &EngineError, shared: &Shared) -> Fault {
    let broken = shared.lock().links.as_ref().is_some_and(Links::is_broken);
    if broken || matches!(error, EngineError::Joining { .. }) { Fault::Peer } else { Fault::Own }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    format!("the engine panicked: {}", text.lines().next().unwrap_or_default())
}
