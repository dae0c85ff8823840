//! Callers of every role who flood, stall and lie, against a real coordinator. Meanwhile an honest caller's answers come
//! in time, and the coordinator's memory stays bounded.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[allow(dead_code, reason = "another test uses more of it")]
mod place;

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coxswain_proto::wire;
use coxswain_transport::tls::client::certificates;
use coxswain_transport::tls::token::ca_hash;
use coxswain_transport::tls::{ClientTls, Credentials, Transport};
use coxswain_transport::{access_client, cluster_client, connect_over, jobs_client};
use place::{Place, coxswain, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

/// How long each of them goes on.
const ATTACK: Duration = Duration::from_secs(2);

/// How many do the same at once.
const MANY: usize = 64;

/// How long an honest call may take at its slowest. Attackers and coordinator share two cores with it.
const ANSWER: Duration = Duration::from_secs(3);

/// How much memory an attack may take beside what the coordinator had before.
const MEMORY_MIB: u64 = 192;

/// Memory that the coordinator has, in MiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// What a caller does until it is stopped.
type Attack = fn(Caller) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// A caller and the way to the coordinator.
#[derive(Clone)]
struct Caller {
    url: String,
    transport: Transport,
    number: usize,
    /// How often the attack came as far as it means to.
    hits: Arc<AtomicUsize>,
}

impl Caller {
    fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts what was answered in one of these ways.
    fn expect<T>(&self, answer: Result<T, tonic::Status>, codes: &[Code]) -> Option<T> {
        let code = answer.as_ref().err().map_or(Code::Ok, tonic::Status::code);
        if codes.contains(&code) {
            self.hit();
        }
        answer.ok()
    }

    async fn channel(&self) -> Channel {
        loop {
            match connect_over(&self.url, &self.transport).await {
                Ok(channel) => return channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

macro_rules! attack {
    ($caller:ident, $body:block) => {
        |$caller: Caller| Box::pin(async move { loop $body })
    };
}

/// Each row: who, what it does, and how.
fn attacks() -> Vec<(&'static str, &'static str, Attack)> {
    vec![
        (
            "stranger",
            "floods with connections of garbage",
            attack!(caller, {
                let address = caller.url.trim_start_matches("https://");
                if let Ok(mut stream) = TcpStream::connect(address).await
                    && stream.write_all(&[0x16, 3, 1, 0xff, 0xff, 7, 7, 7]).await.is_ok()
                {
                    caller.hit();
                }
            }),
        ),
        (
            "stranger",
            "stalls in the handshake",
            attack!(caller, {
                let address = caller.url.trim_start_matches("https://");
                let mut held = Vec::new();
                for _ in 0..8 {
                    held.extend(TcpStream::connect(address).await);
                }
                let mut byte = [0];
                for stream in &mut held {
                    // It ends once another stranger has its place.
                    if matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {
                        caller.hit();
                    }
                }
            }),
        ),
        (
            "stranger",
            "lies about a token",
            attack!(caller, {
                let mut access = access_client(caller.channel().await);
                let request = wire::JoinRequest {
                    token: "00000000.none".to_owned(),
                    name: "w9".to_owned(),
                    request: signing_request(),
                    ..Default::default()
                };
                caller.expect(access.join(request).await, &[Code::Unauthenticated]);
            }),
        ),
        (
            "viewer",
            "floods with lists",
            attack!(caller, {
                let mut jobs = jobs_client(caller.channel().await);
                for _ in 0..1000 {
                    caller.expect(jobs.list(wire::ListRequest::default()).await, &[Code::Ok]);
                }
            }),
        ),
        (
            "viewer",
            "stalls as a follower of events",
            attack!(caller, {
                let mut jobs = jobs_client(caller.channel().await);
                let mut held = Vec::new();
                for _ in 0..100 {
                    let request = wire::EventsRequest { follow: true, ..Default::default() };
                    held.push(caller.expect(jobs.events(request).await, &[Code::Ok]));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }),
        ),
        (
            "submitter",
            "floods with jobs",
            attack!(caller, {
                let mut jobs = jobs_client(caller.channel().await);
                let pad = "#".repeat(200 << 10);
                for n in 0.. {
                    let directory = format!("run-{}-{n}", caller.number);
                    let manifest = format!("{JOB}\n{pad}");
                    let request = wire::SubmitRequest { manifest, directory, ..Default::default() };
                    caller.expect(jobs.submit(request).await, &[Code::Ok]);
                }
            }),
        ),
        (
            "submitter",
            "lies about paths, sizes and keys",
            attack!(caller, {
                let mut jobs = jobs_client(caller.channel().await);
                let deep = format!("model.{}=1", "a.".repeat(100_000));
                let large = "model={layers: 1024, dim: 4096, heads: 1024, head_dim: 4, vocab: 3000}";
                let shards = "train={steps: 1, sequence: 16, global_micro_batches: 4096, tensor_shards: 64}";
                for (directory, sets) in [
                    ("../../etc", vec![]),
                    ("run", vec![deep]),
                    ("run", vec!["data={text: /dev/zero}".to_owned()]),
                    ("run", vec![large.to_owned(), shards.to_owned()]),
                ] {
                    let manifest = JOB.to_owned();
                    let request = wire::SubmitRequest {
                        manifest,
                        directory: directory.to_owned(),
                        sets,
                        ..Default::default()
                    };
                    caller.expect(jobs.submit(request).await, &[Code::InvalidArgument]);
                }
            }),
        ),
        (
            "worker",
            "floods with statuses",
            attack!(caller, {
                let mut cluster = cluster_client(caller.channel().await);
                let (statuses, outgoing) = mpsc::channel(16);
                let answers = cluster.sync(ReceiverStream::new(outgoing)).await;
                while answers.is_ok() && statuses.send(status("w0", 1)).await.is_ok() {
                    caller.hit();
                }
            }),
        ),
        (
            "worker",
            "stalls after large statuses",
            attack!(caller, {
                let mut cluster = cluster_client(caller.channel().await);
                let mut held = Vec::new();
                for _ in 0..100 {
                    let (statuses, outgoing) = mpsc::channel(1);
                    let mut large = status("w0", 1);
                    large.reports = vec![wire::StepReport { step: 1, ..Default::default() }; 50_000];
                    let _ = statuses.send(large).await;
                    let answers = cluster.sync(ReceiverStream::new(outgoing)).await;
                    held.push((caller.expect(answers, &[Code::Ok]), statuses));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }),
        ),
        (
            "worker",
            "lies about its name and its run",
            attack!(caller, {
                let mut cluster = cluster_client(caller.channel().await);
                for (name, incarnation) in [("w0", u64::MAX), ("other", 1), ("w0\n", 1), ("w0", 0)] {
                    let (statuses, outgoing) = mpsc::channel(4);
                    let mut said = status(name, incarnation);
                    said.generation = u64::MAX;
                    said.phase = wire::Phase::Done.into();
                    said.assignment_digest = Some("0".repeat(64));
                    let _ = statuses.send(said).await;
                    if let Ok(answers) = cluster.sync(ReceiverStream::new(outgoing)).await {
                        caller.expect(answers.into_inner().message().await, &[Code::Ok]);
                    }
                    let key = vec![7; 1024];
                    let set = wire::StoreSetRequest {
                        job: "demo-1".to_owned(),
                        generation: 1,
                        key,
                        value: vec![7; 4096],
                    };
                    let _ = cluster.store_set(set).await;
                }
            }),
        ),
        (
            "admin",
            "floods with tokens",
            attack!(caller, {
                let mut access = access_client(caller.channel().await);
                for _ in 0..1000 {
                    let request = wire::CreateTokenRequest {
                        role: "worker".to_owned(),
                        jobs: "*".to_owned(),
                        ttl_s: 1,
                        uses: 1,
                    };
                    caller.expect(access.create_token(request).await, &[Code::Ok]);
                }
            }),
        ),
        (
            "bound",
            "floods with lists of others' jobs",
            attack!(caller, {
                let mut jobs = jobs_client(caller.channel().await);
                for n in 0..1000 {
                    let request = wire::GetRequest { job: format!("mine-{n}") };
                    caller.expect(jobs.get(request).await, &[Code::NotFound]);
                    caller.expect(jobs.list(wire::ListRequest::default()).await, &[Code::Ok]);
                }
            }),
        ),
    ]
}

/// A certificate signing request, as a worker makes it.
fn signing_request() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

const JOB: &str = "
name: demo
model: {layers: 1, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 3, sequence: 16}
";

fn status(name: &str, incarnation: u64) -> wire::WorkerStatus {
    let info = wire::WorkerInfo {
        id: name.to_owned(),
        incarnation,
        host: "alpha".to_owned(),
        pid: 1,
        cores: 2,
        device: "cpu".to_owned(),
        runtime: "libtorch 2.11.0".to_owned(),
    };
    wire::WorkerStatus { info: Some(info), phase: wire::Phase::Idle.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_floods_stalls_or_lies_others_are_answered() {
    let place = Place::new();
    let (url, pid) = (place.url(), place.serve.id());
    for (role, name, jobs) in
        [("viewer", "viewer", "*"), ("viewer", "bound", "mine-*"), ("submitter", "submitter", "*")]
    {
        let issue = ["certs", "issue", "--dir", "tls", "--role", role, "--name", name, "--job", jobs];
        let issued = coxswain(place.folder.path(), &issue);
        assert!(issued.status.success(), "{}", text(&issued.stderr));
    }
    let by = |credentials: &Credentials| Transport::Tls(ClientTls::new(credentials).unwrap());
    let of = |name: &str| by(&Credentials::read(&place.path(&format!("tls/people/{name}"))).unwrap());
    let worker = place.join(&place.token(&["--role", "worker"]), "w0").await.unwrap();
    let ca = certificates("the CA", &worker.ca).unwrap();
    let transport = |who: &str| match who {
        "worker" => by(&worker),
        "stranger" => Transport::Tls(ClientTls::pinned(&ca_hash(&ca[0])).unwrap()),
        name => of(name),
    };
    // The honest caller is of another name, and comes anew with each call, as commands do.
    let issued = ["certs", "issue", "--dir", "tls", "--role", "viewer", "--name", "honest"];
    assert!(coxswain(place.folder.path(), &issued).status.success());
    let honest = of("honest");
    for (who, what, attack) in attacks() {
        let (before, hits) = (memory(pid), Arc::new(AtomicUsize::new(0)));
        let mut attackers = JoinSet::new();
        for number in 0..MANY {
            let hits = hits.clone();
            attackers.spawn(attack(Caller { url: url.clone(), transport: transport(who), number, hits }));
        }
        let (start, mut answers, mut slowest, mut most) = (Instant::now(), 0, Duration::ZERO, before);
        while start.elapsed() < ATTACK {
            let asked = Instant::now();
            let channel = connect_over(&url, &honest).await.unwrap();
            let job = "none-1".to_owned();
            let answer = jobs_client(channel).get(wire::GetRequest { job }).await;
            assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound, "{who} {what}");
            (answers, slowest, most) = (answers + 1, slowest.max(asked.elapsed()), most.max(memory(pid)));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        attackers.shutdown().await;
        let hits = hits.load(Ordering::Relaxed);
        coxswain_console::say(&format!(
            "{who} {what} ({hits} times): {answers} answers, the slowest after {slowest:?}; from {before} to {most} MiB"
        ));
        assert!(hits > 0, "{who} {what}: nothing came through");
        assert!(slowest < ANSWER, "{who} {what}: an answer took {slowest:?}");
        assert!(most < before + MEMORY_MIB, "{who} {what}: from {before} to {most} MiB");
    }
}
