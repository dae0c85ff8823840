//! The answers of the admin port.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use coxswain_console::printable;
use coxswain_core::spec::resolved_yaml;
use coxswain_proto::wire;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Status;

use super::guard::{Guard, guard, refusal};
use super::sessions::Sessions;
use super::{assets, prometheus, stream};
use crate::actions;
use crate::auth::Caller;
use crate::auth::scope::Scope;
use crate::handle::Ending;
use crate::view::hub::Hub;
use crate::view::runs;
use crate::worker_logs::last_lines;

/// The most bytes of a request's body: a name and a reason.
const MAX_BODY_BYTES: usize = 16 << 10;

/// The most pages that are followed at once, each a stream.
const MAX_STREAMS: usize = 128;

/// How many lines of a log are shown.
const LOG_LINES: usize = 200;

/// How long the driver may take to answer a coordinator that is ready. It answers in milliseconds.
const READY: Duration = Duration::from_secs(2);

/// What the answers are made from.
#[derive(Clone)]
pub(super) struct AdminDesk {
    pub(super) hub: Arc<Hub>,
    pub(super) streams: Arc<Semaphore>,
    sessions: Option<Sessions>,
}

/// All routes, behind the guard.
pub(super) fn routes(hub: Arc<Hub>, door: Guard) -> Router {
    let streams = Arc::new(Semaphore::new(MAX_STREAMS));
    let desk = AdminDesk { hub, streams, sessions: door.sessions.clone() };
    Router::new()
        .route("/", get(|| async { assets::html() }))
        .route("/page.css", get(|| async { assets::css() }))
        .route("/page.js", get(|| async { assets::js() }))
        .route("/parts.js", get(|| async { assets::parts() }))
        .route("/chart.js", get(|| async { assets::chart() }))
        .route("/icon.svg", get(|| async { assets::icon() }))
        .route("/favicon.ico", get(|| async { assets::icon() }))
        .route("/api/view", get(view))
        .route("/api/events", get(stream::follow))
        .route("/api/series", get(series))
        .route("/api/runs", get(siblings))
        .route("/api/job", get(job_text))
        .route("/api/log", get(log))
        .route("/api/login", post(login))
        .route("/api/cancel", post(cancel))
        .route("/api/drain", post(drain))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(door, guard))
        .with_state(desk)
}

/// Which job is asked about, and which run beside it or worker of it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    pub(super) job: String,
    #[serde(default)]
    run: String,
    #[serde(default)]
    worker: String,
}

/// Why there is no answer.
pub(super) struct Unserved(StatusCode, String);

impl Unserved {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Unserved {
        Unserved(status, why.into())
    }
}

impl IntoResponse for Unserved {
    fn into_response(self) -> Response {
        refusal(self.0, self.1)
    }
}

impl From<Ending> for Unserved {
    fn from(ending: Ending) -> Unserved {
        Unserved(StatusCode::SERVICE_UNAVAILABLE, ending.to_string())
    }
}

impl From<Status> for Unserved {
    fn from(status: Status) -> Unserved {
        use tonic::Code;
        let code = match status.code() {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Unserved(code, status.message().to_owned())
    }
}

pub(super) fn not_found(what: &str) -> Unserved {
    let what = crate::auth::shown(what);
    Unserved(StatusCode::NOT_FOUND, format!("there is no job {what}; / shows those that are known"))
}

/// Who asks, as [`guard`] has found.
type Asker = Extension<Arc<Caller>>;

/// A view as JSON, and the job that it shows in full.
pub(super) struct ViewText {
    pub(super) json: String,
    pub(super) job: Option<String>,
}

/// The view of a caller, without what the caller may not see.
pub(super) async fn view_json(hub: &Arc<Hub>, caller: &Caller, job: &str) -> Result<ViewText, Unserved> {
    if !job.is_empty() {
        caller.job(job)?;
    }
    let view = hub.view(caller, job).await?.ok_or_else(|| not_found(job))?;
    let json = fit(hub, caller, &view).await?;
    Ok(ViewText { json, job: view.detail.map(|detail| detail.job) })
}

/// An answer as JSON, without the names of jobs that the caller may not see.
async fn fit(hub: &Hub, caller: &Caller, answer: &impl Serialize) -> Result<String, Unserved> {
    let json = serde_json::to_string(answer);
    let mut json = json.map_err(|error| Unserved(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Scope::new(caller.clone(), hub.handle().clone()).hide(vec![&mut json]).await;
    Ok(json)
}

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn view(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Query(asked): Query<Asked>,
) -> Result<Response, Unserved> {
    Ok(json(view_json(&desk.hub, &caller, &asked.job).await?.json))
}

/// The folder of a job that the caller may see.
async fn directory(hub: &Hub, caller: &Caller, job: &str) -> Result<PathBuf, Unserved> {
    caller.job(job)?;
    let listing = hub.listing().await?;
    let found = listing.0.iter().find(|(summary, _)| summary.job == job);
    found.map(|(summary, _)| PathBuf::from(&summary.directory)).ok_or_else(|| not_found(job))
}

/// The folder that holds a job's run and those beside it. They may be of other jobs, so only those who may see all get
/// it.
async fn parent(hub: &Hub, caller: &Caller, job: &str) -> Result<PathBuf, Unserved> {
    caller.all_jobs("runs beside this one")?;
    let directory = directory(hub, caller, job).await?;
    let parent = directory.parent().map(Path::to_owned);
    parent.ok_or_else(|| Unserved(StatusCode::NOT_FOUND, "the run lies in no folder".to_owned()))
}

/// A run's numbers: of a job, or of a run beside it.
async fn series(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Query(asked): Query<Asked>,
) -> Result<Response, Unserved> {
    let folder = if asked.run.is_empty() {
        directory(&desk.hub, &caller, &asked.job).await?
    } else {
        let parent = parent(&desk.hub, &caller, &asked.job).await?;
        let found = read(&desk.hub, move || runs::folders(&parent).map(|runs| (parent, runs))).await?;
        let (parent, runs) = found;
        let named =
            runs.into_iter().find(|run| run.strip_prefix(&parent).ok() == Some(Path::new(&asked.run)));
        named.ok_or_else(|| {
            Unserved(StatusCode::NOT_FOUND, "there is no such run beside this one".to_owned())
        })?
    };
    let series = desk.hub.series(folder).await.ok_or(Ending)?;
    let series = series.map_err(unreadable)?;
    Ok(json(fit(&desk.hub, &caller, &series).await?))
}

/// The runs beside a job's.
async fn siblings(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Query(asked): Query<Asked>,
) -> Result<Response, Unserved> {
    let parent = parent(&desk.hub, &caller, &asked.job).await?;
    let rows = read(&desk.hub, move || runs::below(&parent)).await?;
    Ok(json(fit(&desk.hub, &caller, &rows).await?))
}

async fn read<T: Send + 'static>(
    hub: &Hub,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Unserved> {
    hub.reading(work).await.ok_or(Ending)?.map_err(unreadable)
}

fn unreadable(error: std::io::Error) -> Unserved {
    Unserved(StatusCode::SERVICE_UNAVAILABLE, format!("the run's folder cannot be read: {error}"))
}

/// A job with every value, as YAML.
async fn job_text(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Query(asked): Query<Asked>,
) -> Result<String, Unserved> {
    caller.job(&asked.job)?;
    let spec = desk.hub.handle().spec(&asked.job).await?.ok_or_else(|| not_found(&asked.job))?;
    resolved_yaml(&spec).map_err(|error| Unserved(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// The last lines that a worker wrote.
async fn log(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Query(asked): Query<Asked>,
) -> Result<String, Unserved> {
    let folder = directory(&desk.hub, &caller, &asked.job).await?;
    let lines = read(&desk.hub, move || last_lines(&folder, &asked.worker, LOG_LINES)).await?;
    let lines = lines.ok_or_else(|| {
        Unserved::new(
            StatusCode::NOT_FOUND,
            "the run keeps no log of this worker; it writes to its own stderr",
        )
    })?;
    let mut text = printable(&lines.join("\n")).into_owned();
    Scope::new((*caller).clone(), desk.hub.handle().clone()).hide(vec![&mut text]).await;
    Ok(text)
}

/// A viewer's token.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LoginAsked {
    token: String,
}

async fn login(State(desk): State<AdminDesk>, Json(asked): Json<LoginAsked>) -> Result<Response, Unserved> {
    let sessions = desk.sessions.ok_or_else(|| {
        Unserved::new(
            StatusCode::CONFLICT,
            "this port takes no tokens: it is for the user who started the coordinator",
        )
    })?;
    let opened = desk.hub.reading(move || sessions.open(&asked.token)).await.ok_or(Ending)?;
    let cookie = opened.map_err(|why| Unserved::new(StatusCode::UNAUTHORIZED, why))?;
    Ok(([(header::SET_COOKIE, cookie)], "welcome\n").into_response())
}

/// A job that is to be cancelled.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelAsked {
    job: String,
    #[serde(default)]
    now: bool,
}

async fn cancel(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Json(asked): Json<CancelAsked>,
) -> Result<String, Unserved> {
    let reason = "a user cancelled it on the page".to_owned();
    let request = wire::CancelRequest { job: asked.job, reason, now: asked.now };
    Ok(actions::cancel(desk.hub.handle(), &caller, request).await?.reason)
}

/// A worker that is to be drained.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainAsked {
    worker: String,
}

async fn drain(
    State(desk): State<AdminDesk>,
    Extension(caller): Asker,
    Json(asked): Json<DrainAsked>,
) -> Result<String, Unserved> {
    let reason = "a user drained it on the page".to_owned();
    let request = wire::DrainRequest { worker: asked.worker, reason };
    actions::drain(desk.hub.handle(), &caller, request).await?;
    Ok("it ends as soon as its place is empty".to_owned())
}

async fn metrics(State(desk): State<AdminDesk>, Extension(caller): Asker) -> Result<Response, Unserved> {
    let text = prometheus::text(&desk.hub, &caller).await?;
    Ok(([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text).into_response())
}

/// Whether the task that decides answers.
async fn ready(State(desk): State<AdminDesk>) -> Response {
    match timeout(READY, desk.hub.listing()).await {
        Ok(Ok(_)) => "ready\n".into_response(),
        Ok(Err(ending)) => refusal(StatusCode::SERVICE_UNAVAILABLE, ending.to_string()),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "the coordinator does not answer within 2 s"),
    }
}
