//! `coxswain events`: what the journal says, as lines of JSON. From a coordinator, or from its folder while
//! none runs.

use std::collections::VecDeque;
use std::path::Path;

use coxswain_core::cluster::JobEvent;
use coxswain_proto::wire;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tonic::Status;

use crate::event_line::EventLine;
use crate::handle::Handle;
use crate::journal;
use crate::service::unknown;

/// The most events that are told of the past, the newest of them; some 200 bytes each.
const MAX_PAST: usize = 100_000;

/// How many of them are compared with what is told from then on. A follower holds no more.
const RECENT: usize = 1000;

/// The newest events in a coordinator's folder, of one job or of all.
pub(crate) fn past(folder: &Path, job: &str) -> anyhow::Result<VecDeque<EventLine>> {
    let mut lines = VecDeque::new();
    journal::each(folder, |at_ms, entry| {
        let line = EventLine::new(at_ms, JobEvent::from(entry));
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
    let recent: Vec<EventLine> = past.iter().rev().take(RECENT).cloned().collect();
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
