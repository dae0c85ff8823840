//! The Sync loop: says how this worker is, hears what is wanted, and makes it so. While the coordinator
//! is away the engine goes on, for no step needs it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use coxswain_comm::Links;
use coxswain_proto::limits::{HEARTBEAT_MS, MAX_REPORTS};
use coxswain_proto::wire;
use coxswain_proto::wire::cluster_client::ClusterClient;
use coxswain_types::ids::Rank as RankId;
use coxswain_types::status::{Activity, Desired, Fault, Phase, Publish, Published, WorkerInfo, WorkerStatus};
use coxswain_types::{Assignment, Generation, Step};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::args::Work;
use crate::identity::{Proof, RETRY};
use crate::machine;
use crate::rank::{Order, Rank};
use crate::state::Shared;
use crate::store::Rendezvous;

/// Statuses that may wait to be sent. The newest tells all, so a few are plenty.
const OUTBOX: usize = 4;
/// How long an aborted engine may take to end; it looks between two actions of a step. Past it the
/// process ends without waiting: what the engine holds is memory only. Below the lease, for no
/// heartbeat goes out meanwhile.
const ENGINE_END: Duration = Duration::from_secs(3);

/// Works for the coordinator until told to leave, asked to stop, or the coordinator stays away.
pub(crate) fn run(work: &Work) -> Result<()> {
    let info = machine::info(work.name.as_deref(), &work.device)?;
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

async fn work_for(work: &Work, info: WorkerInfo) -> Result<()> {
    let mut signals = Signals::listen()?;
    let proof = Proof::of(work)?;
    // Before a token is used up.
    proof.allows_tensors(work)?;
    let (identity, channel) = tokio::select! {
        reached = proof.reach(work, &info.id.0) => reached?,
        _ = signals.next() => return Ok(()),
    };
    let renewing = tokio::spawn(identity.keep(channel.clone()));
    let agent = Agent::new(info, work, coxswain_proto::cluster_client(channel))?;
    let result = stay(work, agent, signals).await;
    renewing.abort();
    result
}

/// Converses with the coordinator until one of them has enough, and looks for it while it is away.
async fn stay(work: &Work, mut agent: Agent, mut signals: Signals) -> Result<()> {
    // Since when there is no coordinator, and why.
    let mut lost: Option<(tokio::time::Instant, String)> = None;
    loop {
        let why = match agent.converse(&mut signals).await? {
            Conversation::Over => return agent.stop_engine().await,
            Conversation::Refused(reason) if agent.known => reason,
            Conversation::Refused(reason) => bail!("the coordinator refused this worker: {reason}"),
            Conversation::Lost(reason) => {
                lost = None;
                reason
            }
        };
        let (since, why) = lost.get_or_insert_with(|| {
            if work.orphan_s > 0 {
                tracing::warn!("lost the coordinator: {why}; going on without it for {} s", work.orphan_s);
            }
            (tokio::time::Instant::now(), why)
        });
        if since.elapsed() >= Duration::from_secs(work.orphan_s.into()) {
            let why = why.clone();
            return agent.abandon(&why).await;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            _ = signals.next() => return agent.stop_engine().await,
        }
    }
}

/// The signals that ask this process to stop.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Signals> {
        let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        Ok(Signals { terminate, interrupt })
    }

    /// What to say when one has come.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "it was interrupted (SIGINT)",
            _ = self.terminate.recv() => "it was asked to stop (SIGTERM)",
        }
    }
}

/// How a conversation with the coordinator ended.
enum Conversation {
    /// This worker shall end, or was asked to.
    Over,
    /// There was none.
    Refused(String),
    /// It broke off.
    Lost(String),
}

struct Agent {
    info: WorkerInfo,
    client: ClusterClient<Channel>,
    address: String,
    generation: Generation,
    shared: Shared,
    assignment: Option<Assignment>,
    rank: Rank,
    publishing: Option<Step>,
    /// Whether a coordinator has taken this worker in.
    known: bool,
    /// Why this worker was asked to stop, and until when it waits for the end of a step.
    leaving: Option<(&'static str, tokio::time::Instant)>,
    /// How long it does so.
    grace: Duration,
}

impl Agent {
    /// One stream with the coordinator, to its end.
    async fn converse(&mut self, signals: &mut Signals) -> Result<Conversation> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        outbox.send(self.message()).await.ok();
        let mut client = self.client.clone();
        let accepted = tokio::select! {
            accepted = client.sync(ReceiverStream::new(messages)) => accepted,
            _ = signals.next() => return Ok(Conversation::Over),
        };
        let mut inbox = match accepted {
            Ok(accepted) => accepted.into_inner(),
            Err(status) => return Ok(Conversation::Refused(status.message().to_owned())),
        };
        self.known = true;
        tracing::info!(worker = %self.info.id, "connected");
        let mut heartbeat = tokio::time::interval(Duration::from_millis(HEARTBEAT_MS));
        loop {
            let shared = self.shared.clone();
            tokio::select! {
                message = inbox.message() => match message {
                    Ok(Some(desired)) => {
                        let desired = Desired::try_from(desired).context("a message of the coordinator")?;
                        if let Some(reason) = &desired.leave {
                            tracing::info!("leaving: {reason}");
                            return Ok(Conversation::Over);
                        }
                        self.obey(desired).await?;
                    }
                    Ok(None) => return Ok(Conversation::Lost("it closed the connection".to_owned())),
                    Err(status) => return Ok(Conversation::Lost(status.message().to_owned())),
                },
                () = shared.changed() => {}
                _ = heartbeat.tick() => {}
                why = signals.next() => match self.leaving {
                    None => {
                        tracing::info!("{why}: leaving at the end of a step; another signal ends it at once");
                        self.leaving = Some((why, tokio::time::Instant::now() + self.grace));
                    }
                    Some(_) => return self.say_goodbye(&outbox, why).await,
                },
                () = self.grace_is_over() => return self.say_goodbye(&outbox, "its time to leave is over").await,
            }
            if self.leaving.is_some() && self.assignment.is_none() {
                tracing::info!("leaving: nothing is left to do");
                return Ok(Conversation::Over);
            }
            if let Some(message) = self.broke() {
                self.say_last(&outbox).await;
                bail!("{message}; this process ends, since its device or its memory may be broken");
            }
            // A full outbox is fine: the next message has all that this one would have said.
            outbox.try_send(self.message()).ok();
        }
    }

    fn new(info: WorkerInfo, work: &Work, client: ClusterClient<Channel>) -> Result<Agent> {
        let address = machine::address_towards(&work.coordinator)?.to_string();
        let shared = Shared::new(WorkerStatus::idle(info.clone(), Generation(0)));
        let generation = Generation(0);
        Ok(Agent {
            info,
            client,
            address,
            generation,
            shared,
            assignment: None,
            rank: Rank::start()?,
            leaving: None,
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
        status.leaving = self.leaving.map(|(why, _)| why.to_owned());
        status.activity = links.filter(|_| self.rank.is_busy()).map(|links| activity(&links));
        status.into()
    }

    /// Makes what is wanted so. Refusing an assignment is no error of the loop: it shows as a
    /// failed phase.
    async fn obey(&mut self, desired: Desired) -> Result<()> {
        if desired.generation < self.generation {
            tracing::debug!(generation = desired.generation.0, "a wish of an older generation is ignored");
            return Ok(());
        }
        let held = self.shared.lock().status.assignment_digest.clone();
        if desired.assignment_digest != held {
            match (&desired.assignment_digest, &desired.assignment) {
                (None, _) => {
                    self.stop_engine().await?;
                    self.generation = desired.generation;
                    self.assignment = None;
                    self.shared = Shared::new(WorkerStatus::idle(self.info.clone(), self.generation));
                }
                (Some(digest), Some(document)) => self.begin(&desired, digest, document).await?,
                // The document comes with the answer to a status that does not name its digest.
                (Some(_), None) => return Ok(()),
            }
        }
        self.shared.wish(&desired);
        if let Some(publish) = desired.publish {
            self.publish(publish);
        }
        Ok(())
    }

    async fn begin(&mut self, desired: &Desired, digest: &str, document: &str) -> Result<()> {
        self.stop_engine().await?;
        self.generation = desired.generation;
        let mut status = WorkerStatus::idle(self.info.clone(), self.generation);
        status.assignment_digest = Some(digest.to_owned());
        status.phase = Phase::Preparing;
        self.shared = Shared::new(status);
        self.shared.wish(desired);
        if let Err(error) = self.start(digest, document) {
            let message = format!("{error:#}");
            self.shared.update(|state| state.status.phase = Phase::Failed { message, fault: Fault::Own });
        }
        Ok(())
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
            patience_ms: assignment.forming_ms,
        };
        self.assignment = Some(assignment.clone());
        self.publishing = None;
        let (address, runtime) = (self.address.clone(), self.info.runtime.clone());
        self.rank.begin(Order { assignment, store, address, runtime, shared: self.shared.clone() })
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

    /// Ends the engine, if one runs.
    async fn stop_engine(&mut self) -> Result<()> {
        let end = tokio::time::Instant::now() + ENGINE_END;
        while self.rank.is_busy() {
            // The network may come about after the first try; aborting again costs nothing.
            let links = self.shared.lock().links.clone();
            if let Some(links) = links {
                links.abort();
            }
            if tokio::time::Instant::now() > end {
                bail!("the engine did not end within {} s", ENGINE_END.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// The coordinator is gone: the run ends here too.
    async fn abandon(mut self, why: &str) -> Result<()> {
        let stopped = self.stop_engine().await;
        let busy = if self.assignment.is_some() { "; its run ends here" } else { "" };
        let lost = anyhow!("lost the coordinator: {why}{busy}");
        stopped.and(Err(lost))
    }

    /// Ready once this worker has to leave whatever its run does.
    async fn grace_is_over(&self) {
        match self.leaving {
            Some((_, until)) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Leaves in the middle of a step: says so, that the coordinator can name the reason.
    async fn say_goodbye(
        &self,
        outbox: &mpsc::Sender<wire::WorkerStatus>,
        why: &str,
    ) -> Result<Conversation> {
        tracing::info!("leaving: {why}");
        if self.assignment.is_some() {
            self.shared.lock().status.phase =
                Phase::Failed { message: why.to_owned(), fault: Fault::Leaving };
            self.say_last(outbox).await;
        }
        Ok(Conversation::Over)
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
