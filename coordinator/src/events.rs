//! `coxswain events`: what the journal says, as lines of JSON. From a coordinator, or from its folder while
//! none runs.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Context;
use coxswain_core::cluster::JobEvent;
use coxswain_proto::wire;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;

use crate::handle::Handle;
use crate::journal;
use crate::service::unknown;

/// The most events that are told of the past, the newest of them; some 200 bytes each.
const MAX_PAST: usize = 100_000;

/// How many of them are compared with what is told from then on. A follower holds no more.
const RECENT: usize = 1000;

/// An event as it is written out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Milliseconds since the epoch by the coordinator's clock; 0 where an older program wrote it.
    at_ms: u64,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    text: String,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

impl Line {
    pub(crate) fn new(at_ms: u64, event: JobEvent) -> Line {
        let JobEvent { kind, job, generation, worker, text, fields } = event;
        let (generation, worker) = (generation.map(|generation| generation.0), worker.map(|worker| worker.0));
        Line { at_ms, kind: kind.to_owned(), job, generation, worker, text, fields }
    }

    /// A line that came over the wire.
    pub(crate) fn received(event: wire::JobEvent) -> anyhow::Result<Line> {
        let wire::JobEvent { at_ms, kind, job, generation, worker, text, fields } = event;
        let fields = serde_json::from_str(&fields).context("the fields of an event")?;
        Ok(Line { at_ms, kind, job, generation, worker, text, fields })
    }

    /// Whether it is of interest to who asks for this job; an empty name is for all.
    fn is_of(&self, job: &str) -> bool {
        job.is_empty() || self.job.as_deref() == Some(job)
    }

    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self).context("an event as JSON")? + "\n")
    }
}

impl From<Line> for wire::JobEvent {
    fn from(line: Line) -> wire::JobEvent {
        let Line { at_ms, kind, job, generation, worker, text, fields } = line;
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

/// The newest events in a coordinator's folder, of one job or of all.
pub(crate) fn past(folder: &Path, job: &str) -> anyhow::Result<VecDeque<Line>> {
    let mut lines = VecDeque::new();
    journal::each(folder, |at_ms, entry| {
        let line = Line::new(at_ms, JobEvent::from(entry));
        if line.is_of(job) {
            lines.push_back(line);
        }
        if lines.len() > MAX_PAST {
            lines.pop_front();
        }
    })?;
    Ok(lines)
}

/// Tells what happened and, if it is asked for, what happens from now on.
pub(crate) async fn tell(
    handle: Handle,
    request: wire::EventsRequest,
    out: mpsc::Sender<Result<wire::JobEvent, Status>>,
) {
    let wire::EventsRequest { job, follow } = request;
    // Subscribed before the journal is read, so that nothing between the two is missed.
    let mut news = handle.job_events();
    let (folder, of) = (handle.folder().to_owned(), job.clone());
    let past = tokio::task::spawn_blocking(move || past(&folder, &of)).await;
    let past = match past.map_err(anyhow::Error::from).and_then(|past| past) {
        Ok(past) => past,
        Err(error) => {
            let _ = out.send(Err(Status::internal(format!("{error:#}")))).await;
            return;
        }
    };
    if past.is_empty() && !job.is_empty() && matches!(handle.get(&job).await, Ok(None)) {
        let _ = out.send(Err(unknown(&job))).await;
        return;
    }
    // What was read may have been heard of as well, for as long as reading took.
    let recent: Vec<Line> = past.iter().rev().take(RECENT).cloned().collect();
    for line in past {
        if out.send(Ok(line.into())).await.is_err() {
            return;
        }
    }
    if !follow {
        return;
    }
    loop {
        let heard = tokio::select! {
            heard = news.recv() => heard,
            // Whoever has gone holds nothing until the next event.
            () = out.closed() => return,
        };
        let line = match heard {
            Ok(line) => line,
            // Too slow for all of them: go on with the newest.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let told = recent.first().is_some_and(|last| line.at_ms <= last.at_ms) && recent.contains(&line);
        if line.is_of(&job) && !told && out.send(Ok(line.into())).await.is_err() {
            return;
        }
    }
}
