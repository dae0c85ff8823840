//! Two nodes: network namespaces with an interface each, so that no address is the loopback's.
//!
//! Needs root and `ip`; where they are missing the test says so and passes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::system;
use coxswain_tests::{Folder, Run, programs, wait_until};

const NODES: [(&str, &str); 2] = [("coxswain-a", "10.213.77.1"), ("coxswain-b", "10.213.77.2")];

/// The namespaces, joined by a pair of interfaces; removed when it is dropped.
struct Network;

impl Network {
    fn new() -> Result<Network> {
        let network = Network;
        network.remove();
        for (node, _) in NODES {
            system(&["ip", "netns", "add", node])?;
        }
        system(&[
            "ip", "link", "add", "cox0", "netns", NODES[0].0, "type", "veth", "peer", "name", "cox0",
            "netns", NODES[1].0,
        ])?;
        for (node, address) in NODES {
            system(&["ip", "-n", node, "addr", "add", &format!("{address}/24"), "dev", "cox0"])?;
            system(&["ip", "-n", node, "link", "set", "cox0", "up"])?;
            system(&["ip", "-n", node, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    fn remove(&self) {
        for (node, _) in NODES {
            // It may not be there.
            drop(system(&["ip", "netns", "del", node]));
        }
    }
}

impl Drop for Network {
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

fn on(node: &str, program: &str) -> Result<Command> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", node]).arg(programs(program)?);
    command.stdin(Stdio::null());
    Ok(command)
}

#[test]
fn two_nodes_give_the_bits_of_one() -> Result<()> {
    let network = match Network::new() {
        Ok(network) => network,
        Err(why) => {
            println!("skipped, for two network namespaces cannot be made: {why:#}");
            return Ok(());
        }
    };
    let folder = Folder::new()?;
    let one = folder.run("one").summary()?;

    let (node, address) = NODES[0];
    let url = format!("http://{address}:7070");
    let log = |name: &str| std::fs::File::create(folder.path().join(name)).context("a log");
    let data = folder.path().join("coordinator");
    let mut serve = on(node, "coxswain")?;
    serve
        .args(["serve", "--listen", &format!("{address}:7070"), "--insecure-network", "--data-dir"])
        .arg(&data);
    let mut processes = Processes(vec![serve.stderr(log("serve.log")?).stdout(Stdio::null()).spawn()?]);
    for (node, _) in NODES {
        let mut worker = on(node, "coxswain-worker")?;
        worker.args(["--coordinator", &url, "--name", node]);
        processes.0.push(worker.stderr(log(&format!("{node}.log"))?).stdout(Stdio::null()).spawn()?);
    }
    let run = Run::new(&folder.job(), folder.path().join("two"));
    // The coordinator answers once it listens.
    wait_until("an answer of the coordinator", Duration::from_secs(20), || {
        on(NODES[1].0, "coxswain")
            .and_then(|mut status| Ok(status.args(["status", "--coordinator", &url]).output()?))
            .is_ok_and(|output| output.status.success())
    })?;
    let mut submit = on(NODES[1].0, "coxswain")?;
    submit.arg("submit").arg(folder.job()).args(["--coordinator", &url, "--set", "layout.pipeline=2"]);
    let output = submit.arg("--directory").arg(run.out()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let job = String::from_utf8_lossy(&output.stdout).trim().to_owned();

    let output = on(NODES[1].0, "coxswain")?.args(["watch", &job, "--coordinator", &url]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "watch: {said}");
    ensure!(String::from_utf8_lossy(&output.stdout).lines().count() >= 20, "a line for each step: {said}");
    let two = run.read()?;
    ensure!(two.bits_differ(&one).is_none(), "{:?}", two.bits_differ(&one));
    for (node, address) in NODES {
        let log = std::fs::read_to_string(folder.path().join(format!("{node}.log")))?;
        ensure!(log.contains(&format!("joining from {address}")), "{node} did not use {address}:\n{log}");
    }
    drop(processes);
    drop(network);
    Ok(())
}
