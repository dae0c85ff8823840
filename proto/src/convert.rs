//! Wire messages to checked types and back. Towards the wire nothing can fail; from it, an error
//! names the field.

mod activity;

use coxswain_types::ids::{Generation, Rank, Step, WorkerId};
use coxswain_types::status;

use crate::{limits, wire};

/// A message that says nothing sensible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{0}: missing")]
    Missing(&'static str),
    /// A number that names no value of an enumeration.
    #[error("{field}: {found} names nothing that this version knows; are both sides of one version?")]
    Unknown {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: i32,
    },
    /// A text that is longer than its bound.
    #[error("{field}: {found} bytes, at most {most} are allowed")]
    TooLong {
        /// The field.
        field: &'static str,
        /// How many bytes it holds.
        found: usize,
        /// How many it may hold.
        most: usize,
    },
    /// A text with characters that a terminal obeys, in a name that people read.
    #[error("{0}: has control characters")]
    Control(&'static str),
    /// A list that is longer than its bound.
    #[error("{field}: {found} entries, at most {most} are allowed")]
    TooMany {
        /// The field.
        field: &'static str,
        /// How many it holds.
        found: usize,
        /// How many it may hold.
        most: usize,
    },
}

impl From<status::WorkerInfo> for wire::WorkerInfo {
    fn from(info: status::WorkerInfo) -> Self {
        let status::WorkerInfo { id, incarnation, host, pid, cores, device, runtime, serves: _ } = info;
        wire::WorkerInfo { id: id.0, incarnation, host, pid, cores, device, runtime }
    }
}

impl TryFrom<wire::WorkerInfo> for status::WorkerInfo {
    type Error = WireError;

    fn try_from(info: wire::WorkerInfo) -> Result<Self, WireError> {
        let wire::WorkerInfo { id, incarnation, host, pid, cores, device, runtime } = info;
        if id.is_empty() {
            return Err(WireError::Missing("WorkerInfo.id"));
        }
        let texts = [
            ("WorkerInfo.id", &id),
            ("WorkerInfo.host", &host),
            ("WorkerInfo.device", &device),
            ("WorkerInfo.runtime", &runtime),
        ];
        for ((field, text), most) in texts.into_iter().zip(limits::MAX_INFO_BYTES) {
            name(field, text, most)?;
        }
        Ok(status::WorkerInfo {
            id: WorkerId(id),
            incarnation,
            host,
            pid,
            cores,
            device,
            runtime,
            serves: None,
        })
    }
}

/// The wire form of a phase, and the message that goes with a failure.
pub fn phase_to_wire(phase: status::Phase) -> (wire::Phase, String) {
    match phase {
        status::Phase::Idle => (wire::Phase::Idle, String::new()),
        status::Phase::Preparing => (wire::Phase::Preparing, String::new()),
        status::Phase::Running => (wire::Phase::Running, String::new()),
        status::Phase::Done => (wire::Phase::Done, String::new()),
        status::Phase::Failed { message, .. } => (wire::Phase::Failed, message),
    }
}

fn fault_to_wire(phase: &status::Phase) -> wire::Fault {
    match phase {
        status::Phase::Failed { fault: status::Fault::Own, .. } => wire::Fault::Own,
        status::Phase::Failed { fault: status::Fault::Peer, .. } => wire::Fault::Peer,
        status::Phase::Failed { fault: status::Fault::Leaving, .. } => wire::Fault::Leaving,
        status::Phase::Failed { fault: status::Fault::Device, .. } => wire::Fault::Device,
        status::Phase::Failed { fault: status::Fault::Checkpoint, .. } => wire::Fault::Checkpoint,
        status::Phase::Failed { fault: status::Fault::Path { .. }, .. } => wire::Fault::Path,
        _ => wire::Fault::Unspecified,
    }
}

fn unreachable_to_wire(phase: &status::Phase) -> Option<u32> {
    match phase {
        status::Phase::Failed { fault: status::Fault::Path { peer }, .. } => Some(peer.0),
        _ => None,
    }
}

fn fault_from_wire(fault: i32, unreachable: Option<u32>) -> Result<status::Fault, WireError> {
    match wire::Fault::try_from(fault) {
        Ok(wire::Fault::Own | wire::Fault::Unspecified) => Ok(status::Fault::Own),
        Ok(wire::Fault::Peer) => Ok(status::Fault::Peer),
        Ok(wire::Fault::Leaving) => Ok(status::Fault::Leaving),
        Ok(wire::Fault::Device) => Ok(status::Fault::Device),
        Ok(wire::Fault::Checkpoint) => Ok(status::Fault::Checkpoint),
        Ok(wire::Fault::Path) => match unreachable {
            Some(peer) => Ok(status::Fault::Path { peer: Rank(peer) }),
            None => Err(WireError::Missing("WorkerStatus.unreachable")),
        },
        Err(_) => Err(WireError::Unknown { field: "WorkerStatus.fault", found: fault }),
    }
}

fn phase_from_wire(
    phase: i32,
    message: String,
    (fault, unreachable): (i32, Option<u32>),
) -> Result<status::Phase, WireError> {
    let field = "WorkerStatus.phase";
    match wire::Phase::try_from(phase) {
        Ok(wire::Phase::Idle) => Ok(status::Phase::Idle),
        Ok(wire::Phase::Preparing) => Ok(status::Phase::Preparing),
        Ok(wire::Phase::Running) => Ok(status::Phase::Running),
        Ok(wire::Phase::Done) => Ok(status::Phase::Done),
        Ok(wire::Phase::Failed) => {
            Ok(status::Phase::Failed { message, fault: fault_from_wire(fault, unreachable)? })
        }
        Ok(wire::Phase::Unspecified) => Err(WireError::Missing(field)),
        Err(_) => Err(WireError::Unknown { field, found: phase }),
    }
}

impl From<status::WorkerStatus> for wire::WorkerStatus {
    fn from(status: status::WorkerStatus) -> Self {
        let unreachable = unreachable_to_wire(&status.phase);
        let fault = fault_to_wire(&status.phase).into();
        let (phase, failure) = phase_to_wire(status.phase);
        wire::WorkerStatus {
            fault,
            info: Some(status.info.into()),
            generation: status.generation.0,
            assignment_digest: status.assignment_digest,
            phase: phase.into(),
            failure: cut(failure),
            step: status.step.0,
            reports: fitting(status.reports).map(Into::into).collect(),
            saved: status.saved.map(Into::into),
            published: status.published.map(Into::into),
            peak_tensor_bytes: status.peak_tensor_bytes,
            leaving: status.leaving.map(cut),
            activity: status.activity.map(Into::into),
            pace: status.pace.map(Into::into),
            begun: status.begun.map(Into::into),
            unreachable,
        }
    }
}

/// The oldest reports, as many as one message may carry the norms of, and always one. The others stay
/// with the worker until these are acknowledged.
fn fitting(reports: Vec<status::StepReport>) -> impl Iterator<Item = status::StepReport> {
    let mut norms = 0;
    reports
        .into_iter()
        .enumerate()
        .take_while(move |(n, report)| {
            norms += report.parameter_norms.len();
            *n == 0 || norms <= limits::MAX_STATUS_NORMS
        })
        .map(|(_, report)| report)
}

/// Refuses a text of more than so many bytes.
fn within(field: &'static str, text: &str, most: usize) -> Result<(), WireError> {
    let found = text.len();
    if found > most { Err(WireError::TooLong { field, found, most }) } else { Ok(()) }
}

/// A text of one line that a terminal may be shown.
///
/// # Errors
/// It is longer than `most` bytes, or has control characters.
pub fn name(field: &'static str, text: &str, most: usize) -> Result<(), WireError> {
    within(field, text, most)?;
    if text.contains(char::is_control) { Err(WireError::Control(field)) } else { Ok(()) }
}

/// The words of a worker, as many as are allowed.
fn cut(mut words: String) -> String {
    const MORE: &str = "…";
    if words.len() > limits::MAX_WORDS_BYTES {
        words.truncate(words.floor_char_boundary(limits::MAX_WORDS_BYTES - MORE.len()));
        words.push_str(MORE);
    }
    words
}

/// Whether all that a worker says in words is within its bounds.
fn check_words(status: &wire::WorkerStatus) -> Result<(), WireError> {
    let most = limits::MAX_WORDS_BYTES;
    within("WorkerStatus.failure", &status.failure, most)?;
    within("WorkerStatus.leaving", status.leaving.as_deref().unwrap_or_default(), most)?;
    if let Some(saved) = &status.saved {
        at_most("Saved.files", saved.files.len(), limits::MAX_SAVED_FILES)?;
        let [names, digests] = limits::MAX_SAVED_FILE_BYTES;
        for file in &saved.files {
            name("SavedFile.name", &file.name, names)?;
            name("SavedFile.digest", &file.digest, digests)?;
        }
    }
    if let Some(published) = &status.published {
        name("Published.digest", &published.digest, limits::MAX_SAVED_FILE_BYTES[1])?;
    }
    Ok(())
}

fn at_most(field: &'static str, found: usize, most: usize) -> Result<(), WireError> {
    if found > most { Err(WireError::TooMany { field, found, most }) } else { Ok(()) }
}

impl TryFrom<wire::WorkerStatus> for status::WorkerStatus {
    type Error = WireError;

    fn try_from(status: wire::WorkerStatus) -> Result<Self, WireError> {
        at_most("WorkerStatus.reports", status.reports.len(), limits::MAX_REPORTS)?;
        for report in &status.reports {
            let found = report.parameter_norms.len();
            at_most("StepReport.parameter_norms", found, limits::MAX_PARAMETER_NORMS)?;
        }
        check_words(&status)?;
        Ok(status::WorkerStatus {
            info: status.info.ok_or(WireError::Missing("WorkerStatus.info"))?.try_into()?,
            generation: Generation(status.generation),
            assignment_digest: status.assignment_digest,
            phase: phase_from_wire(status.phase, status.failure, (status.fault, status.unreachable))?,
            step: Step(status.step),
            reports: status.reports.into_iter().map(Into::into).collect(),
            saved: status.saved.map(TryInto::try_into).transpose()?,
            published: status.published.map(TryInto::try_into).transpose()?,
            peak_tensor_bytes: status.peak_tensor_bytes,
            leaving: status.leaving,
            activity: status.activity.map(TryInto::try_into).transpose()?,
            pace: status.pace.map(Into::into),
            begun: status.begun.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<status::Begun> for wire::Begun {
    fn from(begun: status::Begun) -> Self {
        let origin = match begun.origin {
            status::Origin::Initial => wire::Origin::Initial,
            status::Origin::Checkpoint => wire::Origin::Checkpoint,
            status::Origin::Memory => wire::Origin::Memory,
        };
        wire::Begun { step: begun.step.0, origin: origin.into() }
    }
}

impl TryFrom<wire::Begun> for status::Begun {
    type Error = WireError;

    fn try_from(begun: wire::Begun) -> Result<Self, WireError> {
        let field = "Begun.origin";
        let origin = match wire::Origin::try_from(begun.origin) {
            Ok(wire::Origin::Initial) => status::Origin::Initial,
            Ok(wire::Origin::Checkpoint) => status::Origin::Checkpoint,
            Ok(wire::Origin::Memory) => status::Origin::Memory,
            Ok(wire::Origin::Unspecified) => return Err(WireError::Missing(field)),
            Err(_) => return Err(WireError::Unknown { field, found: begun.origin }),
        };
        Ok(status::Begun { step: Step(begun.step), origin })
    }
}

impl From<status::StepReport> for wire::StepReport {
    fn from(report: status::StepReport) -> Self {
        let validation = report.validation.map(|h| wire::ValidationResult {
            loss: h.loss,
            bits_per_byte: h.bits_per_byte,
            accuracy: h.accuracy,
        });
        wire::StepReport {
            step: report.step,
            loss: report.loss,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            tokens: report.tokens,
            tokens_per_second: report.tokens_per_second,
            step_seconds: report.step_seconds,
            validation,
            skipped: report.skipped,
            loss_scale: report.loss_scale,
            parameter_norms: report.parameter_norms.into_iter().collect(),
        }
    }
}

/// Every report on the wire is one: its fields are plain numbers.
impl From<wire::StepReport> for status::StepReport {
    fn from(report: wire::StepReport) -> Self {
        let validation = report.validation.map(|h| status::ValidationResult {
            loss: h.loss,
            bits_per_byte: h.bits_per_byte,
            accuracy: h.accuracy,
        });
        status::StepReport {
            step: report.step,
            loss: report.loss,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            tokens: report.tokens,
            tokens_per_second: report.tokens_per_second,
            step_seconds: report.step_seconds,
            validation,
            skipped: report.skipped,
            loss_scale: report.loss_scale,
            parameter_norms: report.parameter_norms.into_iter().collect(),
        }
    }
}

fn files_to_wire(files: Vec<status::SavedFile>) -> Vec<wire::SavedFile> {
    let file = |f: status::SavedFile| wire::SavedFile { name: f.name, bytes: f.bytes, digest: f.digest };
    files.into_iter().map(file).collect()
}

fn files_from_wire(files: Vec<wire::SavedFile>) -> Result<Vec<status::SavedFile>, WireError> {
    let file = |f: wire::SavedFile| {
        if f.name.is_empty() {
            return Err(WireError::Missing("SavedFile.name"));
        }
        if f.digest.is_empty() {
            return Err(WireError::Missing("SavedFile.digest"));
        }
        Ok(status::SavedFile { name: f.name, bytes: f.bytes, digest: f.digest })
    };
    files.into_iter().map(file).collect()
}

impl From<status::Saved> for wire::Saved {
    fn from(saved: status::Saved) -> Self {
        wire::Saved { step: saved.step.0, files: files_to_wire(saved.files) }
    }
}

impl TryFrom<wire::Saved> for status::Saved {
    type Error = WireError;

    fn try_from(saved: wire::Saved) -> Result<Self, WireError> {
        Ok(status::Saved { step: Step(saved.step), files: files_from_wire(saved.files)? })
    }
}

impl From<status::Pace> for wire::Pace {
    fn from(pace: status::Pace) -> Self {
        wire::Pace { step: pace.step.0, busy_us: pace.busy_us }
    }
}

impl From<wire::Pace> for status::Pace {
    fn from(pace: wire::Pace) -> Self {
        status::Pace { step: Step(pace.step), busy_us: pace.busy_us }
    }
}

impl From<status::Publish> for wire::Publish {
    fn from(publish: status::Publish) -> Self {
        wire::Publish { step: publish.step.0, files: files_to_wire(publish.files) }
    }
}

impl TryFrom<wire::Publish> for status::Publish {
    type Error = WireError;

    fn try_from(publish: wire::Publish) -> Result<Self, WireError> {
        Ok(status::Publish { step: Step(publish.step), files: files_from_wire(publish.files)? })
    }
}

impl From<status::Published> for wire::Published {
    fn from(published: status::Published) -> Self {
        wire::Published { step: published.step.0, digest: published.digest }
    }
}

impl TryFrom<wire::Published> for status::Published {
    type Error = WireError;

    fn try_from(published: wire::Published) -> Result<Self, WireError> {
        if published.digest.is_empty() {
            return Err(WireError::Missing("Published.digest"));
        }
        Ok(status::Published { step: Step(published.step), digest: published.digest })
    }
}

impl From<status::Leave> for wire::Leave {
    fn from(leave: status::Leave) -> Self {
        let cause = match leave.cause {
            status::LeaveCause::Drained => wire::LeaveCause::Drained,
            status::LeaveCause::Dismissed => wire::LeaveCause::Dismissed,
            status::LeaveCause::Asked => wire::LeaveCause::Asked,
            status::LeaveCause::Refused => wire::LeaveCause::Refused,
        };
        wire::Leave { cause: cause.into(), reason: leave.reason }
    }
}

impl TryFrom<wire::Leave> for status::Leave {
    type Error = WireError;

    fn try_from(leave: wire::Leave) -> Result<Self, WireError> {
        let cause = match wire::LeaveCause::try_from(leave.cause) {
            Ok(wire::LeaveCause::Drained) => status::LeaveCause::Drained,
            Ok(wire::LeaveCause::Dismissed) => status::LeaveCause::Dismissed,
            Ok(wire::LeaveCause::Asked) => status::LeaveCause::Asked,
            Ok(wire::LeaveCause::Refused) => status::LeaveCause::Refused,
            Ok(wire::LeaveCause::Unspecified) => return Err(WireError::Missing("Leave.cause")),
            Err(_) => return Err(WireError::Unknown { field: "Leave.cause", found: leave.cause }),
        };
        Ok(status::Leave { cause, reason: leave.reason })
    }
}

impl From<status::DesiredState> for wire::DesiredState {
    fn from(desired: status::DesiredState) -> Self {
        wire::DesiredState {
            revision: desired.revision,
            generation: desired.generation.0,
            assignment_digest: desired.assignment_digest,
            assignment: desired.assignment,
            run_to: desired.run_to.0,
            save_after: desired.save_after.0,
            publish: desired.publish.map(Into::into),
            decided: desired.decided.0,
            acknowledged: desired.acknowledged.0,
            leave: desired.leave.map(Into::into),
        }
    }
}

impl TryFrom<wire::DesiredState> for status::DesiredState {
    type Error = WireError;

    fn try_from(desired: wire::DesiredState) -> Result<Self, WireError> {
        if desired.assignment.is_some() && desired.assignment_digest.is_none() {
            return Err(WireError::Missing("DesiredState.assignment_digest"));
        }
        Ok(status::DesiredState {
            revision: desired.revision,
            generation: Generation(desired.generation),
            assignment_digest: desired.assignment_digest,
            assignment: desired.assignment,
            run_to: Step(desired.run_to),
            save_after: Step(desired.save_after),
            publish: desired.publish.map(TryInto::try_into).transpose()?,
            decided: Step(desired.decided),
            acknowledged: Step(desired.acknowledged),
            leave: desired.leave.map(TryInto::try_into).transpose()?,
        })
    }
}
