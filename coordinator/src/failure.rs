//! How a command ends: its exit codes, and why it fails.

use crate::refusal::JobRefusal;

/// The command did what it should; a run is done.
pub(crate) const DONE: u8 = 0;
/// The run failed or was cancelled, or something could not be done.
pub(crate) const FAILED: u8 = 1;
/// The input is invalid: an option, a job file. Nothing was started.
pub(crate) const BAD_INPUT: u8 = 2;
/// The reader of stdout has closed it. A shell reports the same code for a program that SIGPIPE ended.
pub(crate) const UNREAD: u8 = 141;

/// Why a command ends without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The input is invalid.
    Input(String),
    /// The job is refused, for reasons that have codes.
    Refused(JobRefusal),
    /// It could not be done.
    Failed(anyhow::Error),
    /// It ended with this code and has said why.
    Said(u8),
}

impl From<JobRefusal> for Failure {
    fn from(refusal: JobRefusal) -> Failure {
        Failure::Refused(refusal)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}
