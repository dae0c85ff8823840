//! What this machine is.

use std::net::{IpAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use coxswain_proto::device::DeviceName;
use coxswain_types::WorkerId;
use coxswain_types::status::WorkerInfo;
use tokio::sync::mpsc;

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

/// Why it is not known from where the coordinator is reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// It is not an address.
    #[error("the coordinator's address {place}: {cause}")]
    Invalid { place: String, cause: std::io::Error },
    /// Its name has no address now, or no way leads there.
    #[error("the coordinator's address {place} cannot be found: {cause}")]
    Unknown { place: String, cause: std::io::Error },
}

/// The local address from which the coordinator is reached, and at which peers on its network can
/// reach this worker. No packet is sent there.
pub(crate) async fn address_towards(coordinator: &str) -> Result<IpAddr, AddressError> {
    let place = coordinator.split_once("://").map_or(coordinator, |(_, place)| place);
    let place = place.split('/').next().unwrap_or(place);
    let towards = async {
        let target = tokio::net::lookup_host(place).await?.next();
        let target = target.ok_or_else(|| std::io::Error::other("the name has no address"))?;
        let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip())
    };
    towards.await.map_err(|cause: std::io::Error| {
        let place = place.to_owned();
        // As one without a port.
        let invalid = cause.kind() == std::io::ErrorKind::InvalidInput;
        if invalid { AddressError::Invalid { place, cause } } else { AddressError::Unknown { place, cause } }
    })
}

/// Ends this process when stdin does: whoever started it holds the other end, and lets go of it however it ends.
pub(crate) fn end_with_stdin() -> Result<()> {
    at_end_of_stdin(|| {
        tracing::error!("the program that started this worker has ended");
        std::process::exit(1);
    })
}

/// Has an item once stdin has ended.
pub(crate) fn end_of_stdin() -> Result<mpsc::Receiver<()>> {
    let (ended, receiver) = mpsc::channel(1);
    at_end_of_stdin(move || {
        // An error means that this process ends anyway.
        let _ = ended.blocking_send(());
    })?;
    Ok(receiver)
}

fn at_end_of_stdin(then: impl FnOnce() + Send + 'static) -> Result<()> {
    let watch = || {
        // An error ends it too: nothing is ever written there.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        then();
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

    #[tokio::test]
    async fn the_address_is_on_the_coordinators_side() {
        assert!(address_towards("http://127.0.0.1:7070").await.unwrap().is_loopback());
        assert!(address_towards("127.0.0.1:7070").await.unwrap().is_loopback());
        let unknown = address_towards("http://nowhere.invalid:1").await.unwrap_err();
        assert!(matches!(unknown, AddressError::Unknown { .. }), "{unknown}");
        for text in ["127.0.0.1", "http://127.0.0.1", "127.0.0.1:x"] {
            let invalid = address_towards(text).await.unwrap_err();
            assert!(matches!(invalid, AddressError::Invalid { .. }), "{text}: {invalid}");
        }
    }
}
