//! Exit codes of a worker: 0 only where no other has to be started in its place.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::signal;
use coxswain_tests::{Folder, SOON, Site, programs, wait_until};

/// A worker whose coordinator is not there.
fn alone(more: &[&str]) -> Result<Child> {
    let mut command = Command::new(programs("coxswain-worker")?);
    command.args(["--coordinator", "127.0.0.1:1"]).args(more).stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting a worker")
}

fn code(child: &mut Child) -> Result<Option<i32>> {
    wait_until("the end of a worker", SOON, || !matches!(child.try_wait(), Ok(None)))?;
    Ok(child.wait()?.code())
}

#[test]
fn a_worker_that_a_signal_ends_is_to_be_started_again() -> Result<()> {
    let folder = Folder::new()?;
    let mut site = Site::new(&folder, 2)?;
    for (worker, sign, expected) in [(0, "TERM", 143), (1, "INT", 130)] {
        site.wait_for_worker(&format!("w{worker}"))?;
        signal(site.worker(worker), sign)?;
        ensure!(site.exit_code(worker)? == Some(expected), "{sign}");
    }
    Ok(())
}

#[test]
fn a_drained_worker_ends_with_0_and_a_refused_one_does_not() -> Result<()> {
    let folder = Folder::new()?;
    let mut site = Site::new(&folder, 1)?;
    site.wait_for_worker("w0")?;
    // A newer process of its name takes its place.
    site.join_as("w0")?;
    ensure!(site.exit_code(0)? == Some(3), "a worker that was replaced: {}", site.log(0)?);
    wait_until("the newer one", SOON, || site.coxswain(&["drain", "w0"]).is_ok_and(|(done, _)| done))?;
    ensure!(site.exit_code(1)? == Some(0), "a drained worker: {}", site.log(0)?);
    Ok(())
}

#[test]
fn a_tied_worker_ends_with_the_program_that_started_it() -> Result<()> {
    let mut worker = alone(&["--tied"])?;
    drop(worker.stdin.take());
    ensure!(code(&mut worker)? == Some(1));
    Ok(())
}

/// A coordinator would refuse the name each time that the worker came back.
#[test]
fn a_worker_whose_name_no_coordinator_takes_does_not_start() -> Result<()> {
    for name in ["w0\n", &"x".repeat(200)] {
        ensure!(code(&mut alone(&["--name", name])?)? == Some(2), "{name:?}");
    }
    Ok(())
}

/// An admin's shell has the variable for other commands.
#[test]
fn a_join_token_goes_before_a_folder_that_the_environment_names() -> Result<()> {
    let folder = Folder::new()?;
    let token = folder.path().join("token");
    std::fs::write(&token, "no token")?;
    let (token, tls) = (token.display().to_string(), folder.path().join("tls").display().to_string());
    let rows: [(&[&str], bool); 2] = [(&[], false), (&["--tls-dir", "elsewhere"], true)];
    for (more, both) in rows {
        let mut command = Command::new(programs("coxswain-worker")?);
        command.args(["--coordinator", "127.0.0.1:1", "--join-file", &token]).args(more);
        let output = command.env("COXSWAIN_TLS_DIR", &tls).output().context("starting a worker")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{said}");
        ensure!(said.contains("leave one of them out") == both, "{said}");
        ensure!(said.contains("--join-file") != both, "{said}");
    }
    Ok(())
}
