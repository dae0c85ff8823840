//! The commands that talk to a coordinator: `submit`, `status`, `watch`, `cancel`, `drain`,
//! `explain`, `events`.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use coxswain_proto::tls::{Transport, why};
use coxswain_proto::wire::access_client::AccessClient;
use coxswain_proto::wire::job_event::Event;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_proto::{access_client, connect_over, jobs_client, wire};
use coxswain_types::status::StepReport;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cli::{Coordinator, FAILED, Failure, JobFile};
use crate::output;
use crate::{events, local, views};

#[derive(Debug, Args)]
pub(crate) struct Submit {
    #[command(flatten)]
    job: JobFile,
    #[command(flatten)]
    coordinator: Coordinator,
    /// The run's folder, which the coordinator and all workers see under the same path.
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The job's id, as `submit` printed it.
    job: String,
    #[command(flatten)]
    coordinator: Coordinator,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job's id, as `submit` printed it.
    job: String,
    #[command(flatten)]
    coordinator: Coordinator,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The worker's name, as `status` shows it.
    worker: String,
    /// Why, for the logs.
    #[arg(long, value_name = "TEXT", default_value = "a user wants it out")]
    reason: String,
    #[command(flatten)]
    coordinator: Coordinator,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The job's id, as `submit` printed it.
    job: String,
    #[command(flatten)]
    coordinator: Coordinator,
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
    coordinator: Coordinator,
}

pub(crate) async fn submit(args: Submit) -> Result<(), Failure> {
    let job = local::read_job(&args.job)?;
    // Checked here first, so that a mistake is found without a coordinator.
    job.spec()?;
    let directory = std::path::absolute(&args.directory).context("the current folder cannot be told")?;
    let request = wire::SubmitRequest {
        manifest: job.text,
        origin: job.source,
        base: path_text(&job.base)?,
        directory: path_text(&directory)?,
        sets: job.sets,
    };
    let reply = jobs(&args.coordinator).await?.submit(request).await;
    let reply = reply.map_err(|status| refused(&args.coordinator, status))?;
    output::write(&format!("{}\n", reply.into_inner().job)).map(drop)
}

pub(crate) async fn status(args: Coordinator) -> Result<(), Failure> {
    let list = jobs(&args).await?.list(wire::ListRequest {}).await;
    let list = list.map_err(|status| refused(&args, status))?;
    output::write(&views::tables(&list.into_inner()).to_string()).map(drop)
}

pub(crate) async fn watch(args: Watch) -> Result<(), Failure> {
    let request = wire::WatchRequest { job: args.job.clone() };
    let refused = |status| refused(&args.coordinator, status);
    let mut events = jobs(&args.coordinator).await?.watch(request).await.map_err(refused)?.into_inner();
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Report(report)) => {
                let line = serde_json::to_string(&StepReport::from(report)).context("a report as JSON")?;
                if !output::write(&(line + "\n"))? {
                    return Ok(());
                }
            }
            Some(Event::Checkpoint(checkpoint)) => {
                eprintln!("{}: the checkpoint of step {} can be read", args.job, checkpoint.step);
            }
            Some(Event::Summary(summary)) => {
                eprintln!("{} is {}: {}", summary.job, views::state_word(summary.state()), summary.reason);
                match views::outcome(summary.state()) {
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
    let request = wire::CancelRequest { job: args.job.clone(), reason: "a user cancelled it".to_owned() };
    let cancelled = jobs(&args.coordinator).await?.cancel(request).await;
    cancelled.map_err(|status| refused(&args.coordinator, status))?;
    eprintln!("{} is cancelled", args.job);
    Ok(())
}

pub(crate) async fn drain(args: Drain) -> Result<(), Failure> {
    let Drain { worker, reason, coordinator } = args;
    let request = wire::DrainRequest { worker: worker.clone(), reason };
    let drained = jobs(&coordinator).await?.drain(request).await;
    drained.map_err(|status| refused(&coordinator, status))?;
    eprintln!("{worker} ends as soon as its place is empty; `coxswain status` shows it until then");
    Ok(())
}

pub(crate) async fn explain(args: Explain) -> Result<(), Failure> {
    let request = wire::ExplainRequest { job: args.job };
    let reply = jobs(&args.coordinator).await?.explain(request).await;
    let reply = reply.map_err(|status| refused(&args.coordinator, status))?;
    output::write(&reply.into_inner().text).map(drop)
}

pub(crate) async fn events(args: Events) -> Result<(), Failure> {
    let Events { job, follow, data_dir, coordinator } = args;
    if let Some(folder) = data_dir {
        for line in events::past(&folder, &job)? {
            if !output::write(&line.json()?)? {
                return Ok(());
            }
        }
        return Ok(());
    }
    let request = wire::EventsRequest { job, follow };
    let refused = |status| refused(&coordinator, status);
    let mut stream = jobs(&coordinator).await?.events(request).await.map_err(refused)?.into_inner();
    while let Some(happening) = stream.message().await.map_err(refused)? {
        if !output::write(&events::Line::from(happening).json()?)? {
            return Ok(());
        }
    }
    Ok(())
}

async fn jobs(args: &Coordinator) -> Result<JobsClient<Channel>, Failure> {
    Ok(jobs_client(channel(args).await?))
}

/// A client of the service that gives certificates.
pub(crate) async fn access(args: &Coordinator) -> Result<AccessClient<Channel>, Failure> {
    Ok(access_client(channel(args).await?))
}

async fn channel(args: &Coordinator) -> Result<Channel, Failure> {
    use coxswain_proto::ConnectError;
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
pub(crate) fn refused(args: &Coordinator, status: Status) -> Failure {
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
            Failure::Failed(anyhow!("the coordinator at {} hangs up ({message}); {hint}", args.coordinator))
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
    text.ok_or_else(|| Failure::Input(format!("{} is no UTF-8 text; rename it", path.display())))
}
