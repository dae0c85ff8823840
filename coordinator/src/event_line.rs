//! A journal event as it is printed and sent.

use anyhow::Context;
use coxswain_core::cluster::JobEvent;
use coxswain_proto::wire;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An event as it is written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EventLine {
    /// Milliseconds since the epoch by the coordinator's clock; 0 where an older program wrote it.
    pub(crate) at_ms: u64,
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<String>,
    pub(crate) text: String,
    #[serde(flatten)]
    pub(crate) fields: Map<String, Value>,
}

impl EventLine {
    pub(crate) fn new(at_ms: u64, event: JobEvent) -> EventLine {
        let JobEvent { kind, job, generation, worker, text, fields } = event;
        let (generation, worker) = (generation.map(|generation| generation.0), worker.map(|worker| worker.0));
        EventLine { at_ms, kind: kind.to_owned(), job, generation, worker, text, fields }
    }

    /// A line that came over the wire.
    pub(crate) fn received(event: wire::JobEvent) -> anyhow::Result<EventLine> {
        let wire::JobEvent { at_ms, kind, job, generation, worker, text, fields } = event;
        let fields = serde_json::from_str(&fields).context("the fields of an event")?;
        Ok(EventLine { at_ms, kind, job, generation, worker, text, fields })
    }

    /// Whether it is of interest to who asks for this job; an empty name is for all.
    pub(crate) fn is_of(&self, job: &str) -> bool {
        job.is_empty() || self.job.as_deref() == Some(job)
    }

    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self).context("an event as JSON")? + "\n")
    }
}

impl From<EventLine> for wire::JobEvent {
    fn from(line: EventLine) -> wire::JobEvent {
        let EventLine { at_ms, kind, job, generation, worker, text, fields } = line;
        wire::JobEvent {
            at_ms,
            kind,
            job,
            generation,
            worker,
            text,
            fields: Value::Object(fields).to_string(),
        }
    }
}
