//! What the journal says, as events for people and programs.

use coxswain_types::ids::{Generation, WorkerId};
use coxswain_types::status::{Begun, Origin};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::entry::{Entry, FormedRank};
use crate::plan::KEEPS_UP;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobEvent {
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
    /// The same in values.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl JobEvent {
    fn of_job(kind: &'static str, job: &str, generation: Option<Generation>, text: String) -> JobEvent {
        JobEvent { kind, job: Some(job.to_owned()), generation, worker: None, text, fields: Map::new() }
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> JobEvent {
        self.fields.insert(name.to_owned(), value.into());
        self
    }
}

/// Where a generation goes on, and what that costs.
pub(super) fn begun_text(begun: Begun, again: u64) -> String {
    let step = begun.step;
    let from = match begun.origin {
        Origin::Memory => format!("goes on from memory after step {step}"),
        Origin::Checkpoint => format!("goes on from the checkpoint of step {step}"),
        Origin::Initial => "goes on from the start".to_owned(),
    };
    match again {
        0 => format!("{from}; no step is taken again"),
        1 => format!("{from}; 1 step is taken again"),
        again => format!("{from}; {again} steps are taken again"),
    }
}

fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Initial => "initial",
        Origin::Checkpoint => "checkpoint",
        Origin::Memory => "memory",
    }
}

fn rank_value(rank: &FormedRank) -> Value {
    let mut value = json!({"worker": rank.worker.0, "stage": rank.stage, "host": rank.host, "pid": rank.pid});
    // Its share of the work is as much smaller.
    if rank.slow_percent > KEEPS_UP {
        value["slow_percent"] = rank.slow_percent.into();
    }
    value
}

impl From<&Entry> for JobEvent {
    fn from(entry: &Entry) -> JobEvent {
        let of = JobEvent::of_job;
        match entry {
            Entry::Compacted { entries, .. } => {
                let text = format!("removed {entries} entries that a restart does not need");
                let fields = Map::new();
                JobEvent { kind: "compacted", job: None, generation: None, worker: None, text, fields }
            }
            Entry::Started { epoch } => {
                let text = format!("the coordinator started, for time {epoch} on this journal");
                let fields = Map::new();
                JobEvent { kind: "started", job: None, generation: None, worker: None, text, fields }
            }
            Entry::Submitted(submission) => {
                let chosen =
                    submission.chosen.as_ref().map_or(String::new(), |why| format!("; layout chosen: {why}"));
                of("submitted", &submission.job, None, format!("to run in {}{chosen}", submission.directory))
                    .with("directory", submission.directory.clone())
            }
            Entry::Preparing { job, tries } => {
                let again = if *tries > 1 { format!(", try {tries}") } else { String::new() };
                of("preparing", job, None, format!("its data is made ready{again}")).with("tries", *tries)
            }
            Entry::Prepared { job } => of("prepared", job, None, "its data is ready".to_owned()),
            Entry::Formed { job, generation, ranks, from, .. } => {
                let names: Vec<_> = ranks.iter().map(|rank| rank.worker.0.as_str()).collect();
                // A journal that was written shorter may not have them.
                let on = if names.is_empty() { String::new() } else { format!(" on {}", names.join(", ")) };
                let text = format!("runs{on}");
                of("formed", job, Some(*generation), text)
                    .with("step", from.0)
                    .with("ranks", ranks.iter().map(rank_value).collect::<Vec<_>>())
            }
            Entry::Begun { job, generation, step, origin, again } => {
                let begun = Begun { step: *step, origin: *origin };
                of("begun", job, Some(*generation), begun_text(begun, *again))
                    .with("step", step.0)
                    .with("origin", origin_word(*origin))
                    .with("again", *again)
            }
            Entry::Stopping { job, generation, reason, .. } => {
                of("stopping", job, Some(*generation), reason.clone())
            }
            Entry::Saving { job, generation, after, .. } => of(
                "saving",
                job,
                Some(*generation),
                format!("after step {after}, since the newest checkpoint is old"),
            ),
            Entry::Cancelling { job, reason } => of("cancelling", job, None, reason.clone()),
            Entry::Regrouped { job, generation, step, reason } => {
                of("regrouped", job, Some(*generation), format!("after step {step}: {reason}"))
                    .with("step", step.0)
            }
            Entry::Interrupted { job, generation, reason } => {
                of("interrupted", job, Some(*generation), reason.clone())
            }
            Entry::Committed { job, generation, step, files } => {
                let text = format!("the checkpoint of step {step}, {} files", files.len());
                of("committed", job, Some(*generation), text).with("step", step.0)
            }
            Entry::Published { job, checkpoint } => {
                of("published", job, None, format!("the checkpoint of step {} can be read", checkpoint.step))
                    .with("step", checkpoint.step.0)
            }
            Entry::Ended { job, ending, reason } => {
                let ending = format!("{ending:?}").to_lowercase();
                of("ended", job, None, format!("{ending}: {reason}")).with("ending", ending)
            }
            Entry::Drained { worker, reason, .. } => JobEvent {
                kind: "drained",
                job: None,
                generation: None,
                worker: Some(worker.clone()),
                text: reason.clone(),
                fields: Map::new(),
            },
            Entry::Noted { kind, job, generation, worker, text } => JobEvent {
                kind: kind.name(),
                job: job.clone(),
                generation: *generation,
                worker: worker.clone(),
                text: text.clone(),
                fields: Map::new(),
            },
        }
    }
}
