//! What ends a run ends it soon, by name, and leaves no process behind.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::{children, is_alive, lines, signal, system};
use coxswain_tests::{Folder, Run, Site, programs, skip, wait_until};

/// Within this time a run whose worker or coordinator is gone must have ended.
const END: Duration = Duration::from_secs(10);
/// A loaded machine may take this long to get four workers to their third step.
const START: Duration = Duration::from_secs(60);

/// A run that would go on for hours, at its third step: the `up` process and its workers.
fn running(run: &Run) -> Result<(Child, Vec<u32>)> {
    let child = run.start()?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("three steps", START, || lines(&metrics) >= 3)?;
    let workers = children(child.id())?;
    Ok((child, workers))
}

fn endless(folder: &Folder, name: &str) -> Run {
    folder.run(name).layout(2, 1, 2).set("train.steps=1000000").set("recovery.on_loss=fail")
}

fn expect_gone(pids: &[u32]) -> Result<()> {
    wait_until("the end of all workers", END, || !pids.iter().any(|&pid| is_alive(pid))).map(drop)
}

#[test]
fn a_lost_worker_ends_the_run_by_name() -> Result<()> {
    let folder = Folder::new()?;
    for (name, sign, said) in
        [("killed", "KILL", "signal 9"), ("stopped", "STOP", "worker-"), ("asked to stop", "TERM", "SIGTERM")]
    {
        let run = endless(&folder, name);
        let (child, workers) = running(&run)?;
        ensure!(workers.len() == 4, "{name}: workers {workers:?}");
        signal(workers[2], sign)?;
        let start = Instant::now();
        let outcome = run.wait(child, 2 * END)?;
        println!("{name}: the run ended after {:?}\n{}", start.elapsed(), outcome.stderr);
        ensure!(start.elapsed() < END, "{name}: the end took {:?}", start.elapsed());
        ensure!(outcome.code == Some(1), "{name}: exit code {:?}", outcome.code);
        let pid = format!("pid {}", workers[2]);
        ensure!(
            outcome.stderr.contains(&pid),
            "{name}: the message does not name {pid}:\n{}",
            outcome.stderr
        );
        ensure!(outcome.stderr.contains(said), "{name}: the message lacks `{said}`:\n{}", outcome.stderr);
        expect_gone(&workers)?;
    }
    Ok(())
}

#[test]
fn stopping_up_stops_all_of_it() -> Result<()> {
    let folder = Folder::new()?;
    for sign in ["INT", "TERM", "KILL"] {
        let run = endless(&folder, sign);
        let (child, workers) = running(&run)?;
        signal(child.id(), sign)?;
        let outcome = run.wait(child, END)?;
        // A coordinator that was killed says nothing; its workers notice by themselves.
        let code = if sign == "KILL" { None } else { Some(1) };
        ensure!(outcome.code == code, "{sign}: exit code {:?}\n{}", outcome.code, outcome.stderr);
        expect_gone(&workers)?;
        if code.is_some() {
            // The step at hand is saved, and nothing went wrong.
            let saved = coxswain_files::latest(&run.out().into())?.map(|(step, _)| step as usize);
            let taken = lines(&run.out().join("metrics.jsonl"));
            ensure!(saved == Some(taken), "{sign}: {saved:?} of {taken} steps\n{}", outcome.stderr);
            let log = std::fs::read_to_string(run.out().join("logs/worker-0.log"))?;
            ensure!(!log.contains("ERROR"), "{sign}:\n{log}");
        }
    }
    Ok(())
}

#[test]
fn a_worker_alone_can_be_stopped_too() -> Result<()> {
    let folder = Folder::new()?;
    for sign in ["TERM", "KILL"] {
        let run = folder.run(sign).set("train.steps=1000000").set("recovery.on_loss=fail");
        let (child, workers) = running(&run)?;
        let start = Instant::now();
        signal(workers[0], sign)?;
        let outcome = run.wait(child, END)?;
        ensure!(outcome.code == Some(1) && start.elapsed() < END, "{sign}: {:?}", outcome.code);
        expect_gone(&workers)?;
        let log = std::fs::read_to_string(run.out().join("logs/worker-0.log"))?;
        ensure!(sign == "KILL" || !log.contains("did not end"), "the engine had to be left behind:\n{log}");
    }
    Ok(())
}

#[test]
fn workers_need_no_reader_of_their_logs() -> Result<()> {
    let folder = Folder::new()?;
    let run = folder.run("unheard");
    let mut site = Site::new(&folder, 0)?;
    site.join_with(File::options().write(true).open("/dev/full")?.into())?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    site.join_with(writer.into())?;
    site.submit(&run, &["layout.pipeline=2"])?;
    site.wait_for_end()?;
    ensure!(run.read()?.losses.len() == 20, "not all steps are noted");
    Ok(())
}

#[test]
fn a_full_disk_is_said_and_the_last_checkpoint_stays() -> Result<()> {
    let folder = Folder::new()?;
    let run = folder.run("small").set("train.steps=30").set("checkpoint.keep=1").set("checkpoint.every=10");
    std::fs::create_dir(run.out())?;
    let path = run.out().to_string_lossy().into_owned();
    // Room for one checkpoint of 1.6 MB and not for a second beside it.
    if let Err(why) = system(&["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", &path]) {
        return skip::not_made("a small file system", &format!("{why:#}")).map_err(anyhow::Error::msg);
    }
    let result = (|| {
        std::fs::write(run.out().join("ballast"), vec![0; 500_000])?;
        let outcome = run.outcome()?;
        ensure!(outcome.code == Some(1), "exit code {:?}\n{}", outcome.code, outcome.stderr);
        ensure!(outcome.stderr.contains("No space left"), "{}", outcome.stderr);
        let (step, folder) = coxswain_files::latest(&run.out().into())?.context("no checkpoint is left")?;
        ensure!(step == 10, "the newest checkpoint is of step {step}");
        coxswain_files::Checkpoint::open(&folder, None)?.verify()?;
        Ok(())
    })();
    system(&["umount", "-l", &path])?;
    result
}

#[test]
fn bad_input_is_refused_before_anything_starts() -> Result<()> {
    let folder = Folder::new()?;
    let job = folder.job().to_string_lossy().into_owned();
    let missing = folder.path().join("none.yaml").to_string_lossy().into_owned();
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    let data = folder.path().join("data-dir").to_string_lossy().into_owned();
    let up = |rest: &[&'static str]| [vec!["up", job.as_str(), "--workers", "1"], rest.to_vec()].concat();
    for (words, code, said) in [
        (up(&["--set", "model.heads=5"]), 2, "model.heads"),
        (up(&["--set", "model.hads=4"]), 2, "heads"),
        (up(&["--set", "layout.pipeline=2"]), 2, "worker"),
        (up(&["--set", "layout.pipeline=5"]), 2, "layers"),
        (up(&["--set", "layout.data=9"]), 2, "layout.data"),
        (up(&["--set", "layout.tensor=3"]), 2, "layout.tensor"),
        (up(&["--set", "data.text=nowhere.txt"]), 2, "nowhere.txt"),
        (up(&["--device", "tpu"]), 2, "unknown device; must be cpu, cuda or cuda:N"),
        (vec!["up", &missing, "--workers", "1"], 2, "none.yaml"),
        (vec!["plan", &job, "--workers", "0"], 2, "worker"),
        (vec!["serve", "--listen", "0.0.0.0:0", "--data-dir", &data], 2, "--insecure-network"),
        (vec!["serve", "--listen", &taken, "--data-dir", &data], 2, "in use"),
        (vec!["status", "--coordinator", "http://127.0.0.1:1"], 1, "127.0.0.1:1"),
        (vec!["generate", "--checkpoint", "/nowhere", "--prompt", "x"], 1, "/nowhere"),
    ] {
        let out = folder.path().join("refused");
        let mut command = Command::new(programs("coxswain")?);
        command.args(&words).env("RUST_BACKTRACE", "0");
        if words[0] == "up" {
            command.arg("--out").arg(&out);
        }
        let output = command.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        println!("{words:?}\n{stderr}");
        ensure!(output.status.code() == Some(code), "{words:?}: exit {:?}\n{stderr}", output.status.code());
        ensure!(stderr.contains(said), "{words:?}: `{said}` is not said:\n{stderr}");
        ensure!(!stderr.contains("panicked"), "{stderr}");
    }
    Ok(())
}
