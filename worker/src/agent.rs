//! The Sync loop: says how this worker is, hears what is wanted, and makes it so. While the coordinator
//! is away the engine goes on, for no step needs it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use coxswain_comm::DataPort;
use coxswain_comm::Links;
use coxswain_proto::limits::{HEARTBEAT_MS, MAX_REPORTS};
use coxswain_proto::wire;
use coxswain_proto::wire::cluster_client::ClusterClient;
use coxswain_transport::tls::enroll::may_pass;
use coxswain_types::ids::Rank as RankId;
use coxswain_types::status::{
    Activity, DesiredState, Fault, Leave, LeaveCause, Phase, Publish, Published, WorkerInfo, WorkerStatus,
};
use coxswain_types::{Assignment, Generation, Step};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::args::{BadArgument, Work};
use crate::identity::{Proof, RETRY};
use crate::machine;
use crate::rank::{Order, Rank, work};
use crate::state::Shared;
use crate::store::Rendezvous;

/// Statuses that may wait to be sent. The newest tells all, so a few are plenty.
const OUTBOX: usize = 4;
/// An engine that is told to end gets this many times its longest stretch of work without a check. It checks between
/// parts of a layer, and the next part may take longer than any before.
const ENGINE_END_STRETCHES: u32 = 4;
/// The lower bound of that time, for an engine still in its first action.
const ENGINE_END_MIN: Duration = Duration::from_secs(30);
/// The upper bound: beyond it the engine counts as hung, and the next generation is waiting.
const ENGINE_END_MAX: Duration = Duration::from_secs(600);
/// How long a process that ends waits for its engine: what that holds is memory only.
const EXIT_WAIT: Duration = Duration::from_secs(3);

/// Why this process ends, where nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is wanted no more: it was drained, or its coordinator's work is over.
    Finished,
    /// The coordinator does not take this process, or not any more.
    Refused,
    /// It was asked to stop.
    Asked(Stop),
}

impl End {
    /// The exit code: 0 only where nobody needs to start this worker again.
    pub(crate) fn code(self) -> u8 {
        match self {
            End::Finished => 0,
            // It has to join again, so it is to be started again.
            End::Asked(Stop::NotRenewed) => 1,
            End::Refused => 3,
            // As of a process that the signal ends.
            End::Asked(Stop::Interrupt) => 130,
            End::Asked(Stop::Terminate) => 143,
        }
    }
}

/// What asks this process to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A signal.
    Interrupt,
    /// A signal.
    Terminate,
    /// The coordinator does not renew its certificate any more.
    NotRenewed,
}

impl Stop {
    fn why(self) -> &'static str {
        match self {
            Stop::Interrupt => "it was interrupted (SIGINT)",
            Stop::Terminate => "it was asked to stop (SIGTERM)",
            Stop::NotRenewed => "its certificate is not renewed any more",
        }
    }
}

/// Works for the coordinator until told to leave, asked to stop, or the coordinator stays away.
pub(crate) fn run(work: &Work) -> Result<End> {
    if work.tied {
        machine::end_with_stdin()?;
    }
    let info = machine::info(work.name.as_deref(), &work.device);
    // A coordinator would refuse it, each time that it comes.
    WorkerInfo::try_from(wire::WorkerInfo::from(info.clone())).map_err(|error| {
        BadArgument(format!("a coordinator refuses what this worker calls itself: {error}"))
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The engine's thread has the cores; control traffic needs one thread and one for publishing.
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the network runtime")?;
    let result = runtime.block_on(work_for(work, info));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn work_for(work: &Work, info: WorkerInfo) -> Result<End> {
    let (not_renewed, refused) = mpsc::channel(1);
    let mut signals = Signals::listen(refused)?;
    let proof = Proof::of(work).map_err(|error| BadArgument(format!("{error:#}")))?;
    // Before a token is used up.
    let port = proof.data_port(work).map_err(|error| BadArgument(format!("{error:#}")))?;
    let (identity, channel) = tokio::select! {
        reached = proof.reach(work, &info.id.0) => reached?,
        stop = signals.next() => return Ok(End::Asked(stop)),
    };
    identity.encrypt(&port, work)?;
    let keeping = identity.keep(channel.clone());
    let renewing = tokio::spawn(async move {
        if let Err(error) = keeping.await {
            tracing::error!("{error:#}; this process leaves, and joins again once it is started again");
            not_renewed.send(()).await.ok();
        }
    });
    let agent = Agent::new(info, work, port, coxswain_transport::cluster_client(channel))?;
    let result = stay(work, agent, signals).await;
    renewing.abort();
    result
}

/// Converses with the coordinator until one of them has enough, and looks for it while it is away.
async fn stay(work: &Work, mut agent: Agent, mut signals: Signals) -> Result<End> {
    // Since when there is no coordinator, and why.
    let mut lost: Option<(tokio::time::Instant, String)> = None;
    let patience = tokio::time::Instant::now() + Duration::from_secs(work.connect_timeout_s.into());
    loop {
        let why = match agent.converse(&mut signals).await? {
            Conversation::Over(end) => return agent.stop_engine().await.map(|()| end),
            Conversation::Refused(reason) | Conversation::Busy(reason) if agent.known => reason,
            Conversation::Busy(reason) if tokio::time::Instant::now() < patience => {
                tracing::warn!("the coordinator does not take this worker yet: {reason}");
                tokio::select! {
                    () = tokio::time::sleep(RETRY) => continue,
                    stop = signals.next() => return Ok(End::Asked(stop)),
                }
            }
            Conversation::Refused(reason) | Conversation::Busy(reason) => {
                bail!("the coordinator refused this worker: {reason}")
            }
            Conversation::Lost(reason) => {
                lost = None;
                reason
            }
        };
        let (since, why) = lost.get_or_insert_with(|| {
            if work.coordinator_timeout_s > 0 {
                let timeout_s = work.coordinator_timeout_s;
                tracing::warn!("lost the coordinator: {why}; going on without it for {timeout_s} s");
            }
            (tokio::time::Instant::now(), why)
        });
        if since.elapsed() >= Duration::from_secs(work.coordinator_timeout_s.into()) {
            let why = why.clone();
            return agent.abandon(&why).await;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            stop = signals.next() => return agent.stop_engine().await.map(|()| End::Asked(stop)),
        }
    }
}

/// What asks this process to stop.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// Has an item once the certificate is not renewed any more.
    not_renewed: mpsc::Receiver<()>,
}

impl Signals {
    fn listen(not_renewed: mpsc::Receiver<()>) -> Result<Signals> {
        let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        Ok(Signals { terminate, interrupt, not_renewed })
    }

    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.terminate.recv() => Stop::Terminate,
            // Without an item the channel has ended, since nothing is renewed.
            Some(()) = self.not_renewed.recv() => Stop::NotRenewed,
        }
    }
}

/// How a conversation with the coordinator ended.
enum Conversation {
    /// This worker shall end, or was asked to.
    Over(End),
    /// There was none.
    Refused(String),
    /// There was none, and there may be one soon.
    Busy(String),
    /// It broke off.
    Lost(String),
}

impl Conversation {
    /// There was none, for this reason.
    fn none(status: &tonic::Status) -> Conversation {
        let reason = status.message().to_owned();
        if may_pass(status) { Conversation::Busy(reason) } else { Conversation::Refused(reason) }
    }
}

struct Agent {
    info: WorkerInfo,
    client: ClusterClient<Channel>,
    port: Arc<DataPort>,
    generation: Generation,
    shared: Shared,
    assignment: Option<Assignment>,
    rank: Rank,
    publishing: Option<Step>,
    /// What follows an engine that was told to end.
    ending: Option<Ending>,
    /// The longest that an engine has worked without a look at what is wanted.
    longest: Duration,
    /// Whether a coordinator has taken this worker in.
    known: bool,
    /// Why this worker was asked to stop, and until when it waits for the end of a step.
    leaving: Option<(Stop, tokio::time::Instant)>,
    /// How long it does so.
    grace: Duration,
}

/// An engine was told to end. Heartbeats go on meanwhile.
struct Ending {
    /// What is wanted once it has.
    next: DesiredState,
    /// Until when it may take.
    until: tokio::time::Instant,
    limit: Duration,
}

/// How long an engine may take to end that has worked for `longest` without a look at what is wanted.
fn time_to_end(longest: Duration) -> Duration {
    longest.saturating_mul(ENGINE_END_STRETCHES).clamp(ENGINE_END_MIN, ENGINE_END_MAX)
}

impl Agent {
    /// One stream with the coordinator, to its end.
    async fn converse(&mut self, signals: &mut Signals) -> Result<Conversation> {
        if self.info.incarnation == 0 {
            let request = wire::RegisterRequest { worker: self.info.id.0.clone() };
            let registered = tokio::select! {
                registered = self.client.register(request) => registered,
                stop = signals.next() => return Ok(Conversation::Over(End::Asked(stop))),
            };
            match registered {
                Ok(reply) => {
                    self.info.incarnation = reply.into_inner().incarnation;
                    self.shared.lock().status.info = self.info.clone();
                }
                Err(status) => return Ok(Conversation::none(&status)),
            }
        }
        let (outbox, messages) = mpsc::channel(OUTBOX);
        outbox.send(self.message()).await.ok();
        let mut client = self.client.clone();
        let accepted = tokio::select! {
            accepted = client.sync(ReceiverStream::new(messages)) => accepted,
            stop = signals.next() => return Ok(Conversation::Over(End::Asked(stop))),
        };
        let mut inbox = match accepted {
            Ok(accepted) => accepted.into_inner(),
            Err(status) => return Ok(Conversation::none(&status)),
        };
        self.known = true;
        tracing::info!(worker = %self.info.id, "connected");
        let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
        loop {
            let shared = self.shared.clone();
            tokio::select! {
                message = inbox.message() => match message {
                    Ok(Some(desired)) => {
                        let desired = DesiredState::try_from(desired).context("a message of the coordinator")?;
                        if let Some(leave) = &desired.leave {
                            return Ok(Conversation::Over(self.sent_away(leave)));
                        }
                        self.obey(desired);
                    }
                    Ok(None) => return Ok(Conversation::Lost("it closed the connection".to_owned())),
                    Err(status) => return Ok(Conversation::Lost(status.message().to_owned())),
                },
                () = shared.changed() => {}
                _ = heartbeat.tick() => {}
                ended = self.engine_ended() => {
                    ended?;
                    if let Some(ending) = self.ending.take() {
                        self.obey(ending.next);
                    }
                }
                stop = signals.next() => match self.leaving {
                    None => {
                        let why = stop.why();
                        tracing::info!("{why}: leaving at the end of a step; another signal ends it at once");
                        self.leaving = Some((stop, tokio::time::Instant::now() + self.grace));
                    }
                    Some(_) => return Ok(self.say_goodbye(&outbox, stop, stop.why()).await),
                },
                stop = self.grace_is_over() => {
                    return Ok(self.say_goodbye(&outbox, stop, "its time to leave is over").await);
                }
            }
            if let Some((stop, _)) = self.leaving.filter(|_| self.assignment.is_none()) {
                tracing::info!("leaving: nothing is left to do");
                return Ok(Conversation::Over(End::Asked(stop)));
            }
            if let Some(message) = self.broke() {
                self.say_last(&outbox).await;
                bail!("{message}; this process ends, since its device or its memory may be broken");
            }
            // A full outbox is fine: the next message has all that this one would have said.
            outbox.try_send(self.message()).ok();
        }
    }

    fn new(
        info: WorkerInfo,
        work: &Work,
        port: Arc<DataPort>,
        client: ClusterClient<Channel>,
    ) -> Result<Agent> {
        let shared = Shared::new(WorkerStatus::idle(info.clone(), Generation(0)));
        let generation = Generation(0);
        Ok(Agent {
            info,
            client,
            port,
            generation,
            shared,
            assignment: None,
            rank: Rank::start()?,
            leaving: None,
            ending: None,
            longest: Duration::ZERO,
            grace: Duration::from_secs(work.grace_s.into()),
            publishing: None,
            known: false,
        })
    }

    fn message(&self) -> wire::WorkerStatus {
        let state = self.shared.lock();
        let (mut status, links) = (state.status.clone(), state.links.clone());
        drop(state);
        status.reports.truncate(MAX_REPORTS);
        status.leaving = self.leaving.map(|(stop, _)| stop.why().to_owned());
        status.activity = links.filter(|_| self.rank.is_busy()).map(|links| activity(&links));
        status.into()
    }

    /// Makes what is wanted so. Refusing an assignment is no error of the loop: it shows as a
    /// failed phase.
    fn obey(&mut self, desired: DesiredState) {
        if desired.generation < self.generation {
            tracing::debug!(generation = desired.generation.0, "ignored a directive of an older generation");
            return;
        }
        let held = self.shared.lock().status.assignment_digest.clone();
        if desired.assignment_digest != held {
            // The document comes with the answer to a status that does not name its digest.
            if desired.assignment_digest.is_some() && desired.assignment.is_none() {
                return;
            }
            if self.rank.is_busy() {
                return self.end_engine(desired);
            }
            // What was to follow the engine that has ended is out of date.
            self.ending = None;
            self.note_stretch();
            match (&desired.assignment_digest, &desired.assignment) {
                (Some(digest), Some(document)) => self.begin(&desired, digest, document),
                _ => {
                    self.generation = desired.generation;
                    self.assignment = None;
                    self.shared = Shared::new(WorkerStatus::idle(self.info.clone(), self.generation));
                }
            }
        }
        self.shared.directive(&desired);
        if let Some(publish) = desired.publish {
            self.publish(publish);
        }
    }

    fn begin(&mut self, desired: &DesiredState, digest: &str, document: &str) {
        self.generation = desired.generation;
        let mut status = WorkerStatus::idle(self.info.clone(), self.generation);
        status.assignment_digest = Some(digest.to_owned());
        status.phase = Phase::Preparing;
        self.shared = Shared::new(status);
        self.shared.directive(desired);
        if let Err(error) = self.start(digest, document) {
            let message = format!("{error:#}");
            self.shared.update(|state| state.status.phase = Phase::Failed { message, fault: Fault::Own });
        }
    }

    fn start(&mut self, digest: &str, document: &str) -> Result<()> {
        if blake3::hash(document.as_bytes()).to_hex().as_str() != digest {
            bail!("the assignment does not have the digest it came with");
        }
        let assignment: Assignment = serde_json::from_str(document).context("reading the assignment")?;
        let store = Rendezvous {
            runtime: tokio::runtime::Handle::current(),
            client: self.client.clone(),
            job: assignment.job.clone(),
            generation: assignment.generation,
            patience_ms: assignment.rendezvous_ms,
        };
        self.assignment = Some(assignment.clone());
        self.publishing = None;
        let (port, runtime) = (self.port.clone(), self.info.runtime.clone());
        let order = Order { assignment, store, port, runtime, shared: self.shared.clone() };
        self.rank.begin(Box::new(move |remains| work(order, remains)))
    }

    /// Publishes a manifest, once for each time it is wanted and not yet done.
    fn publish(&mut self, publish: Publish) {
        let Some(assignment) = self.assignment.clone() else { return };
        let done = self.shared.lock().status.published.as_ref().map(|published| published.step);
        if done >= Some(publish.step) || self.publishing == Some(publish.step) {
            return;
        }
        self.publishing = Some(publish.step);
        let (shared, runtime) = (self.shared.clone(), self.info.runtime.clone());
        tokio::task::spawn_blocking(move || {
            let step = publish.step;
            let span = tracing::info_span!(
                "publish",
                job = %assignment.job,
                generation = assignment.generation.0,
                rank = assignment.rank.0,
                step = step.0,
            );
            let _entered = span.enter();
            match publish_now(&assignment, &runtime, publish) {
                Ok(digest) => {
                    shared.update(|state| state.status.published = Some(Published { step, digest }))
                }
                Err(error) => shared.update(|state| {
                    let message = format!("publishing the checkpoint of step {step}: {error:#}");
                    tracing::error!("{message}");
                    state.status.phase = Phase::Failed { message, fault: Fault::Own };
                }),
            }
        });
    }

    /// Tells the engine to end, to make what is wanted so after it. The newest directive counts.
    fn end_engine(&mut self, next: DesiredState) {
        self.shared.dismiss();
        if let Some(ending) = &mut self.ending {
            ending.next = next;
            return;
        }
        self.note_stretch();
        let limit = time_to_end(self.longest);
        self.ending = Some(Ending { next, until: tokio::time::Instant::now() + limit, limit });
    }

    /// Remembers the longest stretch of work of this generation's engine.
    fn note_stretch(&mut self) {
        let stretch = self.shared.lock().links.as_ref().map_or(Duration::ZERO, Links::longest_stretch);
        self.longest = self.longest.max(stretch);
    }

    /// Ready once an engine that was told to end has done so. One that takes too long is an error.
    async fn engine_ended(&self) -> Result<()> {
        let Some(ending) = &self.ending else { return std::future::pending().await };
        if tokio::time::timeout_at(ending.until, self.rank.ended()).await.is_err() {
            let doing =
                self.shared.lock().links.as_ref().map_or("joining".to_owned(), |links| links.doing().what);
            bail!(
                "the engine was told to end and did not within {} s (it was at: {doing}); the process exits, \
                 because it cannot run another engine",
                ending.limit.as_secs()
            );
        }
        Ok(())
    }

    /// Ends the engine before this process ends.
    async fn stop_engine(&self) -> Result<()> {
        self.shared.dismiss();
        if tokio::time::timeout(EXIT_WAIT, self.rank.ended()).await.is_err() {
            bail!("the engine did not end within {} s", EXIT_WAIT.as_secs());
        }
        Ok(())
    }

    /// The coordinator is gone: the run ends here too.
    async fn abandon(self, why: &str) -> Result<End> {
        let stopped = self.stop_engine().await;
        let busy = if self.assignment.is_some() { "; its run ends here" } else { "" };
        let lost = anyhow!("lost the coordinator: {why}{busy}");
        stopped.and(Err(lost))
    }

    /// What this process ends as, which the coordinator sends away.
    fn sent_away(&self, leave: &Leave) -> End {
        let end = match (leave.cause, self.leaving) {
            (LeaveCause::Drained | LeaveCause::Dismissed, _) => End::Finished,
            (LeaveCause::Asked, Some((stop, _))) => End::Asked(stop),
            (LeaveCause::Asked, None) | (LeaveCause::Refused, _) => End::Refused,
        };
        match end {
            End::Refused => tracing::warn!("the coordinator refused this worker: {}", leave.reason),
            End::Finished | End::Asked(_) => tracing::info!("leaving: {}", leave.reason),
        }
        end
    }

    /// Ready once this worker has to leave whatever its run does.
    async fn grace_is_over(&self) -> Stop {
        match self.leaving {
            Some((stop, until)) => {
                tokio::time::sleep_until(until).await;
                stop
            }
            None => std::future::pending().await,
        }
    }

    /// Leaves in the middle of a step: says so, that the coordinator can name the reason.
    async fn say_goodbye(
        &self,
        outbox: &mpsc::Sender<wire::WorkerStatus>,
        stop: Stop,
        why: &str,
    ) -> Conversation {
        tracing::info!("leaving: {why}");
        if self.assignment.is_some() {
            self.shared.lock().status.phase =
                Phase::Failed { message: why.to_owned(), fault: Fault::Leaving };
            self.say_last(outbox).await;
        }
        Conversation::Over(End::Asked(stop))
    }

    /// Says how this worker is before its process ends.
    async fn say_last(&self, outbox: &mpsc::Sender<wire::WorkerStatus>) {
        outbox.send(self.message()).await.ok();
        // The stream is flushed by its own task; closing it at once would cut the message off.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// What libtorch failed with, if it did.
    fn broke(&self) -> Option<String> {
        match &self.shared.lock().status.phase {
            Phase::Failed { message, fault: Fault::Device } => Some(message.clone()),
            _ => None,
        }
    }
}

/// What the engine behind `links` does now.
fn activity(links: &Links) -> Activity {
    let doing = links.doing();
    Activity {
        step: Step(doing.step),
        doing: doing.what,
        for_ms: u64::try_from(doing.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        waits_for: links.waits_for().map(RankId),
        last: doing.last,
        still_ms: u64::try_from(links.still_for().as_millis()).unwrap_or(u64::MAX),
    }
}

fn publish_now(assignment: &Assignment, runtime: &str, publish: Publish) -> Result<String> {
    let directory = PathBuf::from(&assignment.directory);
    let folder = coxswain_files::folders::step_folder(&directory, publish.step.0);
    let header = coxswain_engine::checkpoint::header(assignment, runtime, publish.step);
    let digest = coxswain_files::publish(&folder, &publish.files, header)?;
    tracing::info!(folder = %folder.display(), "checkpoint published");
    Ok(digest)
}

#[cfg(test)]
mod tests;
