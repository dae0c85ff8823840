//! The commands that talk to a coordinator: `submit`, `status`, `watch`, `cancel`, `drain`,
//! `explain`, `events`.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use coxswain_console::{printable, say};
use coxswain_proto::wire;
use coxswain_proto::wire::access_client::AccessClient;
use coxswain_proto::wire::job_update::Event;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_transport::tls::{Transport, why};
use coxswain_transport::{access_client, connect_over, jobs_client};
use coxswain_types::status::StepReport;
use tonic::Code;
use tonic::transport::Channel;

use crate::args::{CoordinatorArgs, JobFile, ListFormat, ListFormatArgs};
use crate::event_line::EventLine;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::page::next;
use crate::progress::RunProgress;
use crate::{events, local, plan, views};

#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    job: JobFile,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// The run's folder, which the coordinator and all workers see under the same path.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// With `layout: auto`, for how many workers to choose it [default: as many as --cluster has].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    #[command(flatten)]
    machines: plan::MachineArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Also list jobs that ended over an hour ago.
    #[arg(long)]
    all: bool,
    /// Show this job in full where JSON is printed [default: one at work].
    #[arg(long, value_name = "JOB", default_value = "", hide_default_value = true)]
    job: String,
    #[command(flatten)]
    format: ListFormatArgs,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The job's id, as `submit` printed it.
    job: String,
    /// How steps are told [default: text where stdout is a terminal, else json].
    #[arg(long, value_enum)]
    format: Option<StepFormat>,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

/// How steps are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StepFormat {
    /// A bar, or plain lines now and then, on stderr.
    Text,
    /// A line of JSON for each step, on stdout.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job's id, as `submit` printed it.
    job: String,
    /// End it at once; the steps since its newest checkpoint are lost.
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The worker's name, as `status` shows it.
    worker: String,
    /// Why, for the logs.
    #[arg(long, value_name = "TEXT", default_value = "a user wants it out")]
    reason: String,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The job's id, as `submit` printed it.
    job: String,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Of this job only.
    #[arg(long, value_name = "JOB", default_value = "", hide_default_value = true)]
    job: String,
    /// Go on with what happens from now on.
    #[arg(long)]
    follow: bool,
    /// Read the journal in this folder instead of asking a coordinator.
    #[arg(long, value_name = "DIR", conflicts_with = "follow")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
}

pub(crate) async fn submit(args: Submit) -> Result<(), Failure> {
    let mut job = local::read_job(&args.job)?;
    let open = plan::open(&job)?;
    let mut reason = String::new();
    if open.auto.is_some() && (args.workers.is_some() || args.machines.are_given()) {
        let cluster = args.machines.cluster(args.workers, &open)?;
        let chosen = plan::chosen(&open, &cluster, args.workers)?;
        reason = chosen.reason();
        say(&format!("layout: {reason}"));
        job.sets.extend(chosen.sets());
    }
    // Checked here first, so that a mistake is found without a coordinator.
    job.spec()?;
    let folder = std::env::current_dir().context("the current folder cannot be told")?;
    let request = wire::SubmitRequest {
        manifest: job.text,
        origin: job.source,
        base: path_text(&job.base)?,
        directory: path_text(&args.directory)?,
        sets: job.sets,
        folder: path_text(&folder)?,
        chosen: reason,
    };
    let reply = jobs(&args.coordinator).await?.submit(request).await;
    let reply = reply.map_err(|status| refused(&args.coordinator, status))?;
    output::write(&format!("{}\n", reply.into_inner().job))
}

pub(crate) async fn status(args: Status) -> Result<(), Failure> {
    let Status { all, job, format, coordinator } = args;
    let mut client = jobs(&coordinator).await?;
    if format.format() == ListFormat::Json {
        let view = client.view(wire::ViewRequest { job }).await;
        let view = view.map_err(|status| refused(&coordinator, status))?;
        return output::write(&format!("{}\n", view.into_inner().json));
    }
    let (mut list, mut request) = (wire::ListReply::default(), wire::ListRequest::default());
    loop {
        let page = client.list(request.clone()).await;
        let page = page.map_err(|status| refused(&coordinator, status))?.into_inner();
        request = next(request, &page);
        let more = page.more;
        list.jobs.extend(page.jobs);
        list.workers.extend(page.workers);
        if !more {
            return output::write(&printable(&views::tables(&list, all)));
        }
    }
}

pub(crate) async fn watch(args: Watch) -> Result<(), Failure> {
    let terminal = if io::stdout().is_terminal() { StepFormat::Text } else { StepFormat::Json };
    let format = args.format.unwrap_or(terminal);
    let request = wire::WatchRequest { job: args.job.clone() };
    let refused = |status| refused(&args.coordinator, status);
    let mut events = jobs(&args.coordinator).await?.watch(request).await.map_err(refused)?.into_inner();
    let mut progress: Option<RunProgress> = None;
    let (mut steps, mut unit) = (0, String::new());
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Report(report)) if format == StepFormat::Text => {
                let from = report.step.saturating_sub(1);
                let progress = progress.get_or_insert_with(|| RunProgress::new(from, steps, &unit));
                progress.step(&StepReport::from(report));
            }
            Some(Event::Report(report)) => {
                let line = serde_json::to_string(&StepReport::from(report)).context("a report as JSON")?;
                output::write(&(line + "\n"))?;
            }
            Some(Event::Checkpoint(checkpoint)) => {
                say(&format!("{}: the checkpoint of step {} can be read", args.job, checkpoint.step));
            }
            Some(Event::Summary(summary)) => {
                (steps, unit) = (summary.steps, summary.unit.clone());
                let (state, outcome) = (views::state_word(summary.state()), views::outcome(summary.state()));
                if let (Some(progress), Some(_)) = (&progress, outcome) {
                    progress.finish();
                }
                say(&format!("{} is {state}: {}", summary.job, summary.reason));
                match outcome {
                    Some(true) => return Ok(()),
                    Some(false) => return Err(Failure::Said(FAILED)),
                    None => {}
                }
            }
            None => {}
        }
    }
    Err(anyhow!("the coordinator ended before job {} did", args.job).into())
}

pub(crate) async fn cancel(args: Cancel) -> Result<(), Failure> {
    let reason = "a user cancelled it".to_owned();
    let request = wire::CancelRequest { job: args.job.clone(), reason, now: args.now };
    let reply = jobs(&args.coordinator).await?.cancel(request).await;
    let reply = reply.map_err(|status| refused(&args.coordinator, status))?.into_inner();
    let is = if reply.over { "is cancelled" } else { "is being cancelled" };
    say(&format!("{} {is}: {}", args.job, reply.reason));
    Ok(())
}

pub(crate) async fn drain(args: Drain) -> Result<(), Failure> {
    let Drain { worker, reason, coordinator } = args;
    let request = wire::DrainRequest { worker: worker.clone(), reason };
    let drained = jobs(&coordinator).await?.drain(request).await;
    drained.map_err(|status| refused(&coordinator, status))?;
    say(&format!("{worker} ends as soon as its place is empty; `coxswain status` shows it until then"));
    Ok(())
}

pub(crate) async fn explain(args: Explain) -> Result<(), Failure> {
    let request = wire::ExplainRequest { job: args.job };
    let reply = jobs(&args.coordinator).await?.explain(request).await;
    let reply = reply.map_err(|status| refused(&args.coordinator, status))?;
    output::write(&printable(&reply.into_inner().text))
}

pub(crate) async fn events(args: Events) -> Result<(), Failure> {
    let Events { job, follow, data_dir, coordinator } = args;
    if let Some(folder) = data_dir {
        let past = events::past(&folder, &job)?;
        if past.is_empty() && !job.is_empty() {
            return Err(Failure::Input(format!("the journal in {} has no job {job}", folder.display())));
        }
        for line in past {
            output::write(&line.json()?)?;
        }
        return Ok(());
    }
    let request = wire::EventsRequest { job, follow };
    let refused = |status| refused(&coordinator, status);
    let mut stream = jobs(&coordinator).await?.events(request).await.map_err(refused)?.into_inner();
    while let Some(event) = stream.message().await.map_err(refused)? {
        output::write(&EventLine::received(event)?.json()?)?;
    }
    Ok(())
}

/// A client of the service for jobs.
pub(crate) async fn jobs(args: &CoordinatorArgs) -> Result<JobsClient<Channel>, Failure> {
    Ok(jobs_client(channel(args).await?))
}

/// A client of the service that gives certificates.
pub(crate) async fn access(args: &CoordinatorArgs) -> Result<AccessClient<Channel>, Failure> {
    Ok(access_client(channel(args).await?))
}

async fn channel(args: &CoordinatorArgs) -> Result<Channel, Failure> {
    use coxswain_transport::ConnectError;
    let transport = args.tls.transport().map_err(|error| Failure::Input(error.to_string()))?;
    connect_over(&args.coordinator, &transport).await.map_err(|error| match error {
        ConnectError::Address { .. } => Failure::Input(error.to_string()),
        // The chain behind it says the same once more.
        ConnectError::Unreachable { .. } | ConnectError::Insecure { .. } => {
            Failure::Failed(anyhow!("{error}"))
        }
    })
}

/// Why a call was refused, or failed below HTTP.
pub(crate) fn refused(args: &CoordinatorArgs, status: tonic::Status) -> Failure {
    if let Some(why) = why(&status) {
        return Failure::Failed(anyhow!("no secure connection to {}: {why}", args.coordinator));
    }
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted => {
            Failure::Failed(anyhow!(message))
        }
        // A status that has a cause was made on this side: the connection broke, in one of several ways.
        _ if std::error::Error::source(&status).is_some() || status.code() == Code::Cancelled => {
            let hint = match args.tls.transport() {
                Ok(Transport::Plain) => {
                    "if it has certificates, name the folder of yours by --tls-dir or COXSWAIN_TLS_DIR"
                }
                _ => "a certificate that has expired, or is of another cluster, is not accepted",
            };
            Failure::Failed(anyhow!(
                "the coordinator at {} closed the connection ({message}); {hint}",
                args.coordinator
            ))
        }
        Code::InvalidArgument | Code::NotFound => Failure::Input(message),
        Code::FailedPrecondition => Failure::Failed(anyhow!(message)),
        code => {
            Failure::Failed(anyhow!("the coordinator does not answer as it should ({code:?}): {message}"))
        }
    }
}

fn path_text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::Input(format!("{} is not valid UTF-8; rename it", path.display())))
}
