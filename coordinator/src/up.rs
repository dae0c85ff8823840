//! `coxswain up`: a coordinator on this machine and its workers here or on others, for one job, to its end.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use coxswain_console::file_mode::FileModeArgs;
use coxswain_console::parent::ParentArgs;
use coxswain_console::say;
use coxswain_core::cluster::{CancelWhen, Event, JobEnding, JobState, JobSummary, LEASE_MS};
use coxswain_core::plan::threads_for;
use coxswain_core::spec::resolved_yaml;
use coxswain_files::atomic::write_atomic;
use coxswain_files::folders::step_path;
use coxswain_types::JobSpec;
use coxswain_types::ids::WorkerId;
use coxswain_types::job::OnLoss;
use coxswain_types::status::WorkerInfo;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::admin::{AdminArgs, PlainDoor};
use crate::args::JobFile;
use crate::failure::{FAILED, Failure};
use crate::handle::{Handle, JobNews};
use crate::metrics::METRICS;
use crate::progress::{Preparing, RunProgress};
use crate::serve::Signals;
use crate::service::{Access, Port};
use crate::ssh::{HostArgs, Remote, RemoteAccess};
use crate::store::RendezvousStore;
use crate::view::hub::Hub;
use crate::view::runs::{JOB, job_of};
use crate::worker_logs::LOGS;
use crate::workers::{Launch, Workers};
use crate::{curve, driver, folder, job, local, plan, service, texts, workers};

/// How often the worker processes are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long workers may take from their start until the run starts: they load libtorch, from a cold
/// and busy disk at worst.
const START: Duration = Duration::from_secs(120);

/// How long the coordinator may take to notice by itself that a worker's process has ended.
const NOTICE: Duration = Duration::from_millis(LEASE_MS + 2000);

/// How long the coordinator may take to note a cancel when `up` shall end at once.
const AT_ONCE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The job file (YAML).
    #[arg(value_name = "JOB.yaml", required_unless_present = "plan", conflicts_with = "plan")]
    job: Option<PathBuf>,
    /// Replace a value of the job, such as train.steps=100 (repeatable).
    #[arg(long = "set", value_name = "PATH=VALUE", conflicts_with = "plan")]
    sets: Vec<String>,
    /// Run the job and the layout of a plan that `plan -o` wrote.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// How many workers to start [default: as many as the layout needs; another number is refused]. With
    /// `layout: auto` at most so many [default: one for each core].
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// With `layout: auto`, choose for the machines of this file [default: this machine].
    #[arg(long, value_name = "FILE", conflicts_with = "plan")]
    cluster: Option<PathBuf>,
    /// How many workers to start beside these: each takes the place of one that is lost, at once.
    #[arg(long, value_name = "N", default_value_t = 0)]
    spares: u32,
    /// The run's folder [default: out/NAME-OF-THE-JOB].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The device of each worker: cpu, cuda:N (all on GPU N), or cuda (worker i on GPU i).
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = coxswain_proto::device::device)]
    device: String,
    #[command(flatten)]
    hosts: HostArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    file_mode: FileModeArgs,
    #[command(flatten)]
    parent: ParentArgs,
}

pub(crate) async fn up(args: Up) -> Result<(), Failure> {
    args.parent.follow().context("following the process that started this one")?;
    args.file_mode.apply();
    let (spec, chosen) = job_to_run(&args)?;
    let count = if chosen.is_some() { spec.layout.world() } else { job::workers(&spec, args.workers)? };
    texts::texts(&spec)?;
    let program = workers::program()?;
    let shown = folder_of(&args, &spec.name);
    let directory = std::path::absolute(&shown).context("the current folder cannot be told")?;
    let text = directory.to_str().map(str::to_owned);
    let text = text.ok_or_else(|| Failure::Input(format!("--out {}: no UTF-8 text", shown.display())))?;

    let (coordinator, remote) =
        LocalCoordinator::start(&directory, &args.admin, &args.hosts, &program).await?;
    let mut written = spec.clone();
    written.train.threads =
        Some(threads(&spec, &directory, args.hosts.share(count)).map_err(Failure::Input)?);
    let resolved = resolved_yaml(&written).context("the job as YAML")?;
    let path = directory.join(JOB);
    write_atomic(&path, resolved.as_bytes())
        .with_context(|| format!("{} cannot be written", path.display()))?;

    let (name, unit) = (spec.name.clone(), spec.data.unit());
    let restarts = spec.recovery.on_loss != OnLoss::Fail;
    let submitted = coordinator.handle.submit(spec, text, chosen).await.context("the coordinator")?;
    let job = submitted.map_err(|error| anyhow!(error))?;
    let launch = Launch {
        program: &program,
        url: &coordinator.url.clone(),
        device: &args.device,
        count: count.saturating_add(args.spares),
        logs: &directory.join(LOGS),
        remote: remote.as_ref(),
    };
    let mut run = FollowedRun {
        job,
        coordinator,
        launch,
        workers: None,
        preparing: None,
        progress: None,
        unit,
        restarts,
        signals: 0,
        state: JobState::Queued,
        deadline: None,
    };
    let summary = run.follow().await;
    let outcome = run.end(summary?).await;
    leave_behind(&outcome.summary, (&name, unit), &directory, &shown);
    outcome.result
}

/// The run's folder, as it was named.
fn folder_of(args: &Up, job: &str) -> PathBuf {
    args.out.clone().unwrap_or_else(|| Path::new("out").join(job))
}

/// The job that is asked for, and why its layout was chosen, if it was.
fn job_to_run(args: &Up) -> Result<(JobSpec, Option<String>), Failure> {
    if let Some(path) = &args.plan {
        let plan = plan::read_plan(path)?;
        let spec = job::parse(&plan.job, &path.display().to_string(), Path::new("/"), &[])?;
        job::workers(&spec, args.workers)?;
        return Ok((spec, Some(plan.reason)));
    }
    let job = args.job.clone().unwrap_or_default();
    let mut job = local::read_job(&JobFile { job, sets: args.sets.clone() })?;
    let mut open = plan::open(&job)?;
    if open.auto.is_none() {
        return Ok((job.spec()?, None));
    }
    // A run that goes on keeps its numbers: only the rest is chosen anew.
    if let Some(was) = job_of(&folder_of(args, &open.spec.name)) {
        let kept = open.open.kept(&was.train);
        job.sets.extend(kept.into_iter().map(|(key, value)| format!("{key}={value}")));
        open = plan::open(&job)?;
        open.open = open.open.of_run(&was.train);
    }
    let cluster = match &args.cluster {
        Some(path) => plan::read_cluster(path)?,
        None if args.hosts.are_given() => {
            return Err(Failure::Input(
                "--hosts with `layout: auto`: which layout is best depends on these machines; describe them in a \
                 cluster file (--cluster), or run a plan (--plan)"
                    .to_owned(),
            ));
        }
        None if args.device == "cpu" => plan::this_machine(args.workers),
        None => {
            let device = &args.device;
            return Err(Failure::Input(format!(
                "--device {device}: which layout is best depends on the kind of the device; name it in a cluster file \
                 (--cluster), or run a plan of it (--plan)"
            )));
        }
    };
    let chosen = plan::chosen(&open, &cluster, args.workers)?;
    let reason = chosen.reason();
    say(&format!("layout: {reason}"));
    job.sets.extend(chosen.sets());
    Ok((job.spec()?, Some(reason)))
}

/// The threads of each worker: the job's, or those of the checkpoint, or a share of the cores, where so many workers share
/// a machine like this one.
fn threads(spec: &JobSpec, directory: &Path, workers: u32) -> Result<u32, String> {
    let (newest, _) = folder::newest(&directory.into(), spec, |_| false)?;
    if let Some(threads) = spec.train.threads.or(newest.map(|newest| newest.threads)) {
        return Ok(threads);
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let here = |n| WorkerInfo {
        id: WorkerId(format!("worker-{n}")),
        incarnation: 0,
        host: "here".to_owned(),
        pid: 0,
        cores: u32::try_from(cores).unwrap_or(1),
        device: "cpu".to_owned(),
        runtime: String::new(),
        serves: None,
    };
    Ok(threads_for(&(0..workers).map(here).collect::<Vec<_>>()))
}

/// The coordinator inside this process.
struct LocalCoordinator {
    handle: Handle,
    url: String,
    driver: JoinHandle<anyhow::Result<()>>,
    service: JoinHandle<anyhow::Result<()>>,
    page: Option<JoinHandle<()>>,
}

impl LocalCoordinator {
    /// Starts it, and says how workers on other machines are started where there are some.
    async fn start(
        directory: &Path,
        admin: &AdminArgs,
        hosts: &HostArgs,
        program: &Path,
    ) -> Result<(LocalCoordinator, Option<Remote>), Failure> {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let page = admin.open(any_port, false).await;
        let page = page.map_err(|error| Failure::Input(format!("{error:#}")))?;
        // Jobs that an earlier `up` left open are not this one's.
        let left_over = driver::LeftOver::Cancel("the `up` that it belonged to was killed");
        let data_dir = directory.join("coordinator");
        let (handle, store, driver) = driver::start(&data_dir, left_over)?;
        let access =
            hosts.access(program, &data_dir).map_err(|error| Failure::Input(format!("{error:#}")))?;
        let hub = Hub::new(handle.clone());
        let page = page.map(|page| {
            say(&format!("{:<11} {}", "page", page.url()));
            page.serve(hub.clone(), PlainDoor::Owner, None)
        });
        let (url, service, remote) = serve(handle.clone(), store, hub, access).await?;
        Ok((LocalCoordinator { handle, url, driver, service, page }, remote))
    }
}

async fn serve(
    handle: Handle,
    store: Arc<RendezvousStore>,
    hub: Arc<Hub>,
    access: Option<RemoteAccess>,
) -> anyhow::Result<(String, JoinHandle<anyhow::Result<()>>, Option<Remote>)> {
    let Some(RemoteAccess { listen, address, secure, remote }) = access else {
        let listener = service::listen("127.0.0.1:0", false).await?;
        let url = format!("http://{}", listener.local_addr().context("the listening address")?);
        let access = Access::without_certificates(&listener);
        let port = Port { listener, access, roots: None, hub };
        let service = tokio::spawn(service::serve_on(port, handle, store, std::future::pending()));
        return Ok((url, service, None));
    };
    let listener = service::listen(&listen.to_string(), true).await?;
    let port = listener.local_addr().context("the listening address")?.port();
    let address = if address.contains(':') { format!("[{address}]") } else { address };
    // Calls come from its workers; nothing but this process submits.
    let port_of = Port { listener, access: Access::Secure(secure), roots: None, hub };
    let service = tokio::spawn(service::serve_on(port_of, handle, store, std::future::pending()));
    Ok((format!("https://{address}:{port}"), service, Some(remote)))
}

/// A run as `up` follows it.
struct FollowedRun<'a> {
    job: String,
    coordinator: LocalCoordinator,
    launch: Launch<'a>,
    workers: Option<Workers>,
    preparing: Option<Preparing>,
    progress: Option<RunProgress>,
    /// What the loss is a mean over.
    unit: &'static str,
    /// Whether workers that end are started again.
    restarts: bool,
    /// How many signals asked for the end: the first stops the run after a step, the second at once.
    signals: u32,
    state: JobState,
    deadline: Option<Deadline>,
}

/// Until when a state has to change, and why it should have if it has not.
struct Deadline {
    at: Instant,
    reason: String,
}

/// How a run ended.
struct Outcome {
    summary: JobSummary,
    result: Result<(), Failure>,
}

impl FollowedRun<'_> {
    /// Follows the run to its last state.
    async fn follow(&mut self) -> Result<JobSummary, Failure> {
        let mut signals = Signals::listen()?;
        let mut watcher = self
            .coordinator
            .handle
            .watch(&self.job)
            .await
            .context("the coordinator")?
            .context("the job is not known")?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = watcher.next() => {
                    let Some(news) = news else { return Err(self.broken_coordinator().await) };
                    if let ControlFlow::Break(summary) = self.heard(news).await? {
                        return Ok(summary);
                    }
                }
                _ = look.tick() => self.look_at_workers().await?,
                name = signals.next() => self.signalled(name).await?,
            }
        }
    }

    /// Shows what the run says of itself, and breaks at its last state.
    async fn heard(&mut self, news: JobNews) -> Result<ControlFlow<JobSummary>, Failure> {
        match news {
            JobNews::Summary(summary) if summary.state.is_over() => return Ok(ControlFlow::Break(summary)),
            JobNews::Summary(summary) => {
                if summary.state == JobState::Preparing {
                    self.preparing.get_or_insert_with(Preparing::new).show(&summary.reason);
                } else {
                    self.preparing = None;
                }
                if summary.state != self.state {
                    self.state = summary.state;
                    self.deadline = self.entered(&summary).await?;
                }
            }
            JobNews::Report(report) => {
                if let Some(progress) = &mut self.progress {
                    progress.step(&report);
                }
                if let Some(workers) = &mut self.workers {
                    workers.forgive();
                }
            }
            JobNews::Checkpoint(_) => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Starts workers again that have ended, and gives the run up where its state has outlasted its deadline.
    async fn look_at_workers(&mut self) -> Result<(), Failure> {
        if self.restarts
            && !self.state.is_over()
            && let Some(workers) = &mut self.workers
        {
            workers.restart(&self.launch)?;
        }
        let ended = self.workers.as_mut().and_then(Workers::ended);
        if let (Some(reason), true) = (ended, driver::needs_workers(self.state)) {
            let grace = if self.state == JobState::Gathering { Duration::ZERO } else { NOTICE };
            let at = Instant::now() + grace;
            if self.deadline.as_ref().is_none_or(|deadline| at < deadline.at) {
                self.deadline = Some(Deadline { at, reason });
            }
        }
        if let Some(Deadline { reason, .. }) = self.deadline.take_if(|deadline| deadline.at <= Instant::now())
        {
            self.happened(Event::Broken { job: self.job.clone(), reason }).await?;
        }
        Ok(())
    }

    /// Does what a new state asks for; returns how long it may last.
    async fn entered(&mut self, summary: &JobSummary) -> Result<Option<Deadline>, Failure> {
        match summary.state {
            JobState::Gathering if self.workers.is_none() => {
                match Workers::start(&self.launch) {
                    Ok(workers) => self.workers = Some(workers),
                    Err(error) => {
                        let reason = format!("{error:#}");
                        self.happened(Event::Broken { job: self.job.clone(), reason }).await?;
                    }
                }
                let reason = format!("the workers were not there after {} s", START.as_secs());
                Ok(Some(Deadline { at: Instant::now() + START, reason }))
            }
            JobState::Running => {
                // A job that goes on keeps its bar, whose next step puts it where it is.
                self.progress
                    .get_or_insert_with(|| RunProgress::new(summary.step.0, summary.steps, self.unit));
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Someone wants the run to end.
    async fn signalled(&mut self, name: &str) -> Result<(), Failure> {
        self.signals += 1;
        let when = if self.signals == 1 { CancelWhen::AfterStep } else { CancelWhen::Now };
        let event = Event::Cancelled { job: self.job.clone(), reason: format!("ended by {name}"), when };
        let handle = self.coordinator.handle.clone();
        // Not waited for: a second signal has to be heard whatever holds up the coordinator.
        let cancelled = tokio::spawn(async move { handle.happened(event).await });
        if when == CancelWhen::AfterStep {
            if self.state == JobState::Running {
                tracing::info!(
                    "{name}: the run ends after the step at hand, which is saved; once more ends it at once"
                );
            }
            return Ok(());
        }
        match timeout(AT_ONCE, cancelled).await {
            Ok(_) => Ok(()),
            Err(_) => Err(anyhow!("ended by {name}, twice: the coordinator did not answer").into()),
        }
    }

    async fn happened(&self, event: Event) -> Result<(), Failure> {
        Ok(self.coordinator.handle.happened(event).await.context("the coordinator")?)
    }

    /// The driver has ended, which it does on errors only.
    async fn broken_coordinator(&mut self) -> Failure {
        match (&mut self.coordinator.driver).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => anyhow!("the coordinator ended before the run did").into(),
            Err(error) => anyhow!(error).context("the coordinator's own task").into(),
        }
    }

    /// Sends the workers home and says how it ended.
    async fn end(mut self, summary: JobSummary) -> Outcome {
        self.preparing = None;
        if let Some(progress) = &self.progress {
            progress.finish();
        }
        let failed = summary.state == JobState::Ended(JobEnding::Failed);
        let mut words = String::new();
        if let Some(workers) = &mut self.workers
            && failed
        {
            workers.settle().await;
            words = workers.last_words(&summary.about);
        }
        if let Some(workers) = self.workers.take_if(|_| self.signals > 1) {
            workers.kill().await;
        } else if let Some(workers) = self.workers.take() {
            let reason = format!("job {} is over", self.job);
            // A driver that is gone cannot dismiss them; then they are killed.
            let _ = self.happened(Event::Dismissed { reason }).await;
            workers.stop().await;
        } else if summary.state == JobState::Ended(JobEnding::Done) {
            say(&format!("nothing to do: {}", summary.reason));
        }
        self.coordinator.service.abort();
        self.coordinator.page.iter().for_each(JoinHandle::abort);
        let result = match summary.state {
            JobState::Ended(JobEnding::Done) => Ok(()),
            JobState::Ended(JobEnding::Cancelled) => {
                say(&format!("the run was cancelled: {}", summary.reason));
                Err(Failure::Said(FAILED))
            }
            _ => {
                say(&format!("error: {}\n{words}", summary.reason));
                Err(Failure::Said(FAILED))
            }
        };
        Outcome { summary, result }
    }
}

/// Draws the curve and says where everything lies.
fn leave_behind(summary: &JobSummary, (name, unit): (&str, &str), directory: &Path, shown: &Path) {
    let mut lines = Vec::new();
    if let Some(checkpoint) = &summary.checkpoint {
        lines.push(("checkpoint", shown.join(step_path(checkpoint.step.0))));
    }
    match curve::draw(directory, name, unit) {
        Ok(Some(curve)) => {
            lines.push(("metrics", shown.join(METRICS)));
            lines.push(("loss curve", shown.join(curve.file_name().unwrap_or_default())));
        }
        Ok(None) => {}
        Err(error) => tracing::warn!("no loss curve: {error:#}"),
    }
    for (what, path) in lines {
        say(&format!("{what:<11} {}", path.display()));
    }
}
