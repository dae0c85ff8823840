//! `coxswain serve`: a coordinator that workers and users connect to.

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgGroup, Args};
use coxswain_console::file_mode::FileModeArgs;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::access::Joining;
use crate::admin::{AdminArgs, PlainDoor, beside};
use crate::auth::pods::{PodError, Pods, Subject, issuer_of};
use crate::failure::Failure;
use crate::roots::RootArgs;
use crate::service::{Access, Port, Secure};
use crate::tls::authority::DAY;
use crate::tls::config::TlsFolder;
use crate::view::hub::Hub;
use crate::{driver, service};

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7070")]
    listen: String,
    /// The coordinator's folder: its journal, from which it knows its jobs after a restart.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The folder that `coxswain certs init` made: calls are encrypted, and need a certificate of its CA.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// How many days a worker can renew its certificate after it joined. Then it has to join again.
    #[arg(long, value_name = "N", default_value_t = 30, requires = "tls_dir")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3650))]
    join_days: u32,
    #[command(flatten)]
    pods: PodArgs,
    #[command(flatten)]
    roots: RootArgs,
    /// Allow an address that other machines can reach, though calls are neither encrypted nor
    /// authenticated.
    #[arg(long, conflicts_with = "tls_dir")]
    insecure_network: bool,
    /// Take calls of all users of this machine, who then act with this user's rights.
    #[arg(long, conflicts_with_all = ["tls_dir", "insecure_network"])]
    any_user: bool,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    file_mode: FileModeArgs,
}

/// Whose service accounts' tokens are taken.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("issuer").args(["join_issuer", "join_issuer_of"])))]
struct PodArgs {
    /// A file with the keys (a JWK set) by which Kubernetes signs the tokens of service accounts: pods can
    /// join by them.
    #[arg(long, value_name = "FILE", requires_all = ["tls_dir", "issuer", "join_audience", "join_subject"])]
    join_jwks: Option<PathBuf>,
    /// The issuer of these tokens, as `kubectl get --raw /.well-known/openid-configuration` tells.
    #[arg(long, value_name = "URL", requires = "join_jwks")]
    join_issuer: Option<String>,
    /// A file with a token of this coordinator's own pod, whose issuer is that of the others.
    #[arg(long, value_name = "FILE", requires = "join_jwks")]
    join_issuer_of: Option<PathBuf>,
    /// The audience of these tokens, as the pods' projected volume asks for it.
    #[arg(long, value_name = "NAME", requires = "join_jwks")]
    join_audience: Option<String>,
    /// A service account whose pods become workers, as system:serviceaccount:NAMESPACE:NAME, with `=JOBS`
    /// behind it for some jobs only: an id, or a beginning such as demo-* (repeatable).
    #[arg(long, value_name = "SUBJECT[=JOBS]", requires = "join_jwks")]
    join_subject: Vec<Subject>,
}

impl PodArgs {
    fn pods(&self) -> Result<Option<Pods>, PodError> {
        let (Some(keys), Some(audience)) = (&self.join_jwks, &self.join_audience) else { return Ok(None) };
        let issuer = match (&self.join_issuer, &self.join_issuer_of) {
            (Some(issuer), _) => issuer.clone(),
            (None, Some(token)) => issuer_of(keys, token)?,
            (None, None) => return Ok(None),
        };
        let (audience, subjects) = (audience.clone(), self.join_subject.clone());
        let pods = Pods { keys: keys.clone(), issuer, audience, subjects };
        pods.check()?;
        Ok(Some(pods))
    }
}

/// With certificates, those who submit are others than the one who started the coordinator.
const NO_ROOTS: &str = "--tls-dir: name the folders below which jobs of certificate holders may read and write, by \
                        --data-root and --runs-root; `/` allows all that this process may";

pub(crate) async fn serve(args: Serve) -> Result<(), Failure> {
    args.file_mode.apply();
    let folder =
        args.tls_dir.as_deref().map(|folder| TlsFolder::open(folder).context("--tls-dir")).transpose();
    let folder = folder.map_err(|error| Failure::Input(format!("{error:#}")))?;
    let roots = args.roots.roots().map_err(|error| Failure::Input(error.to_string()))?;
    if folder.is_some() && roots.is_none() {
        return Err(Failure::Input(NO_ROOTS.to_owned()));
    }
    let pods =
        args.pods.pods().map_err(|error| Failure::Input(format!("tokens of service accounts: {error}")))?;
    let joining = Joining { chain_life: DAY * args.join_days, pods };
    let listener = service::listen(&args.listen, args.insecure_network || folder.is_some())
        .await
        .map_err(|error| Failure::Input(format!("{error:#}")))?;
    let address = listener.local_addr().context("the listening address")?;
    let page = args.admin.open(beside(address), folder.is_some()).await;
    let page = page.map_err(|error| Failure::Input(format!("{error:#}")))?;
    let (handle, store, mut driver) = driver::start(&args.data_dir, driver::LeftOver::Continue)?;
    let signalled = stop_signal()?;
    tracing::info!("listening on {address}; the journal is in {}", args.data_dir.display());
    if args.insecure_network {
        tracing::warn!("--insecure-network: whoever reaches {address} can read and stop every run");
    }
    let access = match folder {
        // The journal's lock is held: what is remembered of certificates has no other writer.
        Some(folder) => Access::Secure(Secure::open(folder, &args.data_dir, joining)?),
        None if args.any_user => Access::Open,
        None => Access::without_certificates(&listener),
    };
    let hub = Hub::new(handle.clone());
    if let Some(page) = page {
        tracing::info!("the page is at {}", page.url());
        let plain = if args.any_user { PlainDoor::AnyUser } else { PlainDoor::Owner };
        page.serve(hub.clone(), plain, access.tls());
    }
    let port = Port { listener, access, roots, hub };
    tokio::select! {
        served = service::serve_on(port, handle, store, std::future::pending()) => served?,
        ended = &mut driver => ended.context("the coordinator's own task")??,
        name = signalled => tracing::info!("{name}: ending; workers go on for a while, and a coordinator on this journal takes up their run"),
    }
    Ok(())
}

/// The signals by which someone wants this process to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` where the process was started to outlive its terminal, as `nohup` does.
    hang_up: Option<Signal>,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Signals> {
        let hang_up = if ignores(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())) };
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hang_up: hang_up.transpose().context("cannot listen for SIGHUP")?,
        })
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        let Signals { interrupt, terminate, hang_up } = self;
        let hung_up = async {
            match hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => "Ctrl-C",
            _ = terminate.recv() => "SIGTERM",
            _ = hung_up => "SIGHUP",
        }
    }
}

/// Whether this process was started with the signal ignored, as Linux tells.
fn ignores(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal.as_raw_value() - 1) & 1 == 1
}

/// Ready once someone wants this process to end; its output names the signal.
pub(crate) fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut signals = Signals::listen()?;
    Ok(async move { signals.next().await })
}
