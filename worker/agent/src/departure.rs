//! Why a worker's process ends.

use thiserror::Error;

/// Why a worker's process ends, where nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It was drained, or its coordinator's work is over.
    Finished,
    /// The coordinator does not take this process, or not any more.
    Refused,
    /// It was asked to stop.
    Asked(StopRequest),
}

impl Departure {
    /// The exit code: 0 only where this worker need not be started again.
    pub fn code(self) -> u8 {
        match self {
            Departure::Finished => 0,
            // It has to join again, so it is to be started again.
            Departure::Asked(StopRequest::NotRenewed) => 1,
            Departure::Refused => 3,
            // As of a process that the signal ends.
            Departure::Asked(StopRequest::Interrupt) => 130,
            Departure::Asked(StopRequest::Terminate) => 143,
        }
    }
}

/// What asks a worker's process to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// The coordinator does not renew its certificate any more.
    NotRenewed,
}

impl StopRequest {
    /// The reason, for people.
    pub fn why(self) -> &'static str {
        match self {
            StopRequest::Interrupt => "it was interrupted (SIGINT)",
            StopRequest::Terminate => "it was asked to stop (SIGTERM)",
            StopRequest::NotRenewed => "its certificate is not renewed any more",
        }
    }
}

/// Why a worker's process fails.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AgentError {
    /// A coordinator has never taken it in, and does not now.
    #[error("the coordinator refused this worker: {0}")]
    Refused(String),
    /// The coordinator stayed away for too long.
    #[error("lost the coordinator: {why}{}", if *.at_work { "; its run ends here" } else { "" })]
    Lost {
        /// Why it was lost.
        why: String,
        /// Whether the worker has an assignment.
        at_work: bool,
    },
    /// libtorch failed, with this message.
    #[error("{0}; this process ends, since its device or its memory may be broken")]
    Broken(String),
    /// An engine that was told to end did not.
    #[error(
        "the engine was told to end and did not within {limit_s} s; the process exits, because it cannot run \
         another engine"
    )]
    Hung {
        /// How long it was waited for.
        limit_s: u64,
    },
}
