//! The stream that a page follows, as server-sent events: `view` when what is shown has changed, `steps` with the steps
//! that a job took since the last ones, `over` when the stream has nothing more to say.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use coxswain_types::status::StepReport;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;

use super::routes::{AdminDesk, Asked, Unserved, ViewText, view_json};
use crate::auth::Caller;
use crate::handle::{JobNews, Watcher};
use crate::view::hub::Hub;

/// How often what is shown is looked at. A page is behind by no more than this and the time on the way.
const LOOK: Duration = Duration::from_millis(500);

/// A view of so many bytes takes one look; a larger one is looked at as much less often.
const LOOK_BYTES: usize = 256 << 10;

/// The most steps that are told at once. A page that misses some asks for the series again.
const MAX_STEPS: usize = 500;

/// Follows a job, or where none is named the one that is most worth it.
pub(super) async fn follow(
    State(desk): State<AdminDesk>,
    Extension(caller): Extension<Arc<Caller>>,
    Query(asked): Query<Asked>,
) -> Result<impl IntoResponse, Unserved> {
    let place = desk.streams.clone().try_acquire_owned().map_err(|_| {
        Unserved::new(StatusCode::SERVICE_UNAVAILABLE, "too many pages are followed; close some of them")
    })?;
    // A job that cannot be seen is refused here and not in the stream.
    let first = view_json(&desk.hub, &caller, &asked.job).await?;
    let (events, stream) = mpsc::channel(4);
    tokio::spawn(tell(desk.hub, caller, asked.job, first, events, place));
    Ok(Sse::new(ReceiverStream::new(stream)).keep_alive(KeepAlive::default()))
}

type EventSink = mpsc::Sender<Result<Event, Infallible>>;

/// Tells what changes until the reader is gone. A slow reader holds up its own stream.
async fn tell(
    hub: Arc<Hub>,
    caller: Arc<Caller>,
    job: String,
    first: ViewText,
    events: EventSink,
    _place: OwnedSemaphorePermit,
) {
    let mut told = String::new();
    // The job that is followed, and its steps until it is over.
    let mut watched: Option<(String, Option<Watcher>)> = None;
    let mut steps: Vec<StepReport> = Vec::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut next, mut rest) = (Some(first), 0);
    loop {
        let news = async {
            match &mut watched {
                Some((_, Some(watcher))) => watcher.next().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            news = news => {
                match news {
                    Some(JobNews::Report(report)) if steps.len() < MAX_STEPS => steps.push(report),
                    // Missed: the page sees the gap.
                    Some(JobNews::Report(_)) => steps.clear(),
                    Some(JobNews::Summary(_) | JobNews::Checkpoint(_)) => {}
                    None => watched = watched.take().map(|(job, _)| (job, None)),
                }
                continue;
            }
            _ = look.tick() => {}
            () = events.closed() => return,
        }
        if !steps.is_empty()
            && let Some((job, _)) = &watched
            && !send(&events, "steps", &steps_json(job, &steps)).await
        {
            return;
        }
        steps.clear();
        if rest > 0 {
            rest -= 1;
            continue;
        }
        let view = match next.take() {
            Some(view) => view,
            None => match view_json(&hub, &caller, &job).await {
                Ok(view) => view,
                Err(_) => {
                    send(&events, "over", "{}").await;
                    return;
                }
            },
        };
        let ViewText { json, job: shown } = view;
        rest = json.len() / LOOK_BYTES;
        if let Some(shown) = shown
            && watched.as_ref().is_none_or(|(job, _)| *job != shown)
        {
            let watcher = hub.handle().watch(&shown).await.ok().flatten();
            watched = Some((shown, watcher));
        }
        // The time alone is not a change.
        if same_but_time(&told, &json) {
            continue;
        }
        if !send(&events, "view", &json).await {
            return;
        }
        told = json;
    }
}

async fn send(events: &EventSink, kind: &str, data: &str) -> bool {
    events.send(Ok(Event::default().event(kind).data(data))).await.is_ok()
}

fn steps_json(job: &str, steps: &[StepReport]) -> String {
    serde_json::json!({ "job": job, "steps": steps }).to_string()
}

/// Whether two views say the same at different times.
fn same_but_time(one: &str, other: &str) -> bool {
    let behind = |view: &str| view.find("\"caller\"").map(|at| view[at..].to_owned());
    !one.is_empty() && behind(one) == behind(other)
}
