//! `coxswain doctor`: looks at this machine and at the way to the coordinator, and says how to mend what is wrong.
//!
//! - [`judge`]: what it thinks of what it finds.

mod judge;

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use clap::Args;
use coxswain_proto::wire;
use coxswain_transport::tls::TlsArgs;
use rustix::process::{Resource, getrlimit};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::args::CoordinatorArgs;
use crate::failure::{FAILED, Failure};
use crate::{client, output, workers};
use judge::{Diagnosis, Health, report};

/// How long one look may take: libtorch is loaded from a cold disk at worst.
const LOOK: Duration = Duration::from_secs(60);

/// The ports that programs take in the documents.
const PORTS: [(u16, &str); 2] =
    [(7070, "`serve --listen HOST:PORT`"), (7071, "`coxswain-worker --data-listen ADDRESS:PORT`")];

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Also look at this coordinator: whether it answers, and its clock.
    #[arg(long, value_name = "URL", env = "COXSWAIN_COORDINATOR")]
    coordinator: Option<String>,
    #[command(flatten)]
    tls: TlsArgs,
    /// Also look at this folder, in which runs are to be kept.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Print a JSON list of the findings.
    #[arg(long)]
    json: bool,
}

/// What `coxswain-worker probe` says.
#[derive(Debug, Deserialize)]
struct Probed {
    runtime: String,
    cores: u32,
    gpus: u32,
}

pub(crate) async fn doctor(args: Doctor) -> Result<(), Failure> {
    let mut all = Vec::new();
    machine(&mut all).await;
    if let Some(coordinator) = args.coordinator {
        all.extend(coordinator_at(CoordinatorArgs { coordinator, tls: args.tls }).await);
    }
    if let Some(folder) = &args.directory {
        all.extend(directory(folder));
    }
    let text = if args.json {
        serde_json::to_string_pretty(&all).map_err(anyhow::Error::from)? + "\n"
    } else {
        report(&all)
    };
    output::write(&text)?;
    match all.iter().map(Diagnosis::health).max() {
        Some(Health::Bad) => Err(Failure::Said(FAILED)),
        _ => Ok(()),
    }
}

/// The programs, devices and limits of this machine.
async fn machine(all: &mut Vec<Diagnosis>) {
    let gpus = match probe("cpu").await {
        Ok(Probed { runtime, cores, gpus }) => {
            all.push(Diagnosis::good("libtorch", runtime));
            all.push(Diagnosis::good("processor", format!("{cores} cores for this process")));
            gpus
        }
        Err((found, mend)) => {
            all.push(Diagnosis::bad("libtorch", found, mend));
            0
        }
    };
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok();
    all.push(judge::driver(version.as_deref(), gpus));
    for gpu in 0..gpus {
        all.push(match probe(&format!("cuda:{gpu}")).await {
            Ok(probed) => Diagnosis::good("GPU", format!("cuda:{gpu}: {}", probed.runtime)),
            Err((found, mend)) => Diagnosis::bad("GPU", format!("cuda:{gpu}: {found}"), mend),
        });
    }
    all.push(judge::files(getrlimit(Resource::Nofile).current));
    for (port, option) in PORTS {
        all.push(match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            Ok(_) => Diagnosis::good("port", format!("{port} is free")),
            Err(error) => Diagnosis::doubtful(
                "port",
                format!("{port}: {error}"),
                format!("fine if a program of Coxswain has it; else choose another by {option}"),
            ),
        });
    }
}

/// Starts a worker that only looks at a device. An error is what was found, and how to mend it.
async fn probe(device: &str) -> Result<Probed, (String, String)> {
    let install = "install both programs in one folder, and libtorch where the worker looks for it; LD_LIBRARY_PATH may \
                   name its folder lib";
    let failed = |found: String| (found, install.to_owned());
    let program = workers::program().map_err(|error| failed(format!("{error:#}")))?;
    let mut command = Command::new(&program);
    command.args(["probe", "--device", device]).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LOOK, command.output()).await;
    let output = output.map_err(|_| failed(format!("{} does not answer", program.display())))?;
    let output = output.map_err(|error| failed(format!("{}: {error}", program.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it failed without a word");
        let last = last.trim_start_matches("error: ").to_owned();
        // A worker says itself what to do about a device.
        let mend = if device == "cpu" { install } else { "see docs/gpus.md, \"Start\"" };
        return Err((last, mend.to_owned()));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("{} is of another version: {error}", program.display())))
}

/// The way to the coordinator, and its clock.
async fn coordinator_at(args: CoordinatorArgs) -> Vec<Diagnosis> {
    let before = SystemTime::now();
    let answered = async {
        let mut jobs = client::jobs(&args).await?;
        jobs.list(wire::ListRequest::default()).await.map_err(|status| client::refused(&args, status))
    };
    let reply = match timeout(LOOK, answered).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(failure)) => {
            let found = match failure {
                Failure::Input(message) => message,
                Failure::Failed(error) => format!("{error:#}"),
                Failure::Refused(refusal) => refusal.to_string(),
                Failure::Said(code) => format!("exit code {code}"),
            };
            let mend = "check the address, that `coxswain serve` runs, firewalls on the way, and --tls-dir";
            return vec![Diagnosis::bad("coordinator", found, mend)];
        }
        Err(_) => {
            let found = format!("{} does not answer", args.coordinator);
            return vec![Diagnosis::bad("coordinator", found, "look at its log")];
        }
    };
    let mut all = vec![Diagnosis::good("coordinator", format!("{} answers", args.coordinator))];
    let date = reply.metadata().get("date").and_then(|date| date.to_str().ok());
    if let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs().cast_signed())
        };
        all.push(judge::clock(seconds(before) - seconds(theirs)));
    }
    all
}

/// Does what a run does in its folder.
fn directory(folder: &Path) -> Vec<Diagnosis> {
    let path = folder.join(format!(".coxswain-doctor-{}", std::process::id()));
    let other = path.with_extension("renamed");
    let tried = (|| {
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        file.write_all(b"doctor")?;
        file.sync_all()?;
        let locked = file.try_lock().is_ok();
        fs::rename(&path, &other)?;
        let same = fs::read(&other)? == b"doctor";
        let disk = rustix::fs::statvfs(folder)?;
        Ok::<_, std::io::Error>((locked, same, disk.f_bavail.saturating_mul(disk.f_frsize)))
    })();
    // An error means that it is not there.
    let _ = fs::remove_file(&path).or_else(|_| fs::remove_file(&other));
    let shown = folder.display();
    match tried {
        Ok((locked, true, free)) => {
            let mut all = vec![Diagnosis::good("folder", format!("{shown} can be written"))];
            if !locked {
                all.push(Diagnosis::doubtful(
                    "locks",
                    format!("{shown} takes no locks"),
                    "mount it with locks (NFS: without nolock), or see to it that one job writes to a run's folder",
                ));
            }
            all.push(judge::room(free));
            all
        }
        Ok((_, false, _)) => {
            vec![Diagnosis::bad("folder", format!("{shown} gives back other bytes"), "look at the disk")]
        }
        Err(error) => vec![Diagnosis::bad(
            "folder",
            format!("{shown}: {error}"),
            "the coordinator and all workers need it under this path, and write access; check the mount and the user",
        )],
    }
}
