//! Two nodes: network namespaces with an interface each, so that no address is the loopback's.
//!
//! Needs root and `ip`; where they are missing the tests are skipped, and say so.

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_console::say;
use coxswain_tests::nodes::{self, Cluster, Nodes};
use coxswain_tests::process::lines;
use coxswain_tests::{Folder, Run, events, skip, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take until it is certain that two workers do not reach each other: ten seconds without an answer,
/// and the news of it.
const CERTAIN: Duration = Duration::from_secs(15);
/// The longest until workers that were kept apart are tried again, and a step is taken.
const HEALED: Duration = Duration::from_secs(90);

/// Why generations ended.
fn interruptions(cluster: &Cluster<'_>) -> Vec<String> {
    let told = cluster.events().unwrap_or_default();
    told.iter().filter(|event| event["kind"] == "interrupted").map(ToString::to_string).collect()
}

#[test]
fn two_nodes_give_the_bits_of_one() -> Result<()> {
    let Some(nodes) = nodes::here(Nodes::pair("plain"))? else { return Ok(()) };
    let folder = Folder::new()?;
    let one = folder.run("one").summary()?;
    let cluster = Cluster::plain(&nodes, &folder, "two")?;
    let (_, two) = cluster.train(&["layout.pipeline=2"])?;
    ensure!(two.bits_differ(&one).is_none(), "{:?}", two.bits_differ(&one));
    for at in 0..2 {
        let (log, address) = (cluster.log(at)?, nodes.address(at));
        ensure!(
            log.contains(&format!("joining from {address}")),
            "worker {at} did not use {address}:\n{log}"
        );
    }
    Ok(())
}

/// Writes what a node's interface sees, until its stdin is closed.
const CAPTURE: &str = "
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
s.bind(('cox0', 0))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE if hasattr(socket, 'SO_RCVBUFFORCE') else 33, 64 << 20)
sys.stdout.write('ready\\n')
sys.stdout.flush()
out = open(sys.argv[1], 'wb')
while True:
    ready, _, _ = select.select([s, sys.stdin], [], [])
    if s in ready:
        out.write(s.recv(1 << 17))
    elif sys.stdin in ready:
        break
";

fn capture(nodes: &Nodes, file: &Path) -> Result<Child> {
    let mut python = nodes.on(1, Path::new("python3"));
    python.args(["-c", CAPTURE]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = python.spawn().context("starting python3")?;
    let mut ready = [0; 6];
    child.stdout.as_mut().context("stdout")?.read_exact(&mut ready).context("the capture did not start")?;
    Ok(child)
}

/// A piece of a tensor that nothing else looks like.
const WINDOW_BYTES: usize = 32;

/// How many windows of the run's newest weights are in a file, and how many there are.
fn windows_seen(run: &Run, captured: &Path) -> Result<(usize, usize)> {
    let (_, checkpoint) = coxswain_files::folders::locate(run.out())?.context("a checkpoint")?;
    let mut windows = HashSet::new();
    for entry in std::fs::read_dir(checkpoint.path())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let bytes = std::fs::read(path)?;
            let varied = |window: &&[u8]| window.iter().collect::<HashSet<_>>().len() > WINDOW_BYTES / 2;
            windows.extend(bytes.chunks_exact(WINDOW_BYTES).filter(varied).step_by(16).map(<[u8]>::to_vec));
        }
    }
    let bytes = std::fs::read(captured)?;
    ensure!(bytes.len() > 1 << 20, "only {} bytes were captured", bytes.len());
    let seen: HashSet<_> = bytes.windows(WINDOW_BYTES).filter(|window| windows.contains(*window)).collect();
    Ok((seen.len(), windows.len()))
}

#[test]
fn a_capture_holds_no_tensor_unless_the_network_is_trusted() -> Result<()> {
    let Some(nodes) = nodes::here(Nodes::pair("tls"))? else { return Ok(()) };
    let folder = Folder::new()?;
    let one = folder.run("one").summary()?;
    // Each rank sends the other the weights that it has brought up to date.
    let sets = ["layout.data=2", "layout.zero=1"];
    for (name, options) in [("encrypted", &[][..]), ("trusted", &["--trust-network"][..])] {
        let captured = folder.path().join(format!("{name}.capture"));
        let cluster = Cluster::secure(&nodes, &folder, name, options)?;
        let mut capturing = capture(&nodes, &captured)?;
        let (run, two) = cluster.train(&sets)?;
        drop(capturing.stdin.take());
        capturing.wait()?;
        ensure!(two.bits_differ(&one).is_none(), "{name}: {:?}", two.bits_differ(&one));
        let (seen, all) = windows_seen(&run, &captured)?;
        ensure!(all > 100, "{name}: only {all} windows to look for");
        say(&format!("{name}: {seen} of {all} windows of the weights were captured"));
        ensure!(
            (seen > 0) == (name == "trusted"),
            "{name}: {seen} of {all} windows of the weights were seen"
        );
    }
    Ok(())
}

/// Two workers reach the coordinator and not each other: the run is interrupted once that is certain, waits and says for
/// what, and goes on with the same bits when they reach each other again. `cargo xtask test --long` runs it.
#[test]
fn a_network_that_parts_two_workers_interrupts_the_run_until_it_is_whole_again() -> Result<()> {
    if skip::unless_long() {
        return Ok(());
    }
    for (name, both) in [("parted", true), ("oneway", false)] {
        let Some(nodes) = nodes::here(Nodes::routed(name))? else { return Ok(()) };
        let folder = Folder::new()?;
        let cluster = Cluster::plain(&nodes, &folder, name)?;
        let sets = ["layout.pipeline=2", "train.steps=2000", "checkpoint.every=0", "train.validate_every=0"];
        let (job, run) = cluster.submit(&sets)?;
        let metrics = run.out().join("metrics.jsonl");
        wait_until("the first steps", PATIENCE, || lines(&metrics) > 20)?;
        nodes.cut(both, false)?;
        let told = wait_until("the interruption", PATIENCE, || !interruptions(&cluster).is_empty())?;
        let why = interruptions(&cluster).remove(0);
        say(&format!("{name}: {told:.1?} until: {why}"));
        ensure!(told < CERTAIN, "{name}: it took {told:.1?}");
        ensure!(why.contains("does not answer"), "{name}: {why}");
        let status = || -> Result<String> {
            let output = cluster.call(&["status"])?.output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let waits = "workers that reach each other: the network between";
        wait_until("the reason why it waits", PATIENCE, || status().is_ok_and(|text| text.contains(waits)))?;
        nodes.cut(both, true)?;
        let before = lines(&metrics);
        let took = wait_until("a step", HEALED, || lines(&metrics) > before + 1)?;
        say(&format!("{name}: {took:.1?} from the whole network to a step"));
        ensure!(cluster.call(&["cancel", &job])?.output()?.status.success(), "cancel");
        let over = || cluster.events().is_ok_and(|all| events::ending(&all) == Some("cancelled"));
        wait_until("its end", PATIENCE, over)?;
        let alone = folder.run("alone").set("train.steps=2000").set("checkpoint.every=0");
        let mut child = alone.set("train.validate_every=0").start()?;
        let other = folder.path().join("alone").join("metrics.jsonl");
        wait_until("as many steps of one process", HEALED, || lines(&other) > lines(&metrics))?;
        child.kill()?;
        child.wait()?;
        let losses = |path: &Path| -> Result<Vec<String>> {
            let text = std::fs::read_to_string(path)?;
            let loss = |line: &str| line.split("\"loss\":").nth(1)?.split(',').next().map(str::to_owned);
            Ok(text.lines().filter_map(loss).collect())
        };
        let (found, expected) = (losses(&metrics)?, losses(&other)?);
        ensure!(found.len() > 20 && found[..] == expected[..found.len()], "{name}: the losses differ");
    }
    Ok(())
}
