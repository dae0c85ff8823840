//! Workers of `up --hosts` on other machines: each is started by `ssh`, gets its join token on stdin, and ends when that is
//! closed. The coordinator listens where they reach it, with a CA that lives as long as the run.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use coxswain_transport::tls::{Credentials, Secret};
use rcgen::KeyPair;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;

use crate::access::Joining;
use crate::auth::identity::{Jobs, Role};
use crate::auth::tokens::Grant;
use crate::service::Secure;
use crate::tls::authority::{Authority, DAY};
use crate::tls::config::TlsFolder;
use crate::workers::{Launch, options};

/// How long a run may last: its CA, its token and its workers' certificates end with it.
const LIFE: Duration = Duration::from_secs(90 * DAY.as_secs());

/// How often the token can be used: workers that fail are started again.
const USES: u32 = 16384;

/// The port that `ssh` calls. No packet is sent there to find out from which address it would be called.
const SSH_PORT: u16 = 22;

/// Where workers are started.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Start the workers on these machines, by ssh, in blocks of equal size: names as ssh takes them, with commas between.
    /// They have to see the run's folder under the same path.
    #[arg(long, value_name = "HOST,...", value_delimiter = ',')]
    hosts: Vec<RemoteHost>,
    /// The name or address by which these machines reach this one [default: the address from which they are reached].
    #[arg(long, value_name = "NAME|IP", requires = "hosts")]
    address: Option<String>,
    /// The port on which these machines reach this one [default: the system chooses].
    #[arg(long, value_name = "PORT", requires = "hosts", default_value_t = 0)]
    port: u16,
    /// The worker program on these machines [default: the path that it has here].
    #[arg(long, value_name = "PATH", requires = "hosts")]
    remote_worker: Option<PathBuf>,
}

/// A machine's name, as `ssh` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteHost(String);

impl FromStr for RemoteHost {
    type Err = String;

    fn from_str(text: &str) -> Result<RemoteHost, String> {
        // An option of ssh would start a program here.
        if text.is_empty()
            || text.starts_with('-')
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err("is not a host, such as gpu-1 or user@10.0.0.1".to_owned());
        }
        Ok(RemoteHost(text.to_owned()))
    }
}

impl RemoteHost {
    /// Without the user.
    fn name(&self) -> &str {
        self.0.rsplit_once('@').map_or(&self.0, |(_, name)| name)
    }
}

/// The machines of a run.
#[derive(Debug)]
pub(crate) struct Remote {
    hosts: Vec<RemoteHost>,
    program: PathBuf,
    token: Secret,
}

/// What a coordinator needs that other machines reach.
pub(crate) struct RemoteAccess {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// What its workers call it, without the port.
    pub(crate) address: String,
    pub(crate) secure: Secure,
    pub(crate) remote: Remote,
}

impl HostArgs {
    /// Whether workers run on other machines.
    pub(crate) fn are_given(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// The address of this machine from which the others are reached: this one may be among them, under a name that only
    /// it knows.
    fn own_address(&self) -> Result<IpAddr> {
        let mut own = None;
        for host in &self.hosts {
            let address = towards(host.name()).with_context(|| {
                format!(
                    "--hosts: from which address {} is reached cannot be told; name it by --address",
                    host.0
                )
            })?;
            if !address.is_loopback() {
                return Ok(address);
            }
            own.get_or_insert(address);
        }
        own.context("--hosts names no machine")
    }

    /// How many of the workers share a machine, at most.
    pub(crate) fn share(&self, count: u32) -> u32 {
        if self.hosts.is_empty() { count } else { block(count, self.hosts.len() as u32) }
    }

    /// `None` where workers run on this machine.
    ///
    /// # Errors
    /// A host cannot be found, or the certificates cannot be made.
    pub(crate) fn access(&self, program: &Path, data_dir: &Path) -> Result<Option<RemoteAccess>> {
        if !self.are_given() {
            return Ok(None);
        }
        let address = match &self.address {
            Some(address) => address.clone(),
            None => self.own_address()?.to_string(),
        };
        let authority = Authority::new("coxswain up", LIFE)?;
        let key = KeyPair::generate().context("a key for the coordinator")?;
        let chain = authority.server(std::slice::from_ref(&address), &key, LIFE).context("--address")?;
        let server =
            Credentials { ca: authority.pem().to_owned(), chain, key: Secret::new(key.serialize_pem()) };
        let joining = Joining { chain_life: LIFE, pods: None };
        let secure = Secure::open(TlsFolder { authority, server }, data_dir, joining)?;
        let grant = Grant { role: Role::Worker, jobs: Jobs::all(), ttl_s: LIFE.as_secs(), uses: USES };
        let token = secure.token(grant).map_err(|status| anyhow!("a join token: {}", status.message()))?;
        let any: IpAddr = if address.contains(':') { [0u16; 8].into() } else { [0, 0, 0, 0].into() };
        let remote = Remote {
            hosts: self.hosts.clone(),
            program: self.remote_worker.clone().unwrap_or_else(|| program.to_owned()),
            token: token.text(),
        };
        Ok(Some(RemoteAccess { listen: SocketAddr::new(any, self.port), address, secure, remote }))
    }
}

/// The address of this machine from which `host` is reached.
fn towards(host: &str) -> std::io::Result<IpAddr> {
    let target = (host, SSH_PORT).to_socket_addrs()?.next();
    let target = target.ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

/// Which machine has the `index`-th of `count` workers, and which of the workers there it is. Neighbours share a machine,
/// so that tensor ranks do.
fn place(index: u32, count: u32, hosts: u32) -> (u32, u32) {
    let block = block(count, hosts);
    (index / block, index % block)
}

fn block(count: u32, hosts: u32) -> u32 {
    count.div_ceil(hosts.max(1)).max(1)
}

impl Remote {
    /// The `index`-th worker, as `ssh` starts it.
    pub(crate) fn command(&self, launch: &Launch<'_>, index: u32, name: &str) -> Command {
        let (host, of_host) = place(index, launch.count, self.hosts.len() as u32);
        let host = &self.hosts[(host as usize).min(self.hosts.len() - 1)];
        let device = coxswain_proto::device::device_of(launch.device, of_host);
        let mut words = vec![self.program.to_string_lossy().into_owned()];
        words.extend(options(launch, &device, name));
        words.extend(["--join-file", "-"].map(str::to_owned));
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let mut command = Command::new("ssh");
        // It must not ask on a terminal: stdin is the worker's. A connection that breaks is noticed.
        command.args([
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            "ServerAliveInterval=5",
            "-o",
            "ServerAliveCountMax=3",
        ]);
        command.args(["--", &host.0, &line.join(" ")]);
        command
    }

    /// Writes the token to a worker's stdin, and keeps that open for as long as what is returned lives.
    pub(crate) fn hand_over(&self, stdin: Option<ChildStdin>) -> Option<Tie> {
        let mut stdin = stdin?;
        let line = Secret::new(format!("{}\n", self.token.expose()));
        let (tie, mut dropped) = mpsc::channel::<()>(1);
        tokio::spawn(async move {
            // A worker that has ended is noticed by its process.
            let _ = stdin.write_all(line.expose().as_bytes()).await;
            let _ = stdin.flush().await;
            // Until the tie is dropped.
            let _ = dropped.recv().await;
        });
        Some(Tie::Task(tie))
    }
}

/// What keeps a worker's stdin open.
#[derive(Debug)]
pub(crate) enum Tie {
    /// The other end.
    Pipe(#[allow(dead_code, reason = "held until it is dropped")] ChildStdin),
    /// A task that has it.
    Task(#[allow(dead_code, reason = "held until it is dropped")] mpsc::Sender<()>),
}

/// A word as the shell of the other machine reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_machine() {
        let places = |count, hosts| {
            let of = |index| place(index, count, hosts);
            (0..count).map(|index| format!("{}.{}", of(index).0, of(index).1)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(places(4, 2), "0.0 0.1 1.0 1.1");
        assert_eq!(places(5, 2), "0.0 0.1 0.2 1.0 1.1");
        assert_eq!(places(2, 3), "0.0 1.0");
        assert_eq!(places(1, 1), "0.0");
    }

    #[test]
    fn a_host_is_a_word_and_no_option() {
        for good in ["a", "user@10.0.0.1", "gpu-1.example"] {
            assert_eq!(good.parse::<RemoteHost>().unwrap().0, good);
        }
        assert_eq!("user@a".parse::<RemoteHost>().unwrap().name(), "a");
        for bad in ["", "-oProxyCommand=x", "a b", "a\n"] {
            assert!(bad.parse::<RemoteHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn words_survive_the_other_machines_shell() {
        for word in ["plain", "/a/b-c", "with blank", "it's", "$(x)", ""] {
            let line = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }
}
