//! What the Sync loop and the engine's thread share: the status to send, and the directives received.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coxswain_comm::Links;
use coxswain_engine::{Control, Event};
use coxswain_types::status::{DesiredState, Directive, Phase, Saved, WorkerStatus};
use tokio::sync::Notify;

/// Shared between the loop and one engine's thread; a new assignment gets a new one.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

/// The state itself.
pub(crate) struct State {
    /// What is said of this worker.
    pub(crate) status: WorkerStatus,
    /// The engine's network, once it stands.
    pub(crate) links: Option<Links>,
    /// Whether the engine was told to end.
    pub(crate) dismissed: bool,
    /// The newest directive.
    directive: Directive,
    saved: VecDeque<Saved>,
}

/// Checkpoints that may wait to be told. The coordinator decides one within a round trip; a rank
/// that is this far ahead of it tells of the newer ones only.
const SAVED_MAX: usize = 16;

impl Shared {
    pub(crate) fn new(status: WorkerStatus) -> Shared {
        let (directive, saved) = (Directive::NONE, VecDeque::new());
        let state = State { status, links: None, dismissed: false, directive, saved };
        Shared(Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// The state. A panic elsewhere cannot leave it half-changed: every change is one assignment.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the status and has it sent.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.0.changed.notify_one();
    }

    /// Tells the engine to end: its waits do now, and its next look at what is wanted.
    pub(crate) fn dismiss(&self) {
        let mut state = self.lock();
        state.dismissed = true;
        if let Some(links) = &state.links {
            links.abort();
        }
    }

    /// Waits until there is something new to send.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Remembers a directive, and forgets reports that have been recorded.
    pub(crate) fn directive(&self, desired: &DesiredState) {
        let mut state = self.lock();
        state.status.reports.retain(|report| report.step > desired.acknowledged.0);
        if state.saved.front().is_some_and(|saved| saved.step <= desired.decided) {
            state.saved.retain(|saved| saved.step > desired.decided);
            state.status.saved = state.saved.front().cloned();
            self.0.changed.notify_one();
        }
        if state.directive.revision < desired.revision {
            state.directive = desired.directive();
        }
    }
}

impl Control for Shared {
    fn directive(&self) -> Directive {
        self.lock().directive
    }

    fn tell(&self, event: Event) {
        self.update(|state| match event {
            Event::Linked(links) => {
                if state.dismissed {
                    links.abort();
                }
                state.links = Some(links);
            }
            Event::Ready(begun, reports) => {
                state.status.phase = Phase::Running;
                state.status.step = begun.step;
                state.status.begun = Some(begun);
                state.status.reports = reports;
            }
            Event::Reported(report) => state.status.reports.push(report),
            Event::Stepped(pace) => {
                state.status.step = pace.step;
                state.status.pace = Some(pace);
                state.status.peak_tensor_bytes = coxswain_native::memory::peak_bytes();
            }
            Event::Saved(saved) => {
                state.saved.push_back(saved);
                if state.saved.len() > SAVED_MAX {
                    state.saved.pop_front();
                }
                state.status.saved = state.saved.front().cloned();
            }
        });
    }
}
