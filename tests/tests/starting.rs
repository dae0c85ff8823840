//! Workers that one command starts: several of one machine, and those of other machines by ssh.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::{children, is_alive, lines, signal};
use coxswain_tests::{Folder, SOON, Site, programs, wait_until};

/// `coxswain-worker --devices cpu:2`, which is killed at the end.
struct Supervisor<'a> {
    folder: &'a Folder,
    child: Child,
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Supervisor<'a> {
    fn start(folder: &'a Folder, site: &Site<'_>) -> Result<Supervisor<'a>> {
        let mut command = Command::new(programs("coxswain-worker")?);
        command.args(["--coordinator", &site.url(), "--devices", "cpu:2", "--name", "node"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("node.log"))?);
        Ok(Supervisor { folder, child: command.spawn().context("starting it")? })
    }

    fn workers(&self) -> Result<Vec<u32>> {
        children(self.child.id())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("node.log")).unwrap_or_default()
    }
}

/// One of two workers is killed during a run and comes back under its name; then all are asked to stop, once.
#[test]
fn a_supervisor_keeps_its_workers_running_and_ends_with_them() -> Result<()> {
    let folder = Folder::new()?;
    let site = Site::new(&folder, 0)?;
    let mut node = Supervisor::start(&folder, &site)?;
    let run = folder.run("both").layout(2, 1, 1).set("train.steps=100000").set("train.validate_every=0");
    site.submit(&run, &[])?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", SOON, || lines(&metrics) > 0).with_context(|| node.said())?;
    let before = node.workers()?;
    ensure!(before.len() == 2, "{before:?}");
    signal(before[1], "KILL")?;
    site.wait_for_generation(2, SOON)?;
    let after = node.workers()?;
    ensure!(
        after.len() == 2 && after.contains(&before[0]) && !after.contains(&before[1]),
        "{before:?} {after:?}"
    );
    let said = node.said();
    ensure!(said.contains("was ended by signal 9; it is started again in 1 s"), "{said}");
    ensure!(said.lines().any(|line| line.starts_with("node-0 | ")), "{said}");
    let shown = lines(&metrics);
    wait_until("more steps", SOON, || lines(&metrics) > shown)?;
    signal(node.child.id(), "TERM")?;
    let code = node.child.wait()?.code();
    ensure!(code == Some(143), "{code:?}: {}", node.said());
    ensure!(after.iter().all(|pid| !is_alive(*pid)), "workers outlive it");
    // They worked to the end of the step, and left in order.
    ensure!(!node.said().contains("is killed"), "{}", node.said());
    Ok(())
}

#[test]
fn workers_end_with_a_supervisor_that_is_killed_and_bad_arguments_end_all() -> Result<()> {
    let folder = Folder::new()?;
    let site = Site::new(&folder, 0)?;
    let mut node = Supervisor::start(&folder, &site)?;
    site.wait_for_worker("node-0")?;
    site.wait_for_worker("node-1")?;
    let workers = node.workers()?;
    ensure!(workers.len() == 2, "{workers:?}");
    signal(node.child.id(), "KILL")?;
    node.child.wait()?;
    wait_until("the end of its workers", SOON, || workers.iter().all(|pid| !is_alive(*pid)))?;
    let mut command = Command::new(programs("coxswain-worker")?);
    command.args(["--coordinator", "127.0.0.1", "--devices", "cpu:2"]);
    let output = command.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2) && stderr.contains("all workers end"), "{stderr}");
    Ok(())
}

/// An `ssh` that starts what it is told on this machine, and notes for which host.
const SSH: &str = "#!/bin/sh
while [ \"$1\" != -- ]; do shift; done
echo \"$2\" >> \"$SSH_HOSTS\"
exec sh -c \"$3\"
";

/// A run over two hosts, with certificates of its own and a token that stands in no command line.
#[test]
fn up_starts_workers_on_other_hosts_by_ssh_and_ends_them() -> Result<()> {
    let folder = Folder::new()?;
    let bin = folder.path().join("bin");
    fs::create_dir(&bin)?;
    fs::write(bin.join("ssh"), SSH)?;
    fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755))?;
    let hosts = folder.path().join("hosts");
    let path = std::env::var("PATH").unwrap_or_default();
    let run = folder.run("remote").layout(2, 1, 1);
    let mut up = run.command()?;
    up.args(["--hosts", "left,me@right", "--address", "127.0.0.1"]);
    up.env("PATH", format!("{}:{path}", bin.display())).env("SSH_HOSTS", &hosts);
    let output = up.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    let one = folder.run("one").summary()?;
    ensure!(run.read()?.bits_differ(&one).is_none(), "other bits");
    let mut called: Vec<String> = fs::read_to_string(&hosts)?.lines().map(str::to_owned).collect();
    called.sort();
    ensure!(called == ["left", "me@right"], "{called:?}");
    for name in ["worker-0", "worker-1"] {
        let log = fs::read_to_string(run.out().join("logs").join(format!("{name}.log")))?;
        ensure!(log.contains("joined; the certificate is good"), "{name}: {log}");
    }
    Ok(())
}
