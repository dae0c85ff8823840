//! A coordinator that is killed costs nothing: its workers go on, and it finds them when it is back. Workers that
//! nobody starts again: the run shrinks, grows when others come, and lets one go at the end of a step.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::{lines, signal};
use coxswain_tests::{Folder, Run, programs, wait_until};

const STEPS: usize = 300;
/// A loaded machine may take this long for what takes a second.
const SOON: Duration = Duration::from_secs(60);
/// Between two kills.
const CALM: Duration = Duration::from_millis(700);

/// A coordinator, its workers and their logs; all are killed at the end.
struct Site<'a> {
    folder: &'a Folder,
    address: String,
    coordinator: Child,
    workers: Vec<Child>,
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        for process in self.workers.iter_mut().chain([&mut self.coordinator]) {
            // An error means that it has ended.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn start(program: &str, log: PathBuf, args: &[&str]) -> Result<Child> {
    let log = std::fs::File::options().append(true).create(true).open(log).context("a log")?;
    let mut command = Command::new(programs(program)?);
    command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("starting {program}"))
}

impl<'a> Site<'a> {
    fn new(folder: &'a Folder, workers: usize) -> Result<Site<'a>> {
        // A port that is free now, and that a coordinator can take again and again.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let coordinator = Site::serve(folder, &address)?;
        let mut site = Site { folder, address, coordinator, workers: Vec::new() };
        (0..workers).try_for_each(|_| site.join())?;
        Ok(site)
    }

    /// Starts one more worker.
    fn join(&mut self) -> Result<()> {
        let (name, url) = (format!("w{}", self.workers.len()), self.url());
        let log = self.folder.path().join(format!("{name}.log"));
        self.workers.push(start("coxswain-worker", log, &["--coordinator", &url, "--name", &name])?);
        Ok(())
    }

    /// What the coordinator has logged.
    fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn serve(folder: &Folder, address: &str) -> Result<Child> {
        let data = folder.path().join("coordinator").to_string_lossy().into_owned();
        let log = folder.path().join("serve.log");
        start("coxswain", log, &["serve", "--listen", address, "--data-dir", &data])
    }

    /// Kills the coordinator; after `away` it is started again.
    fn kill_coordinator(&mut self, away: Duration) -> Result<()> {
        signal(self.coordinator.id(), "KILL")?;
        self.coordinator.wait().context("reaping the coordinator")?;
        std::thread::sleep(away);
        self.coordinator = Site::serve(self.folder, &self.address)?;
        Ok(())
    }

    fn coxswain(&self, args: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(programs("coxswain")?);
        let output = command.args(args).args(["--coordinator", &self.url()]).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Whether the job is done: its last checkpoint can be read then, and not yet when a worker says that it is.
    fn done(&self) -> bool {
        self.coxswain(&["explain", "tiny-1"]).is_ok_and(|(_, said)| said.contains("tiny-1 is done"))
    }
}

#[test]
fn a_killed_coordinator_interrupts_nothing() -> Result<()> {
    let folder = Folder::new()?;
    let steps = format!("train.steps={STEPS}");
    let calm = folder.run("calm").set(&steps).summary()?;
    let run: Run = folder.run("lived");
    let mut site = Site::new(&folder, 2)?;
    let (job, out) = (folder.job().to_string_lossy().into_owned(), run.out().to_string_lossy().into_owned());
    let submit = ["submit", &job, "--directory", &out, "--set", "layout.pipeline=2", "--set", &steps];
    wait_until("a coordinator", SOON, || site.coxswain(&submit).is_ok_and(|(done, _)| done))?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", SOON, || lines(&metrics) >= 3)?;
    for away_ms in [0, 300, 1500] {
        site.kill_coordinator(Duration::from_millis(away_ms))?;
        let before = lines(&metrics);
        wait_until("a step that is noted again", SOON, || lines(&metrics) > before.min(STEPS - 1))?;
        std::thread::sleep(CALM);
    }
    wait_until("the last step", SOON, || lines(&metrics) == STEPS)?;
    wait_until("the end", SOON, || site.done())?;
    let lived = run.read()?;
    if let Some(how) = lived.bits_differ(&calm) {
        anyhow::bail!("{how}");
    }
    for index in 0..2 {
        let log = std::fs::read_to_string(folder.path().join(format!("w{index}.log")))?;
        ensure!(log.matches("joining from").count() == 1, "w{index} joined more than once:\n{log}");
        ensure!(log.matches("lost the coordinator").count() == 3, "w{index} did not lose it:\n{log}");
    }
    let said = site.said();
    ensure!(!said.contains("workers are gathered"), "the run was interrupted:\n{said}");
    Ok(())
}

#[test]
fn a_run_shrinks_grows_and_lets_a_worker_go_with_the_same_bits() -> Result<()> {
    // Growth comes ten seconds after a formation at the soonest.
    const MANY: usize = 1500;
    let folder = Folder::new()?;
    let steps = format!("train.steps={MANY}");
    let sparse = ["--set", "checkpoint.every=100", "--set", "train.evaluate_every=0", "--set", &steps];
    let calm = folder.run("calm").set("checkpoint.every=100").set("train.evaluate_every=0").set(&steps);
    let calm = calm.summary()?;
    let run: Run = folder.run("lived").layout(2, 1, 2);
    let mut site = Site::new(&folder, 4)?;
    let (job, out) = (folder.job().to_string_lossy().into_owned(), run.out().to_string_lossy().into_owned());
    let layout = ["--set", "layout.pipeline=2", "--set", "layout.data=2", "--set", "recovery.on_loss=shrink"];
    let submit = [["submit", &job, "--directory", &out].as_slice(), &layout, &sparse].concat();
    wait_until("a coordinator", SOON, || site.coxswain(&submit).is_ok_and(|(done, _)| done))?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", SOON, || lines(&metrics) >= 3)?;
    signal(site.workers[3].id(), "KILL")?;
    wait_until("a smaller generation", SOON, || site.said().contains("generation=2"))?;
    let before = lines(&metrics);
    wait_until("its steps", SOON, || lines(&metrics) > before)?;
    site.join()?;
    wait_until("a generation of all again", SOON, || site.said().contains("generation=3"))?;
    site.join()?;
    let here = |name: &str| site.coxswain(&["status"]).is_ok_and(|(_, said)| said.contains(name));
    wait_until("a spare", SOON, || here("w5"))?;
    site.coxswain(&["drain", "w0"])?;
    wait_until("a generation without w0", SOON, || site.said().contains("generation=4"))?;
    wait_until("the last step", 3 * SOON, || lines(&metrics) == MANY)?;
    wait_until("the end", SOON, || site.done())?;
    let log = std::fs::read_to_string(folder.path().join("w1.log"))?;
    ensure!(log.matches("held in memory").count() == 3, "not all generations went on from memory:\n{log}");
    match run.read()?.bits_differ(&calm) {
        Some(how) => anyhow::bail!("{how}"),
        None => Ok(()),
    }
}
