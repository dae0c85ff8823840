//! The assignment at hand: what the worker says of it, and what is asked of it.

use std::collections::VecDeque;
use std::sync::Arc;

use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::{
    DesiredState, Directive, Fault, Phase, Publish, Published, Saved, WorkerInfo, WorkerStatus,
};

use crate::EngineNews;

/// Checkpoints that may wait to be told. The coordinator decides one within a round trip; a rank
/// that is this far ahead of it tells of the newer ones only.
const SAVED_MAX: usize = 16;

/// An assignment, or the want of one, from when the worker takes it to when it takes the next.
#[derive(Clone, Debug)]
pub(crate) struct AssignmentState {
    /// What the worker says of itself. The newest tells all.
    pub status: WorkerStatus,
    /// The assignment; `None` where the worker is idle or could not read its own.
    pub assignment: Option<Arc<Assignment>>,
    directive: Directive,
    /// Checkpoints that wait to be told, oldest first.
    saved: VecDeque<Saved>,
    /// The manifest that was asked for last.
    publishing: Option<Step>,
}

impl AssignmentState {
    /// Without an assignment, in this generation.
    pub(crate) fn idle(info: WorkerInfo, generation: Generation) -> AssignmentState {
        AssignmentState {
            status: WorkerStatus::idle(info, generation),
            assignment: None,
            directive: Directive::NONE,
            saved: VecDeque::new(),
            publishing: None,
        }
    }

    /// With the assignment of this digest, which is still to be read.
    pub(crate) fn preparing(info: WorkerInfo, generation: Generation, digest: &str) -> AssignmentState {
        let mut state = AssignmentState::idle(info, generation);
        state.status.assignment_digest = Some(digest.to_owned());
        state.status.phase = Phase::Preparing;
        state
    }

    /// What is asked of all ranks, as far as this one has heard.
    pub(crate) fn directive(&self) -> Directive {
        self.directive
    }

    /// Takes up what is desired of the ranks, and forgets what the coordinator has noted.
    pub(crate) fn hear(&mut self, desired: &DesiredState) {
        self.status.reports.retain(|report| report.step > desired.acknowledged.0);
        if self.directive.revision < desired.revision {
            self.directive = desired.directive();
        }
        self.saved.retain(|saved| saved.step > desired.decided);
        self.status.saved = self.saved.front().cloned();
    }

    /// Takes up what the engine tells.
    pub(crate) fn note(&mut self, news: EngineNews) {
        let status = &mut self.status;
        match news {
            EngineNews::Ready(begun, reports) => {
                status.phase = Phase::Running;
                status.step = begun.step;
                status.begun = Some(begun);
                status.reports = reports;
            }
            EngineNews::Reported(report) => status.reports.push(report),
            EngineNews::Stepped { pace, peak_tensor_bytes } => {
                status.step = pace.step;
                status.pace = Some(pace);
                status.peak_tensor_bytes = peak_tensor_bytes;
            }
            EngineNews::Saved(saved) => self.add_saved(saved),
            // A manifest that could not be published has ended the run already.
            EngineNews::Ended(phase) => {
                if !matches!(status.phase, Phase::Failed { .. }) {
                    status.phase = phase;
                }
            }
        }
    }

    /// A checkpoint that this rank has written waits to be told.
    pub(crate) fn add_saved(&mut self, saved: Saved) {
        self.saved.push_back(saved);
        if self.saved.len() > SAVED_MAX {
            self.saved.pop_front();
        }
        self.status.saved = self.saved.front().cloned();
    }

    /// Whether to publish this manifest now: once for each time that it is wanted and not yet done.
    pub(crate) fn begins_to_publish(&mut self, publish: &Publish) -> bool {
        let done = self.status.published.as_ref().map(|published| published.step);
        let begins =
            self.assignment.is_some() && done < Some(publish.step) && self.publishing != Some(publish.step);
        if begins {
            self.publishing = Some(publish.step);
        }
        begins
    }

    /// A manifest was published, or could not be.
    pub(crate) fn published(&mut self, step: Step, result: Result<String, String>) {
        match result {
            Ok(digest) => self.status.published = Some(Published { step, digest }),
            Err(message) => self.fail(message, Fault::Own),
        }
    }

    /// It cannot go on.
    pub(crate) fn fail(&mut self, message: String, fault: Fault) {
        self.status.phase = Phase::Failed { message, fault };
    }
}
