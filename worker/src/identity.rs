//! This worker's certificate: from files, or by a join token and then renewed while it lives; and the
//! connection that it is for.

use std::io::BufRead;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use coxswain_comm::{DataPort, TensorTls};
use coxswain_transport::tls::client::provider;
use coxswain_transport::tls::enroll::{EnrollError, Enrolled, Ticket};
use coxswain_transport::tls::{ClientTls, Secret, Transport, enroll};
use tonic::transport::Channel;

use crate::args::{BadArgument, Work};
use crate::machine::{AddressError, address_towards};

/// Between two tries to reach the coordinator.
pub(crate) const RETRY: Duration = Duration::from_millis(500);

/// Between two tries to renew a certificate. More than half of its life is left at the first.
const RENEW_RETRY: Duration = Duration::from_secs(15);

/// How this worker calls its coordinator.
pub(crate) struct Identity {
    transport: Transport,
    /// How long a certificate by a token lives; those in files are their owner's to renew.
    lives: Option<Duration>,
}

/// What a worker brings along.
pub(crate) enum Proof {
    /// Nothing, for a coordinator on this machine; or a certificate.
    Transport(Transport),
    /// A join token, or a pod's token.
    Ticket(Ticket),
}

impl Proof {
    /// What the options say.
    pub(crate) fn of(work: &Work) -> Result<Proof> {
        let token = match (&work.join, &work.join_file) {
            (Some(token), _) => Some((token.expose().to_owned(), "--join")),
            (None, Some(path)) => Some((read(path)?, "--join-file")),
            (None, None) => None,
        };
        match token {
            Some(_) if work.tls.names_certificate() => {
                bail!("there are a join token and a certificate by options; leave one of them out")
            }
            Some((token, option)) => {
                let ticket = Ticket::read(&token, work.tls.tls_ca.as_deref()).context(option)?;
                Ok(Proof::Ticket(ticket))
            }
            None => Ok(Proof::Transport(work.tls.transport().context("--tls-dir")?)),
        }
    }

    /// The port for tensors. The coordinator's name may be unknown until it has started, as that of a pod is, and is
    /// looked up again for as long as the user's patience lasts.
    ///
    /// # Errors
    /// A [`BadArgument`] where the port is taken, or where others would reach a worker whose calls are neither encrypted
    /// nor of this network; or the coordinator's address is not found.
    pub(crate) async fn data_port(&self, work: &Work) -> Result<Arc<DataPort>> {
        let end = tokio::time::Instant::now() + Duration::from_secs(u64::from(work.connect_timeout_s));
        let mut told = false;
        loop {
            match address_towards(&work.coordinator).await {
                Ok(seen_as) => return self.data_port_seen_as(work, seen_as).map_err(bad_argument),
                Err(error @ AddressError::Unknown { .. }) if tokio::time::Instant::now() < end => {
                    if !told {
                        tracing::warn!("{error}; trying for {} s", work.connect_timeout_s);
                        told = true;
                    }
                    tokio::time::sleep(enroll::spread(RETRY, random()?)).await;
                }
                Err(error @ AddressError::Unknown { .. }) => return Err(error.into()),
                Err(error @ AddressError::Invalid { .. }) => return Err(bad_argument(error.into())),
            }
        }
    }

    fn data_port_seen_as(&self, work: &Work, seen_as: IpAddr) -> Result<Arc<DataPort>> {
        let listen = work.data_listen.unwrap_or(SocketAddr::new(seen_as, 0));
        let plain = matches!(self, Proof::Transport(Transport::Plain));
        if plain && seen_as.is_loopback() && !listen.ip().is_loopback() {
            bail!(
                "--data-listen {listen}: without a certificate, and with a coordinator on this machine, tensors stay \
                 on this machine; leave it out, or give a loopback address"
            );
        }
        DataPort::open(listen, seen_as)
            .with_context(|| format!("listening for tensors on {listen} (--data-listen)"))
    }

    /// Tries to connect for as long as the user's patience lasts: workers may start first.
    pub(crate) async fn reach(&self, work: &Work, name: &str) -> Result<(Identity, Channel)> {
        let end = tokio::time::Instant::now() + Duration::from_secs(u64::from(work.connect_timeout_s));
        let mut told = false;
        // A token may be good for one use: what it gave is kept while the connection is tried again.
        let mut identity = None;
        loop {
            let tried = match identity.take() {
                Some(identity) => Ok(identity),
                None => self.identity(&work.coordinator, name).await,
            };
            let error = match tried {
                Ok(found) => {
                    match coxswain_transport::connect_over(&work.coordinator, &found.transport).await {
                        Ok(channel) => return Ok((found, channel)),
                        Err(error) => {
                            identity = Some(found);
                            EnrollError::Connect(error)
                        }
                    }
                }
                Err(error) => error,
            };
            match error {
                error if error.may_pass() && tokio::time::Instant::now() < end => {
                    if !told {
                        tracing::warn!("{error}; trying for {} s", work.connect_timeout_s);
                        told = true;
                    }
                    tokio::time::sleep(enroll::spread(RETRY, random()?)).await;
                }
                error => return Err(error.into()),
            }
        }
    }

    /// Exchanges a token for a certificate for `name`.
    async fn identity(&self, url: &str, name: &str) -> Result<Identity, EnrollError> {
        match self {
            Proof::Transport(transport) => Ok(Identity { transport: transport.clone(), lives: None }),
            Proof::Ticket(ticket) => {
                let Enrolled { credentials, lives } = ticket.join(url, name).await?;
                let transport = Transport::Tls(ClientTls::new(&credentials)?);
                tracing::info!(worker = name, "joined; the certificate is good for {} s", lives.as_secs());
                Ok(Identity { transport, lives: Some(lives) })
            }
        }
    }
}

impl Identity {
    /// Has the port's connections to other machines encrypted by this worker's certificate, where it has one and the
    /// network is not trusted.
    pub(crate) fn encrypt(&self, port: &DataPort, work: &Work) -> Result<()> {
        if let Transport::Tls(tls) = &self.transport
            && !work.trust_network
        {
            let (client, server) = tls.between_workers().context("TLS between workers")?;
            port.encrypt(TensorTls { client, server, on_one_host: false });
        }
        Ok(())
    }

    /// Renews the certificate before half of its life is over, again and again. Ends at once where there is
    /// none to renew; a coordinator that is away is asked again while the certificate lives.
    ///
    /// # Errors
    /// The coordinator refuses, and will not change its mind: this process has to join again.
    pub(crate) async fn keep(self, channel: Channel) -> Result<()> {
        let (Some(mut lives), Transport::Tls(tls)) = (self.lives, self.transport) else { return Ok(()) };
        loop {
            tokio::time::sleep(enroll::renew_after(lives, random()?)).await;
            loop {
                match enroll::renew(channel.clone(), &tls).await {
                    Ok(renewed) => {
                        lives = renewed.lives;
                        break;
                    }
                    Err(error) if error.is_final() => return Err(error.into()),
                    Err(error) => tracing::warn!("the certificate cannot be renewed: {error}"),
                }
                tokio::time::sleep(enroll::spread(RENEW_RETRY, random()?)).await;
            }
        }
    }
}

fn bad_argument(error: anyhow::Error) -> anyhow::Error {
    BadArgument(format!("{error:#}")).into()
}

/// A random byte, so that workers that were started at once do not call at once.
fn random() -> Result<u8> {
    let mut byte = [0];
    let filled = provider().secure_random.fill(&mut byte);
    filled.map_err(|_| anyhow!("the system gives no random bytes"))?;
    let [byte] = byte;
    Ok(byte)
}

/// The join token in the first line of stdin.
///
/// # Errors
/// Stdin cannot be read, or ends before it.
pub(crate) fn token_from_stdin() -> Result<Secret> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("--join-file -: reading stdin")?;
    if line.trim().is_empty() {
        return Err(bad_argument(anyhow!("--join-file -: the first line of stdin has to be a join token")));
    }
    Ok(Secret::new(line.trim()))
}

fn read(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return Ok(token_from_stdin()?.expose().to_owned());
    }
    std::fs::read_to_string(path).with_context(|| format!("--join-file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    async fn port(options: &[&str]) -> Result<Arc<DataPort>> {
        let work = Args::parse_from(["coxswain-worker"].iter().chain(options)).work;
        Proof::Transport(Transport::Plain).data_port(&work).await
    }

    #[tokio::test]
    async fn without_a_certificate_tensors_stay_on_the_coordinators_machine() {
        assert!(port(&[]).await.unwrap().address().ip().is_loopback());
        assert!(port(&["--data-listen", "127.0.0.1:0"]).await.unwrap().address().ip().is_loopback());
        let error = port(&["--data-listen", "0.0.0.0:0"]).await.unwrap_err();
        assert!(
            error.is::<BadArgument>() && error.to_string().contains("tensors stay on this machine"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_no_bad_argument_and_is_tried_for_a_while() {
        let options = ["--coordinator", "https://nowhere.invalid:7070", "--connect-timeout-s", "1"];
        let start = std::time::Instant::now();
        let error = port(&options).await.unwrap_err();
        assert!(!error.is::<BadArgument>() && error.to_string().contains("nowhere.invalid:7070"), "{error}");
        assert!(start.elapsed() >= Duration::from_secs(1));
        let error = port(&["--coordinator", "https://10.0.0.1"]).await.unwrap_err();
        assert!(error.is::<BadArgument>(), "{error}");
    }
}
