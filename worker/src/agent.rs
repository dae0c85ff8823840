//! The worker's loop: it hands what happens to the agent's state machine and does what that decides. While the
//! coordinator is away the engine goes on, for no step needs it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coxswain_agent::{
    Agent, AgentAction, AgentError, AgentInput, AgentNotice, AgentSettings, CoordinatorNews, Departure,
    Publication,
};
use coxswain_comm::DataPort;
use coxswain_proto::limits::{HEARTBEAT_MS, MAX_REPORTS};
use coxswain_proto::wire;
use coxswain_types::activity::{EnginePhase, EngineWork};
use coxswain_types::status::{WorkerInfo, WorkerStatus};
use coxswain_types::{Assignment, Step};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args::{BadArgument, Work};
use crate::conversation::Conversation;
use crate::engine_handle::EngineHandle;
use crate::identity::{Proof, RETRY};
use crate::machine;
use crate::rank::{Order, work};
use crate::signals::StopSignals;
use crate::store::Rendezvous;

/// How long a process that ends waits for its engine: what that holds is memory only.
const EXIT_WAIT: Duration = Duration::from_secs(3);

/// Works for the coordinator until told to leave, asked to stop, or the coordinator stays away.
pub(crate) fn run(work: &Work) -> Result<Departure> {
    // The token may be in the first line of stdin, whose end is waited for after that.
    let proof = Proof::of(work).map_err(|error| BadArgument(format!("{error:#}")))?;
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
    let result = runtime.block_on(work_for(work, info, proof));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn work_for(work: &Work, info: WorkerInfo, proof: Proof) -> Result<Departure> {
    let (not_renewed, refused) = mpsc::channel(1);
    let mut signals = StopSignals::listen(refused)?;
    // Before a token is used up.
    let port = tokio::select! {
        port = proof.data_port(work) => port?,
        stop = signals.next() => return Ok(Departure::Asked(stop)),
    };
    let (identity, channel) = tokio::select! {
        reached = proof.reach(work, &info.id.0) => reached?,
        stop = signals.next() => return Ok(Departure::Asked(stop)),
    };
    identity.encrypt(&port, work)?;
    let keeping = identity.keep(channel.clone());
    let renewing = tokio::spawn(async move {
        if let Err(error) = keeping.await {
            tracing::error!("{error:#}; this process leaves, and joins again once it is started again");
            not_renewed.send(()).await.ok();
        }
    });
    let conversation = Conversation::new(coxswain_transport::cluster_client(channel));
    let worker = WorkerLoop::new(info, settings(work), port, conversation)?;
    let result = worker.run(signals).await;
    renewing.abort();
    result
}

fn settings(work: &Work) -> AgentSettings {
    AgentSettings {
        heartbeat_ms: HEARTBEAT_MS,
        retry_ms: RETRY.as_millis() as u64,
        connect_timeout_ms: u64::from(work.connect_timeout_s) * 1000,
        coordinator_timeout_ms: u64::from(work.coordinator_timeout_s) * 1000,
        grace_ms: u64::from(work.grace_s) * 1000,
        reports_max: MAX_REPORTS,
    }
}

/// What came of a manifest that was to be published.
struct PublishOutcome {
    stint: u64,
    step: Step,
    result: Result<String, String>,
}

/// The process: the state machine, and what it speaks to.
struct WorkerLoop {
    agent: Agent,
    /// The zero of the agent's clock.
    started: Instant,
    info: WorkerInfo,
    port: Arc<DataPort>,
    conversation: Conversation,
    engine: EngineHandle,
    outcomes: mpsc::UnboundedReceiver<PublishOutcome>,
    to_outcomes: mpsc::UnboundedSender<PublishOutcome>,
}

impl WorkerLoop {
    fn new(
        info: WorkerInfo,
        settings: AgentSettings,
        port: Arc<DataPort>,
        conversation: Conversation,
    ) -> Result<WorkerLoop> {
        // One item for each manifest that is published, and the coordinator asks for one at a time.
        let (to_outcomes, outcomes) = mpsc::unbounded_channel();
        Ok(WorkerLoop {
            agent: Agent::new(info.clone(), settings, 0),
            started: Instant::now(),
            info,
            port,
            conversation,
            engine: EngineHandle::start()?,
            outcomes,
            to_outcomes,
        })
    }

    /// Hands on what happens until the process is to end.
    async fn run(mut self, mut signals: StopSignals) -> Result<Departure> {
        loop {
            let deadline = self.agent.deadline_ms().map(|at_ms| self.started + Duration::from_millis(at_ms));
            let input = tokio::select! {
                // What has happened comes before a deadline that has passed meanwhile.
                biased;
                news = self.conversation.next() => AgentInput::Coordinator(news?),
                news = self.engine.news() => AgentInput::Engine(news?),
                Some(PublishOutcome { stint, step, result }) = self.outcomes.recv() => {
                    AgentInput::Published { stint, step, result }
                }
                stop = signals.next() => AgentInput::Stop(stop),
                () = reached(deadline) => AgentInput::Clock,
            };
            if let AgentInput::Coordinator(CoordinatorNews::Accepted) = &input {
                tracing::info!(worker = %self.info.id, "connected");
            }
            self.agent.note_stretch(self.engine.longest_stretch_ms());
            let now_ms = self.started.elapsed().as_millis() as u64;
            let mut actions = self.agent.on(input, now_ms);
            // Before an engine starts, and before one looks again.
            self.engine.direct(self.agent.directive());
            let end = match actions.pop_if(|action| matches!(action, AgentAction::Exit(_))) {
                Some(AgentAction::Exit(end)) => Some(end),
                _ => None,
            };
            for action in actions {
                self.act(action).await;
            }
            if let Some(end) = end {
                return self.exit(end).await;
            }
        }
    }

    async fn act(&mut self, action: AgentAction) {
        match action {
            AgentAction::Register => self.conversation.register(&self.info.id),
            AgentAction::Open => self.conversation.open(self.status()),
            AgentAction::Say => self.conversation.say(self.status()),
            AgentAction::SayLast => self.conversation.say_last(self.status()).await,
            AgentAction::Start(assignment) => self.start(&assignment),
            AgentAction::EndEngine => self.engine.dismiss(),
            AgentAction::Publish(publication) => self.publish(*publication),
            AgentAction::Tell(notice) => tell(&notice),
            // `run` has taken it.
            AgentAction::Exit(_) => {}
        }
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus { activity: self.engine.activity(), ..self.agent.status() }
    }

    fn start(&mut self, assignment: &Arc<Assignment>) {
        let store = Rendezvous {
            runtime: tokio::runtime::Handle::current(),
            client: self.conversation.client().clone(),
            job: assignment.job.clone(),
            generation: assignment.generation,
            patience_ms: assignment.rendezvous_ms,
        };
        let (port, runtime) = (self.port.clone(), self.info.runtime.clone());
        let order = Order { assignment: Assignment::clone(assignment), store, port, runtime };
        let begun = self.engine.begin(move |control, remains| work(order, control, remains));
        if let Err(error) = begun {
            // The loop ends with its next look at the engine's news.
            tracing::error!("{error:#}");
        }
    }

    /// Publishes a manifest, beside what goes on.
    fn publish(&self, publication: Publication) {
        let (outcomes, runtime) = (self.to_outcomes.clone(), self.info.runtime.clone());
        tokio::task::spawn_blocking(move || {
            let Publication { stint, assignment, publish } = &publication;
            let step = publish.step;
            let span = tracing::info_span!(
                "publish",
                job = %assignment.job,
                generation = assignment.generation.0,
                rank = assignment.rank.0,
                step = step.0,
            );
            let _entered = span.enter();
            let result = publish_now(&publication, &runtime).map_err(|error| {
                let message = format!("publishing the checkpoint of step {step}: {error:#}");
                tracing::error!("{message}");
                message
            });
            outcomes.send(PublishOutcome { stint: *stint, step, result }).ok();
        });
    }

    /// Ends the process, after its engine where the process can wait for it.
    async fn exit(&self, end: Result<Departure, AgentError>) -> Result<Departure> {
        match end {
            Ok(departure) => self.stop_engine().await.map(|()| departure),
            Err(error @ AgentError::Lost { .. }) => match self.stop_engine().await {
                Ok(()) => Err(error.into()),
                Err(beside) => Err(beside.context(error)),
            },
            Err(error @ AgentError::Hung { .. }) => {
                let joining = EngineWork::Phase(EnginePhase::Joining);
                let activity = self.engine.activity();
                let step =
                    activity.as_ref().map_or(String::new(), |activity| format!(", step {}", activity.step));
                let doing = activity.map_or(joining, |activity| activity.doing);
                bail!("{error} (it was at: {doing}{step})")
            }
            Err(error @ (AgentError::Refused(_) | AgentError::Broken(_))) => Err(error.into()),
        }
    }

    async fn stop_engine(&self) -> Result<()> {
        self.engine.dismiss();
        if tokio::time::timeout(EXIT_WAIT, self.engine.ended()).await.is_err() {
            bail!("the engine did not end within {} s", EXIT_WAIT.as_secs());
        }
        Ok(())
    }
}

/// Ready at this time; never, where there is none.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn publish_now(publication: &Publication, runtime: &str) -> Result<String> {
    let Publication { assignment, publish, .. } = publication;
    let run = Path::new(&assignment.directory).into();
    let folder = coxswain_files::folders::step_folder(&run, publish.step.0);
    let header = coxswain_engine::checkpoint::header(assignment, runtime, publish.step);
    let digest = coxswain_files::publish(&folder, &publish.files, header)?;
    tracing::info!(%folder, "checkpoint published");
    Ok(digest)
}

/// Lets people know.
fn tell(notice: &AgentNotice) {
    match notice {
        AgentNotice::Outdated(generation) => {
            tracing::debug!(generation = generation.0, "ignored a desired state of an older generation");
        }
        AgentNotice::NotTakenYet(reason) => {
            tracing::warn!("the coordinator does not take this worker yet: {reason}");
        }
        AgentNotice::LostCoordinator { why, timeout_s } => {
            tracing::warn!("lost the coordinator: {why}; going on without it for {timeout_s} s");
        }
        AgentNotice::Leaving(stop) => {
            tracing::info!("{}: leaving at the end of a step; another signal ends it at once", stop.why());
        }
        AgentNotice::NothingLeft => tracing::info!("leaving: nothing is left to do"),
        AgentNotice::LeavingNow(why) => tracing::info!("leaving: {why}"),
        AgentNotice::SentAway { leave, departure: Departure::Refused } => {
            tracing::warn!("the coordinator refused this worker: {}", leave.reason);
        }
        AgentNotice::SentAway { leave, departure: Departure::Finished | Departure::Asked(_) } => {
            tracing::info!("leaving: {}", leave.reason);
        }
    }
}
