//! What the journal says, as events for people and programs.

use coxswain_types::ids::{Generation, WorkerId};
use serde::Serialize;

use super::event::{Entry, Notice};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// What kind of thing, in one word.
    pub kind: &'static str,
    /// The job, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The generation, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The worker, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// What happened and why.
    pub text: String,
}

impl Happening {
    fn of_job(kind: &'static str, job: &str, generation: Option<Generation>, text: String) -> Happening {
        Happening { kind, job: Some(job.to_owned()), generation, worker: None, text }
    }
}

impl From<&Entry> for Happening {
    fn from(entry: &Entry) -> Happening {
        let of = Happening::of_job;
        match entry {
            Entry::Compacted { entries, .. } => {
                let text = format!("{entries} entries that no restart needs are here no more");
                Happening { kind: "compacted", job: None, generation: None, worker: None, text }
            }
            Entry::Started { epoch } => {
                let text = format!("the coordinator started, for time {epoch} on this journal");
                Happening { kind: "started", job: None, generation: None, worker: None, text }
            }
            Entry::Submitted(submission) => {
                of("submitted", &submission.job, None, format!("to run in {}", submission.directory))
            }
            Entry::Formed { job, generation, ranks, from, .. } => {
                let names: Vec<_> = ranks.iter().map(|rank| rank.worker.0.as_str()).collect();
                // A journal that was written shorter may not have them.
                let on = if names.is_empty() { String::new() } else { format!(" on {}", names.join(", ")) };
                let text = format!("runs from step {from}{on}");
                of("formed", job, Some(*generation), text)
            }
            Entry::Stopping { job, generation, reason, .. } => {
                of("stopping", job, Some(*generation), reason.clone())
            }
            Entry::Regrouped { job, generation, step, reason } => {
                of("regrouped", job, Some(*generation), format!("after step {step}: {reason}"))
            }
            Entry::Interrupted { job, generation, reason } => {
                of("interrupted", job, Some(*generation), reason.clone())
            }
            Entry::Committed { job, generation, step, files } => {
                let text = format!("the checkpoint of step {step}, {} files", files.len());
                of("committed", job, Some(*generation), text)
            }
            Entry::Published { job, checkpoint } => {
                of("published", job, None, format!("the checkpoint of step {} can be read", checkpoint.step))
            }
            Entry::Ended { job, ending, reason } => {
                of("ended", job, None, format!("{}: {reason}", format!("{ending:?}").to_lowercase()))
            }
            Entry::Drained { worker, reason, .. } => Happening {
                kind: "drained",
                job: None,
                generation: None,
                worker: Some(worker.clone()),
                text: reason.clone(),
            },
            Entry::Noted { kind, job, generation, worker, text } => Happening {
                kind: kind.name(),
                job: job.clone(),
                generation: *generation,
                worker: worker.clone(),
                text: text.clone(),
            },
        }
    }
}

/// What is noted that decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// A worker is here.
    Joined,
    /// A worker is gone.
    Gone,
    /// A rank waits for longer than it should.
    Hang,
    /// A rank computes for longer than its peers.
    Straggler,
    /// A straggler keeps up again.
    Recovered,
}

impl NoteKind {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            NoteKind::Joined => "joined",
            NoteKind::Gone => "gone",
            NoteKind::Hang => "hang",
            NoteKind::Straggler => "straggler",
            NoteKind::Recovered => "recovered",
        }
    }
}

impl Notice {
    /// As the journal has it.
    pub(super) fn noted(&self, kind: NoteKind) -> Entry {
        let Notice { job, generation, worker, text, .. } = self.clone();
        Entry::Noted { kind, job, generation, worker, text }
    }
}
