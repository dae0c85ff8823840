//! Two nodes: network namespaces with an interface each, so that no address is the loopback's, and a cluster on them
//! with its coordinator on the first.
//!
//! Needs root and `ip`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::system;
use crate::{Folder, Run, Summary, programs, wait_until};

/// The interface between the nodes, by the same name on both.
const LINK: &str = "cox0";
/// The coordinator's port.
const PORT: u16 = 7070;
const PATIENCE: Duration = Duration::from_secs(20);

/// Two namespaces, joined by a pair of interfaces; removed when it is dropped.
#[derive(Debug)]
pub struct Nodes {
    names: [String; 2],
}

impl Nodes {
    /// Two nodes that nobody else calls by `name`, of a few letters.
    ///
    /// # Errors
    /// Where this machine does not let one make them.
    pub fn new(name: &str) -> Result<Nodes> {
        let nodes = Nodes { names: ["a", "b"].map(|end| format!("coxswain-{name}-{end}")) };
        nodes.remove();
        for node in &nodes.names {
            system(&["ip", "netns", "add", node])?;
        }
        let [first, second] = &nodes.names;
        system(&[
            "ip", "link", "add", LINK, "netns", first, "type", "veth", "peer", "name", LINK, "netns", second,
        ])?;
        for at in 0..2 {
            let node = &nodes.names[at];
            system(&["ip", "-n", node, "addr", "add", &format!("{}/24", nodes.address(at)), "dev", LINK])?;
            system(&["ip", "-n", node, "link", "set", LINK, "up"])?;
            system(&["ip", "-n", node, "link", "set", "lo", "up"])?;
        }
        Ok(nodes)
    }

    /// A node's name.
    pub fn name(&self, at: usize) -> &str {
        &self.names[at]
    }

    /// A node's address.
    pub fn address(&self, at: usize) -> String {
        format!("10.213.77.{}", at + 1)
    }

    /// A command for a node.
    pub fn on(&self, at: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[at]]).arg(program).stdin(Stdio::null());
        command
    }

    fn remove(&self) {
        for node in &self.names {
            // It may not be there.
            drop(system(&["ip", "netns", "del", node]));
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Ends its processes when dropped.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A coordinator on the first node, and a worker on each.
pub struct Cluster<'a> {
    nodes: &'a Nodes,
    folder: &'a Folder,
    name: String,
    /// What people say to reach the coordinator.
    caller: Vec<String>,
    _processes: Processes,
}

impl<'a> Cluster<'a> {
    /// A cluster without certificates.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn plain(nodes: &'a Nodes, folder: &'a Folder, name: &str) -> Result<Cluster<'a>> {
        let caller = vec!["--coordinator".to_owned(), format!("http://{}:{PORT}", nodes.address(0))];
        let worker: Vec<_> = caller.clone();
        Cluster::start(nodes, folder, name, caller, &["--insecure-network".to_owned()], &worker)
    }

    /// A cluster with certificates, whose workers have more options.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn secure(nodes: &'a Nodes, folder: &'a Folder, name: &str, options: &[&str]) -> Result<Cluster<'a>> {
        let tls = folder.path().join(format!("{name}-tls"));
        let mut init = Command::new(programs("coxswain")?);
        init.args(["certs", "init", "--host", &nodes.address(0), "--dir"]).arg(&tls);
        ensure!(init.output()?.status.success(), "no certificates");
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let url = format!("https://{}:{PORT}", nodes.address(0));
        let admin = tls.join("people").join("admin");
        let caller = vec!["--coordinator".to_owned(), url.clone(), "--tls-dir".to_owned(), path(&admin)];
        let token = folder.path().join(format!("{name}-token"));
        let mut worker = vec!["--coordinator".to_owned(), url, "--join-file".to_owned(), path(&token)];
        worker.extend(options.iter().map(|option| (*option).to_owned()));
        Cluster::start(nodes, folder, name, caller, &["--tls-dir".to_owned(), path(&tls)], &worker)
    }

    fn start(
        nodes: &'a Nodes,
        folder: &'a Folder,
        name: &str,
        caller: Vec<String>,
        serve: &[String],
        worker: &[String],
    ) -> Result<Cluster<'a>> {
        let log =
            |what: &str| File::create(folder.path().join(format!("{name}-{what}.log"))).context("a log");
        let mut coordinator = nodes.on(0, &programs("coxswain")?);
        coordinator.args(["serve", "--listen", &format!("{}:{PORT}", nodes.address(0)), "--data-dir"]);
        coordinator.arg(folder.path().join(format!("{name}-state"))).args(serve);
        let mut processes = Processes(vec![coordinator.stderr(log("serve")?).stdout(Stdio::null()).spawn()?]);
        let coxswain = |at: usize, words: &[&str]| -> Result<Command> {
            let mut command = nodes.on(at, &programs("coxswain")?);
            command.args(words).args(&caller);
            Ok(command)
        };
        // The coordinator answers once it listens.
        wait_until("an answer of the coordinator", PATIENCE, || {
            coxswain(1, &["status"])
                .and_then(|mut status| Ok(status.output()?))
                .is_ok_and(|output| output.status.success())
        })?;
        if worker.iter().any(|option| option == "--join-file") {
            let output = coxswain(0, &["token", "create", "--role", "worker", "--uses", "2"])?.output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fs::write(folder.path().join(format!("{name}-token")), output.stdout)?;
        }
        for at in 0..2 {
            let mut command = nodes.on(at, &programs("coxswain-worker")?);
            command.args(worker).args(["--name", nodes.name(at)]).stdout(Stdio::null());
            processes.0.push(command.stderr(log(nodes.name(at))?).spawn()?);
        }
        Ok(Cluster { nodes, folder, name: name.to_owned(), caller, _processes: processes })
    }

    /// A call of somebody on the second node.
    ///
    /// # Errors
    /// Where the program is missing.
    pub fn call(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.nodes.on(1, &programs("coxswain")?);
        command.args(words).args(&self.caller);
        Ok(command)
    }

    /// What a worker has logged.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn log(&self, at: usize) -> Result<String> {
        let name = format!("{}-{}.log", self.name, self.nodes.name(at));
        Ok(fs::read_to_string(self.folder.path().join(name))?)
    }

    /// Submits the folder's job, with these keys changed. Its id, and the run that it leaves.
    ///
    /// # Errors
    /// Where it is refused.
    pub fn submit(&self, sets: &[&str]) -> Result<(String, Run)> {
        let run = Run::new(&self.folder.job(), self.folder.path().join(&self.name));
        let mut submit = self.call(&["submit"])?;
        submit.arg(self.folder.job()).arg("--directory").arg(run.out());
        submit.args(sets.iter().flat_map(|set| ["--set", set]));
        let output = submit.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok((String::from_utf8_lossy(&output.stdout).trim().to_owned(), run))
    }

    /// Trains the folder's job, with these keys changed, and returns what it left.
    ///
    /// # Errors
    /// Where it does not end well.
    pub fn train(&self, sets: &[&str]) -> Result<(Run, Summary)> {
        let (job, run) = self.submit(sets)?;
        let output = self.call(&["watch", &job])?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "watch: {said}");
        ensure!(
            String::from_utf8_lossy(&output.stdout).lines().count() >= 20,
            "a line for each step: {said}"
        );
        let summary = run.read()?;
        Ok((run, summary))
    }
}
