//! What goes into the state machine and what comes out of it.

use std::sync::Arc;

use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::{Begun, DesiredState, Leave, Pace, Phase, Publish, Saved, StepReport};

use crate::{AgentError, Departure, StopRequest};

/// Something that happened to a worker's process.
#[derive(Clone, Debug)]
pub enum AgentInput {
    /// A deadline has passed ([`crate::Agent::deadline_ms`]).
    Clock,
    /// From the coordinator, or of the way to it.
    Coordinator(CoordinatorNews),
    /// From the engine, oldest first.
    Engine(Vec<EngineNews>),
    /// What came of [`AgentAction::Publish`].
    Published {
        /// The stint that it was wanted in.
        stint: u64,
        /// The checkpoint.
        step: Step,
        /// The manifest's digest, or why there is none, for people.
        result: Result<String, String>,
    },
    /// The process is asked to stop.
    Stop(StopRequest),
}

/// What comes from the coordinator. What ends a try or a stream leaves no connection behind.
#[derive(Clone, Debug)]
pub enum CoordinatorNews {
    /// It gave this process its incarnation.
    Registered {
        /// Which one.
        incarnation: u64,
    },
    /// It takes this worker's statuses.
    Accepted,
    /// What it wants.
    DesiredState(Box<DesiredState>),
    /// It does not take this worker now, and may do so soon.
    Busy(String),
    /// It does not take this worker, or does not answer.
    Refused(String),
    /// The stream broke off.
    Lost(String),
}

/// What an engine tells, from the start of an assignment to its end.
#[derive(Clone, Debug)]
pub enum EngineNews {
    /// Its stage is built, and training starts from here; the steps before it that the coordinator may not have
    /// heard of.
    Ready(Begun, Vec<StepReport>),
    /// A step was applied.
    Stepped {
        /// Which one, and how long it took.
        pace: Pace,
        /// The most bytes that tensors took at once so far.
        peak_tensor_bytes: u64,
    },
    /// What the lead rank reports of it.
    Reported(StepReport),
    /// This rank's part of a checkpoint is on disk.
    Saved(Saved),
    /// It has ended, in this phase. It is the last of an assignment.
    Ended(Phase),
}

/// Something to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentAction {
    /// Ask the coordinator for an incarnation. [`CoordinatorNews`] says what came of it.
    Register,
    /// Open a stream that begins with this worker's status. [`CoordinatorNews`] says what came of it.
    Open,
    /// Send this worker's status.
    Say,
    /// Send this worker's status and see to it that it leaves: the process ends.
    SayLast,
    /// Start an engine; the one before it has ended.
    Start(Arc<Assignment>),
    /// Tell the engine to end: its waits do now, and its work at its next look.
    EndEngine,
    /// Publish the manifest of a checkpoint.
    Publish(Box<Publication>),
    /// Let people know.
    Tell(AgentNotice),
    /// End the process; the last action.
    Exit(Result<Departure, AgentError>),
}

/// A manifest to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// The stint that it is wanted in.
    pub stint: u64,
    /// The assignment that wrote the checkpoint.
    pub assignment: Arc<Assignment>,
    /// Which checkpoint, and its files.
    pub publish: Publish,
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentNotice {
    /// A desired state of an older generation came, and is ignored.
    Outdated(Generation),
    /// The coordinator does not take this worker yet.
    NotTakenYet(String),
    /// The coordinator is gone; the worker goes on without it.
    LostCoordinator {
        /// Why.
        why: String,
        /// For how long.
        timeout_s: u64,
    },
    /// It was asked to stop, and leaves at the end of a step.
    Leaving(StopRequest),
    /// It leaves, for nothing is left to do.
    NothingLeft,
    /// It leaves at once, for this reason.
    LeavingNow(String),
    /// The coordinator sends it away.
    SentAway {
        /// What the coordinator said.
        leave: Leave,
        /// What the process ends as.
        departure: Departure,
    },
}
