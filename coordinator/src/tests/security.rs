//! The coordinator's port over real TLS: every call by every kind of caller.

use std::time::Duration;

use coxswain_proto::{RPCS, wire};
use coxswain_transport::tls::token::ca_hash;
use coxswain_transport::tls::{ClientTls, Credentials, Transport};
use coxswain_transport::{access_client, cluster_client, connect_over, jobs_client};
use expect_test::expect;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::Site;
use super::secured::Secured;
use crate::access::{Joining, Security};
use crate::auth::tokens::Grant;
use crate::tls::authority::{Authority, DAY};

/// Makes the call at `path` about the job tiny-1, which is the first field of all messages that name one.
async fn call(channel: Channel, path: &'static str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let codec = tonic_prost::ProstCodec::<wire::GetRequest, wire::GetRequest>::default();
    let message = Request::new(wire::GetRequest { job: "tiny-1".to_owned() });
    let path = http::uri::PathAndQuery::from_static(path);
    // What streams replies answers a call of this form too: its status comes before the first of them.
    grpc.server_streaming(message, path, codec).await.map(drop)
}

/// Whether the connection broke: a status that has a cause was made on this side.
fn is_cut(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.code() == Code::Cancelled
}

/// How a call ended, in a word.
fn word(result: Result<(), Status>) -> &'static str {
    let Err(status) = result else { return "yes" };
    match status.code() {
        // The coordinator's alert, or, where that lost the race with what was sent, its hanging up.
        _ if is_cut(&status) => "tls",
        Code::PermissionDenied if status.message().contains("may not call") => "role",
        Code::PermissionDenied => "job",
        Code::Unauthenticated => "cert",
        // It was let through to what answers it.
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition => "yes",
        _ => panic!("{status}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_by_every_caller() {
    let site = Secured::start().await;
    let other = Authority::new("other", DAY).unwrap();
    let admin = "coxswain://admin/ann/job/*";
    let by = |credentials: Credentials| Transport::Tls(ClientTls::new(&credentials).unwrap());
    let expired = by(site.credentials(&site.authority, admin, Duration::ZERO));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let callers = [
        ("admin", site.transport(admin)),
        ("submitter", site.transport("coxswain://submitter/sue/job/tiny-*")),
        ("sub.other", site.transport("coxswain://submitter/sam/job/huge-*")),
        ("viewer", site.transport("coxswain://viewer/vic/job/*")),
        ("worker", site.transport("coxswain://worker/w0/job/tiny-1")),
        ("wk. other", site.transport("coxswain://worker/w1/job/huge-*")),
        ("no one", Transport::Tls(ClientTls::pinned(&ca_hash(site.authority.der())).unwrap())),
        ("other CA", by(site.credentials(&other, admin, DAY))),
        ("expired", expired),
    ];
    let mut table = format!("{:<24}", "");
    for (name, _) in &callers {
        table += &format!("{name:<10}");
    }
    for path in RPCS {
        table += &format!("\n{:<24}", path.trim_start_matches("/coxswain.v1."));
        for (_, transport) in &callers {
            let result = match connect_over(&site.url, transport).await {
                Ok(channel) => word(call(channel, path).await),
                Err(error) => panic!("{error}"),
            };
            table += &format!("{result:<10}");
        }
    }
    let table: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    expect![[r#"
                                admin     submitter sub.other viewer    worker    wk. other no one    other CA  expired
        Cluster/Register        role      role      role      role      job       job       cert      tls       tls
        Cluster/Sync            role      role      role      role      yes       yes       cert      tls       tls
        Cluster/StoreSet        role      role      role      role      yes       job       cert      tls       tls
        Cluster/StoreGet        role      role      role      role      yes       job       cert      tls       tls
        Jobs/Submit             yes       yes       yes       role      role      role      cert      tls       tls
        Jobs/Get                yes       yes       job       yes       role      role      cert      tls       tls
        Jobs/List               yes       yes       yes       yes       role      role      cert      tls       tls
        Jobs/Cancel             yes       yes       job       role      role      role      cert      tls       tls
        Jobs/Drain              yes       job       job       role      role      role      cert      tls       tls
        Jobs/Explain            yes       yes       job       yes       role      role      cert      tls       tls
        Jobs/View               yes       yes       job       yes       role      role      cert      tls       tls
        Jobs/Events             yes       yes       job       yes       role      role      cert      tls       tls
        Jobs/Watch              yes       yes       job       yes       role      role      cert      tls       tls
        Access/Join             yes       yes       yes       yes       yes       yes       yes       tls       tls
        Access/Renew            role      role      role      role      yes       yes       cert      tls       tls
        Access/CreateToken      yes       role      role      role      role      role      cert      tls       tls
        Access/VoidToken        yes       role      role      role      role      role      cert      tls       tls
        Access/Revoke           yes       role      role      role      role      role      cert      tls       tls
        Access/Revoked          yes       role      role      role      role      role      cert      tls       tls
    "#]].assert_eq(&table);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_an_address_that_says_so_get_nowhere() {
    let site = Secured::start().await;
    let plain = site.url.replace("https", "http");
    let channel = coxswain_transport::connect(&plain).await;
    if let Ok(channel) = channel {
        jobs_client(channel).list(wire::ListRequest::default()).await.unwrap_err();
    }
    let error = connect_over(&plain, &site.transport("coxswain://admin/a/job/*")).await.unwrap_err();
    assert!(error.to_string().contains("say https://"), "{error}");
    let error = coxswain_transport::connect(&site.url).await.unwrap_err();
    assert!(error.to_string().contains("COXSWAIN_TLS_DIR"), "{error}");
    // A coordinator of another cluster, and one without certificates.
    let other = Secured::start().await;
    let error = connect_over(&other.url, &site.transport("coxswain://admin/a/job/*")).await.unwrap_err();
    assert!(error.to_string().contains("not by the CA given here"), "{error}");
    let open = Site::start().await;
    let url = open.url.replace("http", "https");
    let error = connect_over(&url, &site.transport("coxswain://admin/a/job/*")).await.unwrap_err();
    assert!(error.to_string().contains("speaks no TLS"), "{error}");
    let mut access = access_client(coxswain_transport::connect(&open.url).await.unwrap());
    let none = access.create_token(wire::CreateTokenRequest::default()).await.err().unwrap();
    assert!(none.message().contains("coxswain certs init"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_over_tls() {
    let site = Secured::start().await;
    let job = site.submit(&["train.steps=100000"]).await;
    let _workers =
        [site.work("coxswain://worker/w0/job/tiny-*", "w0"), site.work("coxswain://worker/w1/job/*", "w1")];
    let mut jobs = jobs_client(site.channel("coxswain://viewer/vic/job/tiny-1").await);
    while jobs.get(wire::GetRequest { job: job.clone() }).await.unwrap().into_inner().step < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut bound = jobs_client(site.channel("coxswain://viewer/vic/job/tiny-*").await);
    let events = |job: &str| wire::EventsRequest { job: job.to_owned(), follow: false };
    assert!(bound.events(events(&job)).await.unwrap().into_inner().message().await.unwrap().is_some());
    let refused = bound.events(events("")).await.err().unwrap();
    assert_eq!(refused.message(), "the journal of all jobs: viewer vic (jobs tiny-*) may not touch it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_who_its_certificate_says_and_keeps_to_its_jobs() {
    let site = Secured::start().await;
    let _bound = site.work("coxswain://worker/w8/job/huge-*", "w8");
    let job = site.submit(&["train.steps=5"]).await;
    let mut jobs = jobs_client(site.channel("coxswain://viewer/vic/job/*").await);
    let mut get = async || jobs.get(wire::GetRequest { job: job.clone() }).await.unwrap().into_inner();
    while !get().await.reason.ends_with("(here: 1 bound to other jobs)") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _free =
        [site.work("coxswain://worker/w2/job/*", "w2"), site.work("coxswain://worker/w3/job/tiny-*", "w3")];
    while get().await.state() != wire::JobState::Done {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let left = site.work("coxswain://worker/w0/job/*", "w1").await.unwrap();
    assert_eq!(left, Ok("it calls itself w1, and its certificate is for worker w0".to_owned()));
    let mut other = cluster_client(site.channel("coxswain://worker/w0/job/huge-*").await);
    let get = wire::StoreGetRequest { job: "tiny-1".to_owned(), generation: 1, key: vec![1], wait_ms: 0 };
    let refused = other.store_get(get).await.unwrap_err();
    assert_eq!(refused.message(), "job tiny-1: worker w0 (jobs huge-*) may not touch it");
}

#[test]
fn no_secret_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let joining = Joining { chain_life: DAY, pods: None };
    let security = Security::open(Authority::new("test", DAY).unwrap(), folder.path(), joining).unwrap();
    let grant =
        Grant { role: crate::auth::identity::Role::Worker, jobs: "*".parse().unwrap(), ttl_s: 60, uses: 1 };
    let token = security.token(grant).unwrap();
    let shown = format!("{security:?} {token:?} {:?}", token.spoken());
    assert!(!shown.contains(token.secret().expose()), "{shown}");
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_follows_so_many_streams_and_gets_their_places_back() {
    let site = Secured::start().await;
    let viewer = jobs_client(site.channel("coxswain://viewer/vic/job/*").await);
    let follow = async || {
        let request = wire::EventsRequest { job: String::new(), follow: true };
        viewer.clone().events(request).await.map(tonic::Response::into_inner)
    };
    let mut followed = Vec::new();
    let refused = loop {
        match follow().await {
            Ok(stream) if followed.len() < 100 => followed.push(stream),
            other => break other.map(drop).unwrap_err(),
        }
    };
    assert_eq!((followed.len(), refused.code()), (16, Code::ResourceExhausted), "{refused}");
    followed.pop();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while follow().await.is_err() {
        assert!(std::time::Instant::now() < end, "the place of one that has gone is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a caller is told in answer to all its calls about `job`.
async fn texts(jobs: &mut Jobs, job: &str, directory: &str) -> Vec<String> {
    let job = job.to_owned();
    let get = jobs.get(wire::GetRequest { job: job.clone() }).await.unwrap().into_inner();
    let list = jobs.list(wire::ListRequest::default()).await.unwrap().into_inner();
    let explain = jobs.explain(wire::ExplainRequest { job: job.clone() }).await.unwrap().into_inner();
    let mut watch = jobs.watch(wire::WatchRequest { job: job.clone() }).await.unwrap().into_inner();
    let watched = watch.message().await.unwrap();
    let events = wire::EventsRequest { job: job.clone(), follow: false };
    let mut events = jobs.events(events).await.unwrap().into_inner();
    let mut happened = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        happened.push(event);
    }
    let taken = jobs.submit(submission("tiny", directory, 1)).await.unwrap_err();
    let foreign = jobs.get(wire::GetRequest { job: "tiny-77".to_owned() }).await.unwrap_err();
    vec![
        get.reason,
        format!("{list:?}"),
        explain.text,
        format!("{watched:?}"),
        format!("{happened:?}"),
        taken.message().to_owned(),
        foreign.message().to_owned(),
    ]
}

type Jobs = wire::jobs_client::JobsClient<Channel>;

fn submission(name: &str, directory: &str, priority: i32) -> wire::SubmitRequest {
    wire::SubmitRequest {
        manifest: super::JOB.to_owned(),
        origin: "job.yaml".to_owned(),
        base: "/".to_owned(),
        directory: directory.to_owned(),
        sets: vec![format!("name={name}"), format!("train.steps={}", 100_000 + priority)],
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_bound_to_jobs_reads_no_name_of_another() {
    let site = Secured::start().await;
    let mut admin = jobs_client(site.channel("coxswain://admin/ann/job/*").await);
    let directory = |name: &str| site.folder.path().join(name).to_str().unwrap().to_owned();
    let secret = admin.submit(submission("secret", &directory("a"), 0)).await.unwrap().into_inner().job;
    let job = admin.submit(submission("tiny", &directory("b"), 0)).await.unwrap().into_inner().job;
    let _worker = site.work("coxswain://worker/w0/job/*", "w0");
    let get = wire::GetRequest { job: job.clone() };
    while !admin.get(get.clone()).await.unwrap().into_inner().reason.contains(&secret) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = texts(&mut admin, &job, &directory("a")).await;
    let named = told.iter().filter(|text| text.contains(&secret)).count();
    assert!(named >= 4, "an admin reads all names: {told:?}");
    for uri in ["coxswain://submitter/sue/job/tiny-*", "coxswain://submitter/sam/job/tiny*"] {
        let mut jobs = jobs_client(site.channel(uri).await);
        let told = texts(&mut jobs, &job, &directory("a")).await;
        assert!(!told.iter().any(|text| text.contains("secret")), "{told:?}");
        assert!(told[0].contains("another job"), "{told:?}");
        assert!(told[5].starts_with("another job writes to"), "{told:?}");
        let cancelled = jobs.cancel(wire::CancelRequest { job: "secret-1".to_owned(), ..Default::default() });
        assert_eq!(cancelled.await.unwrap_err().code(), Code::PermissionDenied);
    }
}
