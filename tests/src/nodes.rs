//! Nodes: network namespaces with interfaces of their own, so that no address is the loopback's, and a cluster on them
//! with its coordinator on the first.
//!
//! Needs root and `ip`.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::system;
use crate::{Folder, Run, Summary, events, programs, skip, wait_until};

/// The interface between the nodes, by the same name on both.
const LINK: &str = "cox0";
/// The coordinator's port.
const PORT: u16 = 7070;
const PATIENCE: Duration = Duration::from_secs(20);

/// Namespaces with a cluster's processes; removed when it is dropped.
#[derive(Debug)]
pub struct Nodes {
    /// The name and the address of each.
    nodes: Vec<(String, String)>,
    /// Where workers run. The coordinator is on the first node.
    workers: [usize; 2],
}

impl Nodes {
    /// Two nodes on one network. `name` is a few letters that no other test uses.
    ///
    /// # Errors
    /// Where this machine does not let one make them.
    pub fn pair(name: &str) -> Result<Nodes> {
        let nodes = Nodes::named(name, &["10.213.77.1", "10.213.77.2"], [0, 1])?;
        nodes.wire((0, LINK, "10.213.77.1"), (1, LINK, "10.213.77.2"))?;
        Ok(nodes)
    }

    /// A node with the coordinator, and one on each side of it with a worker, which reach each other by way of it.
    ///
    /// # Errors
    /// As [`Nodes::pair`].
    pub fn routed(name: &str) -> Result<Nodes> {
        let nodes = Nodes::named(name, &["10.213.78.1", "10.213.78.2", "10.213.79.2"], [1, 2])?;
        nodes.wire((0, "cox1", "10.213.78.1"), (1, LINK, "10.213.78.2"))?;
        nodes.wire((0, "cox2", "10.213.79.1"), (2, LINK, "10.213.79.2"))?;
        for (at, way) in [(1, "10.213.78.1"), (2, "10.213.79.1")] {
            system(&["ip", "-n", nodes.name(at), "route", "add", "default", "via", way])?;
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        system(&["ip", "netns", "exec", nodes.name(0), "sh", "-c", forward])?;
        Ok(nodes)
    }

    fn named(name: &str, addresses: &[&str], workers: [usize; 2]) -> Result<Nodes> {
        let node = |(at, address): (usize, &&str)| (format!("coxswain-{name}-{at}"), (*address).to_owned());
        let nodes = Nodes { nodes: addresses.iter().enumerate().map(node).collect(), workers };
        nodes.remove();
        for (node, _) in &nodes.nodes {
            system(&["ip", "netns", "add", node])?;
            system(&["ip", "-n", node, "link", "set", "lo", "up"])?;
        }
        Ok(nodes)
    }

    /// Joins two nodes by an interface on each.
    fn wire(&self, one: (usize, &str, &str), other: (usize, &str, &str)) -> Result<()> {
        let (first, second) = (self.name(one.0), self.name(other.0));
        system(&[
            "ip", "link", "add", one.1, "netns", first, "type", "veth", "peer", "name", other.1, "netns",
            second,
        ])?;
        for (at, interface, address) in [one, other] {
            let node = self.name(at);
            system(&["ip", "-n", node, "addr", "add", &format!("{address}/24"), "dev", interface])?;
            system(&["ip", "-n", node, "link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Has nothing pass from the first worker's node to the second's, and back where `both`; what was refused passes
    /// again where `heal`.
    ///
    /// # Errors
    /// Where it cannot be done.
    pub fn cut(&self, both: bool, heal: bool) -> Result<()> {
        let what = if heal { "del" } else { "add" };
        let ways = [("cox1", "10.213.79.0/24"), ("cox2", "10.213.78.2/32")];
        for (from, to) in ways.into_iter().take(if both { 2 } else { 1 }) {
            system(&["ip", "-n", self.name(0), "rule", what, "iif", from, "to", to, "blackhole"])?;
        }
        Ok(())
    }

    /// A node's name.
    pub fn name(&self, at: usize) -> &str {
        &self.nodes[at].0
    }

    /// A node's address.
    pub fn address(&self, at: usize) -> &str {
        &self.nodes[at].1
    }

    /// A command for a node.
    pub fn on(&self, at: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(at)]).arg(program).stdin(Stdio::null());
        command
    }

    fn remove(&self) {
        for (node, _) in &self.nodes {
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

/// The nodes, or none where this machine has none; then the caller's skip is noted.
///
/// # Errors
/// As [`skip::not_made`].
#[track_caller]
pub fn here(nodes: Result<Nodes>) -> Result<Option<Nodes>> {
    match nodes {
        Ok(nodes) => Ok(Some(nodes)),
        Err(why) => {
            skip::not_made("network namespaces", &format!("{why:#}")).map_err(anyhow::Error::msg)?;
            Ok(None)
        }
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

/// A coordinator on the first node, and two workers.
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
        init.args(["certs", "init", "--host", nodes.address(0), "--dir"]).arg(&tls);
        ensure!(init.output()?.status.success(), "no certificates");
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let url = format!("https://{}:{PORT}", nodes.address(0));
        let admin = tls.join("people").join("admin");
        let caller = vec!["--coordinator".to_owned(), url.clone(), "--tls-dir".to_owned(), path(&admin)];
        let token = folder.path().join(format!("{name}-token"));
        let mut worker = vec!["--coordinator".to_owned(), url, "--join-file".to_owned(), path(&token)];
        worker.extend(options.iter().map(|option| (*option).to_owned()));
        Cluster::start(
            nodes,
            folder,
            name,
            caller,
            &["--tls-dir", &path(&tls), "--data-root", &path(folder.path()), "--runs-root", "/"]
                .map(str::to_owned),
            &worker,
        )
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
        for at in nodes.workers {
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

    /// What has happened, as the coordinator's journal has it.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn events(&self) -> Result<Vec<serde_json::Value>> {
        events::events(&self.folder.path().join(format!("{}-state", self.name)))
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
