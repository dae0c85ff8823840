//! The two gRPC services: wire -> event -> wire. Nothing is decided here.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coxswain_core::cluster;
use coxswain_proto::{convert, limits, wire};
use coxswain_transport::tls::JoinToken;
use coxswain_transport::{access_server, cluster_server, jobs_server};
use coxswain_types::JobSpec;
use coxswain_types::ids::Generation;
use coxswain_types::status::{DesiredState, Leave, LeaveCause, WorkerStatus};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::access::{AccessService, Joining, Security};
use crate::auth::layer::Authorize;
use crate::auth::members::Membership;
use crate::auth::rates::{Rate, TokenBucket};
use crate::auth::streams::{StreamKind, Streams};
use crate::auth::tokens::Grant;
use crate::auth::{Caller, shown};
use crate::handle::{Ending, Handle, Request as Ask, Times};
use crate::job;
use crate::page::{PAGE_BYTES, page};
use crate::refusal::submit_status;
use crate::roots::Roots;
use crate::scoped::Scoped;
use crate::store::{RendezvousStore, StoreError};
use crate::tls::accept::{Door, connections};
use crate::tls::config::TlsFolder;
use crate::tls::gate::{Bounds, ConnectionGate};
use crate::view::hub::Hub;
use crate::views;
use crate::{actions, events};

// Both sides of the network must mean the same by a lease.
const _: () = assert!(cluster::LEASE_MS == limits::LEASE_MS);

/// The most calls at once on one connection; a worker has its stream and a few calls of the store.
const MAX_CALLS: u32 = 256;

/// How often a worker says how it is: a step of the smallest models takes milliseconds. One that says more is
/// read no faster; h2 ends a connection on which small frames pile up.
const STATUSES: Rate = Rate { per_s: 500.0, burst: 1000.0 };

/// How many submissions have their paths checked at once. It takes microseconds, but for ever on a file server that is
/// down: then these threads wait, and no others.
const MAX_LOOKS: usize = 8;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What makes a port secure.
pub(crate) struct Secure {
    tls: Arc<ServerConfig>,
    security: Arc<Security>,
}

impl Secure {
    /// With what `coxswain certs init` made, and what is remembered in the coordinator's `data_dir`, which
    /// has to be this process's alone.
    pub(crate) fn open(folder: TlsFolder, data_dir: &Path, joining: Joining) -> Result<Secure> {
        let tls = folder.server_config()?;
        let security = Security::open(folder.authority, data_dir, joining)?;
        Ok(Secure { tls, security: Arc::new(security) })
    }

    /// A join token.
    pub(crate) fn token(&self, grant: Grant) -> Result<JoinToken, Status> {
        self.security.token(grant)
    }

    #[cfg(test)]
    pub(crate) fn members(&self) -> &Arc<crate::auth::members::Membership> {
        &self.security.members
    }
}

/// Where calls come in.
pub(crate) struct Port {
    pub(crate) listener: TcpListener,
    pub(crate) access: Access,
    /// Where jobs read and write; anywhere where there are none.
    pub(crate) roots: Option<Roots>,
    /// What is shown of the cluster.
    pub(crate) hub: Arc<Hub>,
}

/// Who may use a port.
pub(crate) enum Access {
    /// Whoever reaches it may do everything.
    Open,
    /// The user who started this process, and root, may do everything.
    Owner,
    /// By certificates.
    Secure(Secure),
}

impl Access {
    /// The TLS of the port and those who may call, where it has certificates.
    pub(crate) fn tls(&self) -> Option<(&Arc<ServerConfig>, &Arc<Membership>)> {
        match self {
            Access::Secure(secure) => Some((&secure.tls, &secure.security.members)),
            Access::Open | Access::Owner => None,
        }
    }

    /// Of a port without certificates: a port of this machine is its owner's.
    pub(crate) fn without_certificates(listener: &TcpListener) -> Access {
        match listener.local_addr() {
            Ok(address) if address.ip().is_loopback() => Access::Owner,
            _ => Access::Open,
        }
    }
}

/// Serves all services on `port` until `end` is ready.
pub(crate) async fn serve_on(
    port: Port,
    handle: Handle,
    store: Arc<RendezvousStore>,
    end: impl Future<Output = ()>,
) -> Result<()> {
    let streams = Streams::default();
    let cluster = ClusterService {
        handle: handle.clone(),
        store,
        connections: AtomicU64::new(0),
        streams: streams.clone(),
    };
    let (door, security) = match port.access {
        Access::Open => (Door::Open, None),
        Access::Owner => (Door::Owner, None),
        Access::Secure(secure) => {
            (Door::Tls(secure.tls, secure.security.members.clone()), Some(secure.security))
        }
    };
    let incoming = connections(port.listener, door, ConnectionGate::new(Bounds::of_system()));
    let access = AccessService { security };
    let jobs = JobsService {
        handle: handle.clone(),
        hub: port.hub,
        streams,
        roots: port.roots.map(Arc::new),
        looks: Arc::new(Semaphore::new(MAX_LOOKS)),
    };
    let server = Server::builder()
        .layer(Authorize::new())
        .timeout(limits::RPC_DEADLINE)
        .http2_keepalive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(limits::KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_header_list_size(Some(limits::MAX_HEADER_BYTES))
        .add_service(cluster_server(cluster))
        .add_service(jobs_server(Scoped { jobs, handle }))
        .add_service(access_server(access))
        .serve_with_incoming(incoming);
    // Workers keep their streams open, so waiting for them to end would never end.
    tokio::select! {
        served = server => served.context("the coordinator's port failed"),
        () = end => Ok(()),
    }
}

/// Listens on `address`.
///
/// # Errors
/// The address cannot be had, or other machines can reach it and `reachable` does not allow that.
pub(crate) async fn listen(address: &str, reachable: bool) -> Result<TcpListener> {
    let mut addresses = tokio::net::lookup_host(address)
        .await
        .with_context(|| format!("--listen {address} cannot be resolved; write it as HOST:PORT"))?;
    let address: SocketAddr =
        addresses.next().with_context(|| format!("--listen {address} resolves to no address"))?;
    if !address.ip().is_loopback() && !reachable {
        anyhow::bail!(
            "--listen {address} can be reached from other machines, and calls are neither encrypted nor \
             authenticated: whoever reaches the port can read and stop every run. Make certificates by \
             `coxswain certs init --host NAME` and name them by --tls-dir; or listen on 127.0.0.1; or say \
             --insecure-network where only trusted machines reach it"
        );
    }
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

struct ClusterService {
    handle: Handle,
    store: Arc<RendezvousStore>,
    /// Streams ever opened; each has a number of its own.
    connections: AtomicU64,
    streams: Streams,
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for ClusterService {
    type SyncStream = Replies<wire::DesiredState>;

    async fn register(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterReply>, Status> {
        let worker = &request.get_ref().worker;
        bounded("worker", worker, limits::MAX_INFO_BYTES[0])?;
        if let Some(why) = Caller::of(&request).not_worker(worker) {
            return Err(Status::permission_denied(why));
        }
        let incarnation = self.handle.register().await.map_err(ending)?;
        Ok(Response::new(wire::RegisterReply { incarnation }))
    }

    async fn sync(
        &self,
        request: Request<Streaming<wire::WorkerStatus>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let caller = Caller::of(&request);
        let place = self.streams.enter(&caller, StreamKind::Sync)?;
        let (desired, changes) = watch::channel(DesiredState::default());
        let statuses = request.into_inner();
        let listening = listen_to(connection, caller.clone(), statuses, self.handle.clone(), desired);
        tokio::spawn(async move {
            listening.await;
            drop(place);
        });
        let replies = WatchStream::from_changes(changes)
            .map(move |desired| caller.assigned(&desired).map(|()| desired.into()));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn store_set(
        &self,
        request: Request<wire::StoreSetRequest>,
    ) -> Result<Response<wire::StoreSetReply>, Status> {
        Caller::of(&request).job(&request.get_ref().job)?;
        let wire::StoreSetRequest { job, generation, key, value } = request.into_inner();
        self.store.set(&job, Generation(generation), &key, &value).map_err(store_status)?;
        Ok(Response::new(wire::StoreSetReply {}))
    }

    async fn store_get(
        &self,
        request: Request<wire::StoreGetRequest>,
    ) -> Result<Response<wire::StoreGetReply>, Status> {
        Caller::of(&request).job(&request.get_ref().job)?;
        let wire::StoreGetRequest { job, generation, key, wait_ms } = request.into_inner();
        let wait = Duration::from_millis(wait_ms);
        let value = self.store.get(&job, Generation(generation), &key, wait).await.map_err(store_status)?;
        Ok(Response::new(wire::StoreGetReply { found: value.is_some(), value: value.unwrap_or_default() }))
    }
}

/// Passes on what a worker says, and the end of its stream.
async fn listen_to(
    connection: u64,
    caller: Caller,
    mut statuses: Streaming<wire::WorkerStatus>,
    handle: Handle,
    desired: watch::Sender<DesiredState>,
) {
    // Who speaks here, once they have said so.
    let mut speaker = None;
    let mut bucket = TokenBucket::new(STATUSES, Instant::now());
    // A stream that says nothing is not a worker; one that fell silent loses its lease in the core.
    let mut patience = limits::RPC_DEADLINE;
    let why = loop {
        let message = match timeout(patience, statuses.message()).await {
            Err(_) if speaker.is_none() => return,
            Err(_) => continue,
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => break "its connection closed".to_owned(),
            Ok(Err(error)) => {
                tracing::debug!("a worker's stream broke: {error}");
                break "its connection closed".to_owned();
            }
        };
        let mut status = match WorkerStatus::try_from(message) {
            Ok(status) => status,
            Err(error) => {
                let why = format!("it sent an invalid status ({error})");
                if speaker.is_none() {
                    tracing::warn!("a worker is sent away: {why}");
                }
                break why;
            }
        };
        let worker = (status.info.id.clone(), status.info.incarnation);
        if speaker.as_ref().is_some_and(|speaker| *speaker != worker) {
            break "it changed its name".to_owned();
        }
        if let Some(why) = caller.not_worker(&worker.0.0) {
            let leave = Some(Leave { cause: LeaveCause::Refused, reason: why });
            desired.send_replace(DesiredState { leave, ..DesiredState::default() });
            return;
        }
        status.info.serves = caller.serves();
        speaker = Some(worker);
        patience = Duration::from_millis(limits::LEASE_MS);
        let seen = Ask::Seen { connection, status: Box::new(status), desired: desired.clone() };
        if handle.send(seen).await.is_err() {
            return;
        }
        // Whoever was sent away has nothing more to say here.
        if desired.receiver_count() == 0 || desired.borrow().leave.is_some() {
            break "its connection closed".to_owned();
        }
        sleep(bucket.pace(Instant::now())).await;
    };
    if let Some((worker, incarnation)) = speaker {
        let _ = handle.send(Ask::Closed { connection, worker, incarnation, why }).await;
    }
}

struct JobsService {
    handle: Handle,
    hub: Arc<Hub>,
    streams: Streams,
    /// Where jobs read and write.
    roots: Option<Arc<Roots>>,
    /// Turns of those who look where paths lead.
    looks: Arc<Semaphore>,
}

impl JobsService {
    /// The job, if it reads and writes below the roots.
    async fn below_roots(&self, spec: JobSpec, directory: PathBuf) -> Result<(JobSpec, String), Status> {
        let roots = self.roots.clone();
        let turn = self.looks.clone().acquire_owned().await.map_err(|_| ending(Ending))?;
        let check = move || {
            // The caller may be gone before the file system answers.
            let _turn = turn;
            if let Some(roots) = roots {
                roots.check(&spec, &directory).map_err(|error| error.to_string())?;
            }
            let directory = directory.into_os_string().into_string();
            directory
                .map(|directory| (spec, directory))
                .map_err(|path| format!("{}: not UTF-8", path.display()))
        };
        let checked = tokio::task::spawn_blocking(check).await;
        checked.map_err(|error| Status::internal(error.to_string()))?.map_err(Status::invalid_argument)
    }
}

#[tonic::async_trait]
impl wire::jobs_server::Jobs for JobsService {
    type WatchStream = Replies<wire::JobUpdate>;
    type EventsStream = Replies<wire::JobEvent>;

    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitReply>, Status> {
        let caller = Caller::of(&request);
        let wire::SubmitRequest { manifest, origin, base, directory, sets, folder, chosen } =
            request.into_inner();
        let paths = [
            ("the job file's name", &origin),
            ("the job file's folder", &base),
            ("directory", &directory),
            ("the caller's folder", &folder),
        ];
        for (what, path) in paths {
            bounded(what, path, limits::MAX_PATH_BYTES)?;
        }
        bounded("the reason of the layout", &chosen, limits::MAX_PATH_BYTES)?;
        let chosen = Some(chosen).filter(|reason| !reason.is_empty());
        let base = self.roots.as_ref().map_or(Path::new(&base), |roots| roots.base());
        let spec = job::parse(&manifest, &origin, base, &sets);
        let spec = spec.map_err(|refusal| refusal.status(Code::InvalidArgument))?;
        caller.submits(&spec.name)?;
        let directory = match &self.roots {
            Some(roots) => roots.run(&directory),
            None => Path::new(&folder).join(&directory),
        };
        if !directory.is_absolute() {
            return Err(Status::invalid_argument(format!(
                "directory: `{}` is not an absolute path; coordinator and workers must all see the folder under the \
                 same one",
                directory.display()
            )));
        }
        let (spec, directory) = self.below_roots(spec, directory).await?;
        let submitted = self.handle.submit(spec, directory, chosen).await.map_err(ending)?;
        let job = submitted.map_err(|error| submit_status(&error))?;
        Ok(Response::new(wire::SubmitReply { job }))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::JobSummary>, Status> {
        Caller::of(&request).job(&request.get_ref().job)?;
        let wire::GetRequest { job } = request.into_inner();
        let summary = self.handle.get(&job).await.map_err(ending)?.ok_or_else(|| unknown(&job))?;
        Ok(Response::new(views::job_to_wire(summary, Times::default())))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListReply>, Status> {
        let caller = Caller::of(&request);
        for (what, text) in
            [("after_job", &request.get_ref().after_job), ("after_worker", &request.get_ref().after_worker)]
        {
            bounded(what, text, limits::MAX_INFO_BYTES[0])?;
        }
        let (jobs, workers) = self.handle.list().await.map_err(ending)?;
        let jobs = jobs.into_iter().filter(|(job, _)| caller.sees(&job.job));
        // Idle workers are everybody's.
        let workers =
            workers.into_iter().filter(|worker| worker.job.as_ref().is_none_or(|job| caller.sees(job)));
        let jobs = jobs.map(|(job, times)| views::job_to_wire(job, times));
        Ok(Response::new(page(jobs, workers.map(views::worker_to_wire), request.get_ref(), PAGE_BYTES)))
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelReply>, Status> {
        let caller = Caller::of(&request);
        actions::cancel(&self.handle, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainReply>, Status> {
        let caller = Caller::of(&request);
        actions::drain(&self.handle, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainReply>, Status> {
        Caller::of(&request).job(&request.get_ref().job)?;
        let wire::ExplainRequest { job } = request.into_inner();
        let text = self.handle.explain(&job).await.map_err(ending)?.ok_or_else(|| unknown(&job))?;
        Ok(Response::new(wire::ExplainReply { text }))
    }

    async fn view(&self, request: Request<wire::ViewRequest>) -> Result<Response<wire::ViewReply>, Status> {
        let caller = Caller::of(&request);
        let wire::ViewRequest { job } = request.into_inner();
        if !job.is_empty() {
            caller.job(&job)?;
        }
        let view = self.hub.view(&caller, &job).await.map_err(ending)?.ok_or_else(|| unknown(&job))?;
        let json = serde_json::to_string(&view).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(wire::ViewReply { json }))
    }

    async fn events(
        &self,
        request: Request<wire::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let caller = Caller::of(&request);
        match request.get_ref().job.as_str() {
            "" => caller.all_jobs("the journal of all jobs")?,
            job => caller.job(job)?,
        }
        let place = self.streams.enter(&caller, StreamKind::Follow)?;
        // One event on its way: a slow reader holds up its own stream.
        let (sender, events) = tokio::sync::mpsc::channel(1);
        let telling = events::tell(self.handle.clone(), request.into_inner(), sender);
        tokio::spawn(async move {
            telling.await;
            drop(place);
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(events))))
    }

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        caller.job(&request.get_ref().job)?;
        let place = self.streams.enter(&caller, StreamKind::Follow)?;
        let wire::WatchRequest { job } = request.into_inner();
        let mut watcher = self.handle.watch(&job).await.map_err(ending)?.ok_or_else(|| unknown(&job))?;
        // One event on its way: a slow reader holds up its own watcher, which then skips reports.
        let (sender, events) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _place = place;
            loop {
                let news = tokio::select! {
                    news = watcher.next() => news,
                    // Whoever has gone holds nothing until the next step.
                    () = sender.closed() => None,
                };
                let Some(news) = news else { return };
                if sender.send(Ok(views::news_to_wire(news))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(events))))
    }
}

/// A caller's text that is kept and shown to others: one line of at most so many bytes.
pub(crate) fn bounded(what: &'static str, text: &str, most: usize) -> Result<(), Status> {
    convert::name(what, text, most).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn store_status(error: StoreError) -> Status {
    match error {
        StoreError::Superseded { .. } => Status::failed_precondition(error.to_string()),
        StoreError::TooMuch { .. } => Status::resource_exhausted(error.to_string()),
    }
}

/// The coordinator is about to end.
pub(crate) fn ending(error: Ending) -> Status {
    Status::unavailable(error.to_string())
}

/// The answer to a question about a job that is not known.
pub(crate) fn unknown(job: &str) -> Status {
    Status::not_found(format!("there is no job {}; `coxswain status` lists those that are known", shown(job)))
}
