//! `coxswain certs`, which makes the cluster's CA and certificates where its key lies, and
//! `coxswain token`, which asks a coordinator for a join token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use coxswain_console::say;
use coxswain_proto::wire;
use coxswain_transport::tls::credentials::{CA, CHAIN, KEY, private_folder, replace, write_new};
use coxswain_transport::tls::{Credentials, JoinToken, Secret, enroll};
use rcgen::KeyPair;
use rustls::pki_types::ServerName;
use time::OffsetDateTime;

use super::authority::{Authority, DAY, hosts_of};
use super::config::{CA_KEY, open_authority};
use crate::args::CoordinatorArgs;
use crate::auth::identity::{Jobs, Principal, Role};
use crate::failure::Failure;
use crate::{client, output};

/// How long the CA lives: all certificates have to be made anew when it ends.
const CA_LIFE: Duration = Duration::from_secs(3650 * DAY.as_secs());

/// The folder of people's certificates in the coordinator's.
const PEOPLE: &str = "people";

/// Names by which a coordinator on this machine is always reached.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[derive(Debug, Args)]
pub(crate) struct Certs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA for the cluster, a certificate for its coordinator and one for an admin.
    Init(InitArgs),
    /// Make a certificate for a person, in the coordinator's folder.
    Issue(Issue),
    /// Make a new certificate for the coordinator, with the names of the old one and those of --host.
    Renew(InitArgs),
    /// Exchange a join token for a person's certificate.
    Join(Join),
    /// Refuse a name's certificates from now on and end its connections, or list the names that are revoked.
    Revoke(Revoke),
}

#[derive(Debug, Args)]
struct FolderArgs {
    /// The coordinator's folder of keys and certificates, for `serve --tls-dir`.
    #[arg(long, value_name = "DIR", default_value = "coxswain-tls")]
    dir: PathBuf,
    /// How many days the certificates are good for.
    #[arg(long, value_name = "N", default_value_t = 365)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

impl FolderArgs {
    fn life(&self) -> Duration {
        DAY * self.days
    }
}

#[derive(Debug, Args)]
struct InitArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// A name or address by which others reach the coordinator (repeatable).
    #[arg(long, value_name = "NAME|IP", value_parser = host)]
    host: Vec<String>,
}

/// A name or address that a certificate can be for.
fn host(text: &str) -> Result<String, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("is not a name or address of a host, such as train.example or 10.0.0.1".to_owned()),
    }
}

#[derive(Debug, Args)]
struct Issue {
    #[command(flatten)]
    folder: FolderArgs,
    /// What they may do: admin, submitter or viewer.
    #[arg(long)]
    role: Role,
    /// Their name, for logs.
    #[arg(long)]
    name: String,
    /// The jobs they may touch: an id, a beginning such as demo-*, or all.
    #[arg(long, value_name = "JOBS", default_value = "*")]
    job: Jobs,
}

#[derive(Debug, Args)]
struct Join {
    /// The coordinator's address.
    #[arg(long, value_name = "URL", env = "COXSWAIN_COORDINATOR", default_value = "127.0.0.1:7070")]
    coordinator: String,
    /// A file with the token; `-` for stdin.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Your name, for logs.
    #[arg(long)]
    name: String,
    /// The folder to write ca.pem, cert.pem and key.pem to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Revoke {
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// The worker's or person's name.
    #[arg(required_unless_present = "list", conflicts_with = "list")]
    name: Option<String>,
    /// Only their certificates of this role; without it those of all roles.
    #[arg(long, conflicts_with = "list")]
    role: Option<Role>,
    /// Let the name have new certificates again. Those of before stay refused.
    #[arg(long, conflicts_with = "list")]
    undo: bool,
    /// List the names that are revoked: role, name, when and by whom.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a join token; prints it. Whoever has it can join, so keep it out of command lines and logs.
    Create(Create),
    /// Revoke a join token: it can no longer be used to join. Those who have joined by it keep their certificates.
    Revoke(Void),
}

#[derive(Debug, Args)]
struct Void {
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// The first part of the token.
    id: String,
}

#[derive(Debug, Args)]
struct Create {
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// What it makes of who uses it: worker, submitter or viewer.
    #[arg(long)]
    role: Role,
    /// The jobs it is for: an id, a beginning such as demo-*, or all.
    #[arg(long, value_name = "JOBS", default_value = "*")]
    job: Jobs,
    /// How long it can be used, in seconds.
    #[arg(long, value_name = "S", default_value_t = 900)]
    ttl_s: u64,
    /// How often it can be used.
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
}

pub(crate) async fn certs(args: Certs) -> Result<(), Failure> {
    match args.command {
        Command::Init(args) => init(&args),
        Command::Issue(args) => issue(&args),
        Command::Renew(args) => Ok(renew(&args)?),
        Command::Join(args) => join(args).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

pub(crate) async fn token(args: Token) -> Result<(), Failure> {
    let args = match args.command {
        TokenCommand::Create(args) => args,
        TokenCommand::Revoke(args) => return void(args).await,
    };
    let request = wire::CreateTokenRequest {
        role: args.role.word().to_owned(),
        jobs: args.job.to_string(),
        ttl_s: args.ttl_s,
        uses: args.uses,
    };
    let mut access = client::access(&args.coordinator).await?;
    let reply =
        access.create_token(request).await.map_err(|status| client::refused(&args.coordinator, status))?;
    output::write(&format!("{}\n", reply.into_inner().token))
}

async fn void(args: Void) -> Result<(), Failure> {
    let mut access = client::access(&args.coordinator).await?;
    let request = wire::VoidTokenRequest { id: args.id.clone() };
    access.void_token(request).await.map_err(|status| client::refused(&args.coordinator, status))?;
    say(&format!("the join token {} is void", args.id));
    Ok(())
}

fn init(args: &InitArgs) -> Result<(), Failure> {
    let dir = &args.folder.dir;
    for name in [CA, CA_KEY, CHAIN, KEY, PEOPLE] {
        let path = dir.join(name);
        if path.exists() {
            return Err(Failure::Input(format!(
                "{} is there already, and nothing is written over it; `coxswain certs renew` makes a new \
                 certificate for the coordinator, `coxswain certs issue` one for a person",
                path.display()
            )));
        }
    }
    let authority = Authority::new("coxswain cluster", CA_LIFE)?;
    let hosts = hosts(&args.host);
    let server = server(&authority, &hosts, args)?;
    private_folder(dir).map_err(anyhow::Error::from)?;
    write_new(&dir.join(CA_KEY), authority.key().expose()).map_err(anyhow::Error::from)?;
    server.write_new(dir).map_err(anyhow::Error::from)?;
    let admin = Principal::new(Role::Admin, "admin", Jobs::all()).map_err(|error| anyhow!(error))?;
    let people = person(&authority, &admin, &args.folder)?;
    let (dir, people) = (dir.display(), people.display());
    say(&format!(
        "{dir} is the coordinator's folder. It stays on its machine: ca-key.pem makes \
         certificates for anyone.\n\
         {people} is an admin's. Copy it to where that person works, and nowhere else.\n\
         \n\
         Start the coordinator, then make a token for its workers:\n\
         \n    coxswain serve --data-dir DIR --tls-dir {dir} --listen HOST:7070 --data-root DATA --runs-root RUNS\
         \n    export COXSWAIN_TLS_DIR={people} COXSWAIN_COORDINATOR=https://HOST:7070\
         \n    coxswain token create --role worker --uses 8 > token\
         \n    coxswain-worker --coordinator https://HOST:7070 --join-file token\n\
         \n\
         HOST is one of: {}. Other names need `--host`.",
        hosts.join(", ")
    ));
    Ok(())
}

fn renew(args: &InitArgs) -> anyhow::Result<()> {
    let dir = &args.folder.dir;
    let old = dir.join(CHAIN);
    let known = match std::fs::read_to_string(&old) {
        Ok(pem) => hosts_of(&pem).with_context(|| old.display().to_string())?,
        // What others call the coordinator is known only to whoever names it.
        Err(_) if !args.host.is_empty() => Vec::new(),
        Err(error) => {
            return Err(error).context(format!(
                "{} has the names of the coordinator and cannot be read; give them by --host",
                old.display()
            ));
        }
    };
    let hosts = hosts(&[known, args.host.clone()].concat());
    let server = server(&open_authority(dir)?, &hosts, args)?;
    // The key first: a pair that does not fit is refused at the start, and this can be done again.
    replace(&dir.join(KEY), server.key.expose())?;
    replace(&dir.join(CHAIN), &server.chain)?;
    say(&format!(
        "{} is for {} and good for {} days; the coordinator takes it at its next start",
        dir.join(CHAIN).display(),
        hosts.join(", "),
        args.folder.days
    ));
    Ok(())
}

fn issue(args: &Issue) -> Result<(), Failure> {
    if args.role == Role::Worker {
        return Err(Failure::Input(
            "workers get their certificates by a token: `coxswain token create --role worker`".to_owned(),
        ));
    }
    let identity = Principal::new(args.role, &args.name, args.job.clone())
        .map_err(|error| Failure::Input(error.to_string()))?;
    let folder = person(&open_authority(&args.folder.dir)?, &identity, &args.folder)?;
    say(&format!(
        "{} is for {identity}, for {} days. It goes to that person only, who names it by \
         COXSWAIN_TLS_DIR or --tls-dir.",
        folder.display(),
        args.folder.days
    ));
    Ok(())
}

async fn join(args: Join) -> Result<(), Failure> {
    let token = read_token(&args.token_file)?;
    if args.out.join(KEY).exists() {
        return Err(Failure::Input(format!(
            "{} holds a key already; name another folder",
            args.out.display()
        )));
    }
    let enrolled = enroll::join(&args.coordinator, &token, &args.name).await.map_err(anyhow::Error::from)?;
    enrolled.credentials.write_new(&args.out).map_err(anyhow::Error::from)?;
    let hours = enrolled.lives.as_secs() / 3600;
    say(&format!(
        "{} is good for {hours} hours; name it by COXSWAIN_TLS_DIR or --tls-dir",
        args.out.display()
    ));
    Ok(())
}

async fn revoke(args: Revoke) -> Result<(), Failure> {
    let mut access = client::access(&args.coordinator).await?;
    let refused = |status| client::refused(&args.coordinator, status);
    let Some(name) = args.name else {
        let revoked = access.revoked(wire::RevokedRequest {}).await.map_err(refused)?.into_inner().revoked;
        return output::write(&revoked.iter().map(revoked_line).collect::<String>());
    };
    let role = args.role.map(|role| role.word().to_owned()).unwrap_or_default();
    let request = wire::RevokeRequest { name: name.clone(), role, undo: args.undo };
    access.revoke(request).await.map_err(refused)?;
    say(&if args.undo {
        format!("{name} can have new certificates; those of before stay refused")
    } else {
        format!("{name} is refused from now on, and its connections have ended")
    });
    Ok(())
}

fn revoked_line(revoked: &wire::Revocation) -> String {
    let at = i64::try_from(revoked.at_s).ok().and_then(|at_s| OffsetDateTime::from_unix_timestamp(at_s).ok());
    // Without the time where there is none; it is for people.
    let at = at.map(|at| format!("{}T{:02}:{:02}:{:02}Z", at.date(), at.hour(), at.minute(), at.second()));
    let wire::Revocation { role, name, by, .. } = revoked;
    format!("{role} {name} since {} by {by}\n", at.unwrap_or_default())
}

fn read_token(path: &Path) -> Result<JoinToken, Failure> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin().lock()).context("reading a token from stdin")
    } else {
        std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
    };
    let text = text.map_err(|error| Failure::Input(format!("{error:#}")))?;
    text.parse().map_err(|error| Failure::Input(format!("{}: {error}", path.display())))
}

/// These names, each once, and those of this machine.
fn hosts(given: &[String]) -> Vec<String> {
    let mut hosts: Vec<String> = Vec::new();
    for host in given.iter().map(String::as_str).chain(LOCAL) {
        if !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    hosts
}

fn server(authority: &Authority, hosts: &[String], args: &InitArgs) -> anyhow::Result<Credentials> {
    let key = KeyPair::generate().context("a key for the coordinator")?;
    let chain = authority.server(hosts, &key, args.folder.life())?;
    Ok(Credentials { ca: authority.pem().to_owned(), chain, key: Secret::new(key.serialize_pem()) })
}

/// Makes a person's certificate and writes it to a folder of its own, which is returned.
fn person(authority: &Authority, identity: &Principal, folder: &FolderArgs) -> anyhow::Result<PathBuf> {
    let people = folder.dir.join(PEOPLE);
    let own = people.join(&identity.name);
    if own.exists() {
        bail!("{} is there already, and nothing is written over it; take another name", own.display());
    }
    let key = KeyPair::generate().context("a key")?;
    let chain = authority.client(identity, &key, folder.life())?;
    private_folder(&people)?;
    let key = Secret::new(key.serialize_pem());
    Credentials { ca: authority.pem().to_owned(), chain, key }.write_new(&own)?;
    Ok(own)
}
