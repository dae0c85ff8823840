//! Thousands of workers on one coordinator, and peers that send too much. The coordinator is the real process;
//! the workers say that they are idle and nothing else.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[allow(dead_code, reason = "other tests use more of it")]
mod serve;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coxswain_proto::wire;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_transport::{cluster_client, connect};
use serve::{Serve, free_port, long};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// A worker that is silent for so long is lost. Whatever takes longer on a busy machine would cost one.
const LEASE: Duration = Duration::from_millis(coxswain_core::cluster::LEASE_MS);

/// Workers that connect at the same time.
const CONNECTING: usize = 128;

/// How often each worker says how it is: five times in four of its leases.
const HEARTBEAT: Duration = Duration::from_secs(4);

fn status(n: usize) -> wire::WorkerStatus {
    let info = wire::WorkerInfo {
        id: format!("worker-{n}"),
        incarnation: 1,
        host: format!("host-{}", n / 8),
        pid: n as u32,
        cores: 2,
        device: "cpu".to_owned(),
        runtime: "libtorch 2.11.0 AVX512".to_owned(),
    };
    wire::WorkerStatus { info: Some(info), phase: wire::Phase::Idle.into(), ..Default::default() }
}

/// An idle worker; it ends when the coordinator lets it go.
async fn idle(url: String, n: usize, connecting: Arc<Semaphore>, said: Arc<AtomicUsize>) {
    let permit = connecting.acquire().await.unwrap();
    let mut client = cluster_client(connect(&url).await.unwrap());
    let (statuses, outgoing) = mpsc::channel(2);
    statuses.send(status(n)).await.unwrap();
    let mut desired = client.sync(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    // It is here once it was told what is wanted of it.
    assert_eq!(desired.message().await.unwrap().unwrap().leave, None);
    drop(permit);
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.tick().await;
    loop {
        tokio::select! {
            message = desired.message() => {
                let leave = message.unwrap().and_then(|desired| desired.leave);
                panic!("worker {n} is sent away: {leave:?}");
            }
            _ = beat.tick() => {
                statuses.send(status(n)).await.unwrap();
                said.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Megabytes of memory that a process has now.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

async fn here(jobs: &mut JobsClient<Channel>) -> usize {
    jobs.list(wire::ListRequest::default()).await.unwrap().into_inner().workers.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_workers_are_no_load() {
    let count = if long() { 10_000 } else { 1000 };
    let folder = tempfile::tempdir().unwrap();
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let (connecting, said) = (Arc::new(Semaphore::new(CONNECTING)), Arc::new(AtomicUsize::new(0)));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for n in 0..count {
        workers.spawn(idle(serve.url.clone(), n, connecting.clone(), said.clone()));
    }
    while here(&mut jobs).await < count {
        assert!(start.elapsed() < Duration::from_secs(60), "{} are here", here(&mut jobs).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let registered = start.elapsed();
    // A call waits in the same queue as the heartbeats do, and takes longer than one of them.
    let (start, before) = (Instant::now(), said.load(Ordering::Relaxed));
    let mut took = Vec::new();
    while start.elapsed() < if long() { Duration::from_secs(20) } else { Duration::from_secs(5) } {
        let asked = Instant::now();
        let answer = jobs.get(wire::GetRequest { job: "absent-1".to_owned() }).await;
        assert_eq!(answer.unwrap_err().code(), tonic::Code::NotFound);
        took.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let a_second = (said.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    assert_eq!(here(&mut jobs).await, count);
    if let Some(ended) = workers.try_join_next() {
        ended.unwrap();
    }
    let memory = memory(serve.pid());
    println!(
        "{count} workers are here after {registered:?}; {a_second:.0} heartbeats a second, a call between them \
         takes {:?} (median), {p99:?} (p99); {memory} MiB",
        took[took.len() / 2]
    );
    assert!(memory < if long() { 1024 } else { 256 }, "{memory} MiB");
    assert!(p99 < if long() { Duration::from_millis(100) } else { LEASE }, "{p99:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_stops_talking_is_cut_off_and_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let mut client = cluster_client(connect(&serve.url).await.unwrap());
    let (statuses, outgoing) = mpsc::channel(1);
    let talking = tokio::spawn(async move {
        let mut said = 0;
        while statuses.send(status(0)).await.is_ok() {
            said += 1;
        }
        said
    });
    let mut desired = client.sync(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    let (start, mut slowest) = (Instant::now(), Duration::ZERO);
    // It is read at its rate, and what it says beyond piles up on its connection until HTTP/2 ends that.
    while !talking.is_finished() {
        let asked = Instant::now();
        here(&mut jobs).await;
        slowest = slowest.max(asked.elapsed());
        assert!(start.elapsed() < Duration::from_secs(10), "it talks on");
    }
    while let Ok(Some(_)) = desired.message().await {}
    println!("cut off after {} statuses; the slowest call took {slowest:?}", talking.await.unwrap());
    assert!(slowest < LEASE, "{slowest:?}");
    while here(&mut jobs).await > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it counts as here");
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Headers, none of which is in a table.
fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Begins a call of `Submit` by hand, claims a message of `claims` bytes, and sends as much of it as is
/// allowed before anyone answers. Returns what came back.
async fn claim(address: String, claims: u32) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let path = "/coxswain.v1.Jobs/Submit";
    let block = headers(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "coxswain"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &block));
    let mut prefix = vec![0];
    prefix.extend(claims.to_be_bytes());
    bytes.extend(frame(0, 0, 1, &prefix));
    // The first window of a stream is 65,535 bytes.
    for _ in 0..3 {
        bytes.extend(frame(0, 0, 1, &vec![0; 16_384]));
    }
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = vec![0; 4096];
    let patience = Duration::from_millis(500);
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(patience, stream.read(&mut buffer)).await {
        answer.extend(&buffer[..count]);
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_claims_too_much_is_refused_in_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let address = serve.url.trim_start_matches("http://").to_owned();
    let before = memory(serve.pid());
    let mut attempts = JoinSet::new();
    for n in 0..100 {
        let claims = if n % 2 == 0 { (4 << 20) + 1 } else { 1 << 30 };
        attempts.spawn(claim(address.clone(), claims));
    }
    let mut most = before;
    while let Some(answer) = attempts.join_next().await {
        let answer = answer.unwrap();
        // A reply of headers only: its status is in a code that hides texts, its kind is not.
        assert!(answer.windows(9).any(|frame| frame[3] == 1 && frame[5..9] == [0, 0, 0, 1]), "no refusal");
        most = most.max(memory(serve.pid()));
    }
    // A true client is told so by name.
    let mut request = wire::SubmitRequest { manifest: "#".repeat((4 << 20) + 1), ..Default::default() };
    let channel = connect(&serve.url).await.unwrap();
    let mut lax = JobsClient::new(channel);
    let refused = lax.submit(request.clone()).await.unwrap_err();
    assert!(refused.message().contains("4194304"), "{refused}");
    request.manifest.truncate(100);
    let mut call = tonic::Request::new(request.clone());
    call.metadata_mut().insert("x-long", "x".repeat(64 << 10).parse().unwrap());
    assert!(lax.submit(call).await.is_err(), "a call with headers of 64 KiB");
    most = most.max(memory(serve.pid()));
    println!("100 claims of too much: from {before} to {most} MiB");
    assert!(most - before < 64, "from {before} to {most} MiB");
    assert_eq!(here(&mut jobs).await, 0);
}
