//! What this machine is.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use coxswain_proto::device::DeviceName;
use coxswain_types::WorkerId;
use coxswain_types::status::WorkerInfo;

/// What libraries read from the environment when they are loaded, before main, and what it is unless somebody
/// said otherwise: threads of OpenMP that spin make processes which share cores several times slower.
const WAIT_POLICY: (&str, &str) = ("OMP_WAIT_POLICY", "PASSIVE");

/// Starts this program anew with the environment that its libraries need, where it is another.
pub(crate) fn set_environment(device: DeviceName) -> Result<()> {
    let is = |name: &str, value: &str| std::env::var_os(name).is_some_and(|found| found == value);
    let mut wanted = Vec::new();
    if std::env::var_os(WAIT_POLICY.0).is_none() {
        wanted.push((WAIT_POLICY.0, WAIT_POLICY.1.to_owned()));
    }
    wanted.extend(crate::device::environment(device)?);
    wanted.retain(|(name, value)| !is(name, value));
    if wanted.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe().context("finding this program's own file")?;
    let mut anew = Command::new(program);
    anew.args(std::env::args_os().skip(1)).envs(wanted);
    Err(anew.exec()).context("starting anew with the environment that libtorch needs")
}

/// Says who this worker is, without the incarnation, which its coordinator gives it.
pub(crate) fn info(name: Option<&str>, device: &str) -> WorkerInfo {
    let host = host();
    let pid = std::process::id();
    WorkerInfo {
        id: WorkerId(name.map_or_else(|| format!("{host}-{pid}"), str::to_owned)),
        incarnation: 0,
        host,
        pid,
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        device: device.to_owned(),
        runtime: coxswain_native::memory::runtime(),
        serves: None,
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// The local address from which the coordinator is reached, and at which peers on its network can
/// reach this worker. No packet is sent.
pub(crate) fn address_towards(coordinator: &str) -> Result<IpAddr> {
    let place = coordinator.split_once("://").map_or(coordinator, |(_, place)| place);
    let place = place.split('/').next().unwrap_or(place);
    let target = place
        .to_socket_addrs()
        .with_context(|| format!("resolving the coordinator's address {place}"))?
        .next()
        .with_context(|| format!("the coordinator's address {place} resolves to nothing"))?;
    let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).context("opening a socket")?;
    socket.connect(target).with_context(|| format!("finding the way to {target}"))?;
    Ok(socket.local_addr().context("reading the local address")?.ip())
}

/// Ends this process when stdin does: whoever started it holds the other end, and lets go of it however it ends.
pub(crate) fn end_with_stdin() -> Result<()> {
    let watch = || {
        // An error ends it too: nothing is ever written there.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::error!("the program that started this worker has ended");
        std::process::exit(1);
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(watch).context("watching stdin")?;
    Ok(())
}

/// The most memory that this process had resident, in bytes.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_on_the_coordinators_side() {
        assert!(address_towards("http://127.0.0.1:7070").unwrap().is_loopback());
        assert!(address_towards("127.0.0.1:7070").unwrap().is_loopback());
        assert!(address_towards("http://nowhere.invalid:1").is_err());
    }
}
