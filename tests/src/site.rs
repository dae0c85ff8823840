//! A coordinator and workers that only the test starts, stops or starts again.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::signal;
use crate::run::{RUN_MAX, wait_until_told};
use crate::{EMULATED, Folder, Run, Summary, emulated_gpu, events, programs, wait_until};

/// A loaded machine may take this long for what takes a second.
pub const SOON: Duration = Duration::from_secs(60);

/// A coordinator, its workers and their logs; all are killed at the end.
#[derive(Debug)]
pub struct Site<'a> {
    folder: &'a Folder,
    address: String,
    coordinator: Child,
    workers: Vec<Child>,
    device: &'static str,
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

fn append(log: PathBuf) -> Result<Stdio> {
    Ok(std::fs::File::options().append(true).create(true).open(log).context("a log")?.into())
}

fn start(program: &str, stderr: Stdio, args: &[&str]) -> Result<Child> {
    let mut command = Command::new(programs(program)?);
    if args.contains(&EMULATED) {
        command.env("COXSWAIN_EMULATED_GPU", emulated_gpu()?);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    command.spawn().with_context(|| format!("starting {program}"))
}

impl<'a> Site<'a> {
    /// Starts it, with workers `w0`, `w1` and so on.
    ///
    /// # Errors
    /// Where a program does not start.
    pub fn new(folder: &'a Folder, workers: usize) -> Result<Site<'a>> {
        Site::on(folder, workers, "cpu")
    }

    /// Starts it, with workers that compute on `device`.
    ///
    /// # Errors
    /// Where a program does not start.
    pub fn on(folder: &'a Folder, workers: usize, device: &'static str) -> Result<Site<'a>> {
        // A port that is free now, and that a coordinator can take again and again.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let coordinator = Site::serve(folder, &address)?;
        let mut site = Site { folder, address, coordinator, workers: Vec::new(), device };
        (0..workers).try_for_each(|_| site.join())?;
        Ok(site)
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn join(&mut self) -> Result<()> {
        self.join_as(&format!("w{}", self.workers.len()))
    }

    /// Starts one more worker, of this name.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn join_as(&mut self, name: &str) -> Result<()> {
        let log = append(self.folder.path().join(format!("{name}.log")))?;
        self.start_worker(name, log)
    }

    /// The exit code of a worker that ends.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn exit_code(&mut self, index: usize) -> Result<Option<i32>> {
        let worker = &mut self.workers[index];
        wait_until("the end of a worker", SOON, || !matches!(worker.try_wait(), Ok(None)))?;
        Ok(worker.wait()?.code())
    }

    /// Starts one more worker, which logs to `stderr`.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn join_with(&mut self, stderr: Stdio) -> Result<()> {
        self.start_worker(&format!("w{}", self.workers.len()), stderr)
    }

    fn start_worker(&mut self, name: &str, stderr: Stdio) -> Result<()> {
        let url = self.url();
        let args = ["--coordinator", &url, "--name", name, "--device", self.device, "--shares-cores"];
        self.workers.push(start("coxswain-worker", stderr, &args)?);
        Ok(())
    }

    /// The process of a worker.
    pub fn worker(&self, index: usize) -> u32 {
        self.workers[index].id()
    }

    /// What a worker has logged.
    ///
    /// # Errors
    /// Where there is no such worker.
    pub fn log(&self, index: usize) -> Result<String> {
        let path = self.folder.path().join(format!("w{index}.log"));
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// What the coordinator has logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default()
    }

    /// The coordinator's address, as workers and people call it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn serve(folder: &Folder, address: &str) -> Result<Child> {
        let data = folder.path().join("coordinator").to_string_lossy().into_owned();
        let log = append(folder.path().join("serve.log"))?;
        start("coxswain", log, &["serve", "--listen", address, "--data-dir", &data])
    }

    /// Kills the coordinator; after `away` it is started again.
    ///
    /// # Errors
    /// Where it cannot be killed or started.
    pub fn kill_coordinator(&mut self, away: Duration) -> Result<()> {
        signal(self.coordinator.id(), "KILL")?;
        self.coordinator.wait().context("reaping the coordinator")?;
        std::thread::sleep(away);
        self.coordinator = Site::serve(self.folder, &self.address)?;
        Ok(())
    }

    /// Submits a run with further changes, once the coordinator answers; the job's id.
    ///
    /// # Errors
    /// Where it does not answer, or refuses.
    pub fn submit(&self, run: &Run, sets: &[&str]) -> Result<String> {
        let submission = run.submission();
        let mut submit = vec!["submit"];
        submit.extend(submission.iter().map(String::as_str));
        submit.extend(sets.iter().flat_map(|set| ["--set", set]));
        let mut answer = String::new();
        let submitted = wait_until("a coordinator", SOON, || {
            self.coxswain(&submit).is_ok_and(|(done, said)| {
                answer = said;
                done
            })
        });
        submitted.with_context(|| format!("`coxswain submit` said:\n{answer}"))?;
        Ok(answer.lines().last().context("`submit` prints the job's id")?.to_owned())
    }

    /// Submits this run, follows it to a good end and reads what it left. Its workers take the next one after it.
    ///
    /// # Errors
    /// Where it is refused, fails, or takes too long.
    pub fn summary(&self, run: &Run) -> Result<Summary> {
        let job = self.submit(run, &[])?;
        let mut watch = self.command(&["watch", &job])?;
        let log = run.out().with_extension("stderr");
        watch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(append(log)?);
        let outcome = run.wait(watch.spawn().context("starting `coxswain watch`")?, RUN_MAX);
        let outcome = outcome.with_context(|| format!("the coordinator said:\n{}", self.said()))?;
        ensure!(
            outcome.code == Some(0),
            "exit code {:?}; it said:\n{}\nthe coordinator said:\n{}",
            outcome.code,
            outcome.stderr,
            self.said()
        );
        run.read()
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs("coxswain")?);
        command.args(args).args(["--coordinator", &self.url()]);
        Ok(command)
    }

    /// Whether a command of `coxswain` went well, and what it printed.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn coxswain(&self, args: &[&str]) -> Result<(bool, String)> {
        let output = self.command(args)?.output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// What happened so far.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn events(&self) -> Result<Vec<serde_json::Value>> {
        events::events(&self.folder.path().join("coordinator"))
    }

    /// Whether this holds of what happened so far; not while the coordinator has no journal.
    pub fn tells(&self, holds: impl FnOnce(&[serde_json::Value]) -> bool) -> bool {
        self.events().is_ok_and(|events| holds(&events))
    }

    /// Waits until a worker of this name has joined: `coxswain status` lists it. The journal has workers that join
    /// while there is a job, and no others.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_for_worker(&self, name: &str) -> Result<()> {
        let listed = || {
            let told = self.coxswain(&["status"]);
            told.is_ok_and(|(_, text)| text.split_whitespace().any(|word| word == name))
        };
        wait_until_told(name, SOON, listed).map(drop)
    }

    /// Waits until the generation of this number, or a later one, is formed.
    ///
    /// # Errors
    /// There is none in time; the coordinator's log is in the error.
    pub fn wait_for_generation(&self, number: u64, limit: Duration) -> Result<()> {
        let what = format!("generation {number}");
        let formed = wait_until_told(&what, limit, || self.tells(|all| events::generation(all) >= number));
        formed.map(drop).with_context(|| format!("the coordinator said:\n{}", self.said()))
    }

    /// Waits for a good end of the job. Its last checkpoint can be read then, and not yet when a worker says that it is.
    ///
    /// # Errors
    /// It does not end in time, or ends badly.
    pub fn wait_for_end(&self) -> Result<()> {
        let mut ending = None;
        wait_until_told("the end", SOON, || {
            self.tells(|all| {
                ending = events::ending(all).map(str::to_owned);
                ending.is_some()
            })
        })?;
        let said = || format!("the job ended as {ending:?}; the coordinator said:\n{}", self.said());
        ensure!(ending.as_deref() == Some("done"), "{}", said());
        Ok(())
    }
}
