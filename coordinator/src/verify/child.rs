//! One run of a certificate: `coxswain up` as a process of its own, so that every layout starts from
//! the same nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use coxswain_console::parent;
use coxswain_console::say;
use coxswain_files::atomic::create_folder;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::cases::Case;
use super::{Verify, called};
use crate::failure::{FAILED, Failure};

/// The folder of a run's tokens and tokenizer.
const DATA: &str = "data";

/// How many lines of a failed run are shown: a cause, and the last words of a few workers.
const LAST_LINES: usize = 30;

/// How long a run may take to end in order after Ctrl-C, which the terminal sends to it as well.
/// Workers get two seconds of their own to leave.
const STOP: Duration = Duration::from_secs(5);

/// Runs `case` in `folder` to its end, with the prepared data of the run in `first`, unless
/// `stop` comes before.
pub(super) async fn run(
    args: &Verify,
    case: &Case,
    folder: &Path,
    first: Option<&Path>,
    stop: impl Future<Output = &'static str>,
) -> Result<(), Failure> {
    let called = called(&case.name);
    let called = if first.is_some() { called } else { format!("reference ({called})") };
    if let Some(first) = first {
        share(&first.join(DATA), &folder.join(DATA))?;
    }
    let start = Instant::now();
    let said =
        folder.with_file_name(format!("{}.log", folder.file_name().unwrap_or_default().to_string_lossy()));
    let mut child = spawn(args, case, folder, &said)?;
    let status = tokio::select! {
        status = child.wait() => status.with_context(|| format!("{called}: its process"))?,
        name = stop => return Err(end(child, name).await),
    };
    if !status.success() {
        return Err(failed(&called, status, &said));
    }
    let workers = case.spec.layout.world();
    let noun = if workers == 1 { "worker" } else { "workers" };
    say(&format!(
        "{called}: {} steps on {workers} {noun}, {:.1} s",
        args.steps,
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn spawn(args: &Verify, case: &Case, folder: &Path, said: &PathBuf) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("where this program lies cannot be told")?;
    let log = File::create(said).with_context(|| format!("{} cannot be written", said.display()))?;
    let job = std::path::absolute(&args.job.job).context("the current folder cannot be told")?;
    let mut command = Command::new(&program);
    command
        .arg("up")
        .args(parent::options())
        .arg(job)
        .arg("--workers")
        .arg(case.spec.layout.world().to_string());
    command.arg("--out").arg(folder).arg("--device").arg(&args.device);
    for set in &case.sets {
        command.arg(format!("--set={set}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    command.spawn().with_context(|| format!("{} does not start", program.display()))
}

/// Workers notice that their coordinator is gone, and end.
async fn end(mut child: Child, name: &str) -> Failure {
    if name == "SIGTERM" || timeout(STOP, child.wait()).await.is_err() {
        // An error means that it has just ended.
        let _ = child.kill().await;
    }
    say(&format!("ended by {name}: there is no certificate"));
    Failure::Said(FAILED)
}

fn failed(called: &str, status: ExitStatus, said: &Path) -> Failure {
    let bytes = fs::read(said).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let last: String = last.iter().map(|line| format!("\n    {line}")).collect();
    anyhow!("{called}: the run ended with {status}; the end of {}:{last}", said.display()).into()
}

/// Gives the files of a folder a second name, so that texts are read and the tokenizer is trained
/// once. Prepared files are never written in place. Where the file system has no second names, they
/// are copied.
fn share(from: &Path, to: &Path) -> anyhow::Result<()> {
    create_folder(to).with_context(|| format!("{} cannot be made", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))?;
    for entry in entries {
        let name = entry.with_context(|| format!("{} cannot be read", from.display()))?.file_name();
        let (from, to) = (from.join(&name), to.join(&name));
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).with_context(|| format!("{} cannot be written", to.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_data_is_shared() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a/data"), folder.path().join("b/data"));
        fs::create_dir_all(&from).unwrap();
        fs::write(from.join("train.tokens"), "tokens").unwrap();
        share(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("train.tokens")).unwrap(), "tokens");
        let missing = share(&folder.path().join("c"), &to).unwrap_err();
        assert!(format!("{missing:#}").contains("cannot be read"), "{missing:#}");
    }

    #[test]
    fn a_failed_run_shows_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let said = folder.path().join("tp2.log");
        let lines: Vec<_> = (0..50).map(|i| format!("line {i}")).collect();
        fs::write(&said, lines.join("\n")).unwrap();
        let status = std::process::Command::new("false").status().unwrap();
        let Failure::Failed(error) = failed("layout tp2", status, &said) else { panic!("another failure") };
        let text = format!("{error:#}");
        assert!(text.starts_with("layout tp2: the run ended with exit status: 1"), "{text}");
        assert!(text.ends_with("line 49") && text.contains("line 20") && !text.contains("line 19"), "{text}");
    }
}
