//! Certificates and tokens as users meet them, and a port that strangers batter.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../src/tests/fake.rs"]
mod fake;
#[allow(dead_code, reason = "another test uses more of it")]
mod place;
#[path = "../../tests/src/skip.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
mod skip;
#[path = "../src/tests/tunnel.rs"]
mod tunnel;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coxswain_proto::wire;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_transport::tls::{ClientTls, Credentials, Transport, enroll};
use coxswain_transport::{connect_over, jobs_client};
use place::{Place, SERVE, command, coxswain, text};
use tonic::transport::Channel;

#[test]
fn certificates_are_private_and_never_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| coxswain(folder.path(), arguments);
    let init = run(&["certs", "init", "--dir", "tls", "--host", "10.0.0.1", "--host", "train.example"]);
    let said = text(&init.stderr);
    assert_eq!((init.status.code(), text(&init.stdout)), (Some(0), ""), "{said}");
    for expected in ["--tls-dir tls", "token create", "10.0.0.1, train.example, localhost"] {
        assert!(said.contains(expected), "{said}");
    }
    let again = run(&["certs", "init", "--dir", "tls"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("tls/ca.pem is there already"), "{}", text(&again.stderr));
    assert!(run(&["certs", "issue", "--dir", "tls", "--role", "viewer", "--name", "vic"]).status.success());
    let taken = run(&["certs", "issue", "--dir", "tls", "--role", "admin", "--name", "vic"]);
    assert!(text(&taken.stderr).contains("take another name"), "{}", text(&taken.stderr));
    let rows: [(&[&str], &str); 7] = [
        (&["certs", "issue", "--dir", "tls", "--role", "viewer", "--name", "../x"], "has to be of letters"),
        (&["certs", "issue", "--dir", "tls", "--role", "worker", "--name", "w"], "coxswain token create"),
        (&["certs", "issue", "--dir", "tls", "--role", "root", "--name", "r"], "admin, submitter, viewer"),
        (&["serve", "--data-dir", "d", "--tls-dir", "none"], "coxswain certs init --dir none"),
        (&["certs", "init", "--dir", "other", "--host", "bad host"], "is not a name or address of a host"),
        (
            &["status", "--tls-dir", "none"],
            "none/ca.pem: No such file or directory (os error 2); --tls-dir and",
        ),
        (
            &["certs", "join", "--token-file", "none", "--name", "sue", "--out", "sue"],
            "none cannot be read: No such file or directory (os error 2)\n",
        ),
    ];
    for (arguments, expected) in rows {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    let before = fs::read(folder.path().join("tls/cert.pem")).unwrap();
    let renewed = run(&["certs", "renew", "--dir", "tls", "--host", "new.example"]);
    let names = "10.0.0.1, train.example, localhost, 127.0.0.1, ::1, new.example";
    assert!(text(&renewed.stderr).contains(names), "{}", text(&renewed.stderr));
    assert!(fs::read(folder.path().join("tls/cert.pem")).unwrap() != before);
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    for (name, expected) in [
        ("tls", 0o700),
        ("tls/ca-key.pem", 0o600),
        ("tls/key.pem", 0o600),
        ("tls/people/vic", 0o700),
        ("tls/people/vic/key.pem", 0o600),
    ] {
        assert_eq!(mode(name), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_a_worker_and_nothing_else_gets_in() {
    let place = Place::new();
    // Without a certificate, in plain text, and with one.
    let plain = place.port.to_string();
    let plain = coxswain(place.folder.path(), &["status", "--coordinator", &format!("127.0.0.1:{plain}")]);
    assert_eq!(plain.status.code(), Some(1));
    assert!(text(&plain.stderr).contains("COXSWAIN_TLS_DIR"), "{}", text(&plain.stderr));
    let status = place.admin(&["status"]);
    assert!(text(&status.stdout).contains("no workers"), "{}", text(&status.stderr));

    let token = place.token(&["--role", "worker", "--uses", "1"]);
    let credentials = place.join(&token, "w0").await.unwrap();
    let url = tunnel::tunnel(&place.url(), ClientTls::new(&credentials).unwrap()).await;
    let worker = tokio::spawn(async move { fake::work(&url, "w0", fake::Faults::default()).await });
    let deadline = Instant::now() + Duration::from_secs(5);
    while !text(&place.admin(&["status"]).stdout).contains("w0") {
        assert!(Instant::now() < deadline, "the worker is not there");
    }
    worker.abort();

    // Used up, expired, of a wrong secret, of another cluster.
    let used = place.join(&token, "w1").await.unwrap_err();
    assert!(used.contains("is used up") && used.contains("coxswain token create"), "{used}");
    let short = place.token(&["--role", "worker", "--ttl-s", "1"]);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let expired = place.join(&short, "w1").await.unwrap_err();
    assert!(expired.contains("has expired") && expired.contains("coxswain token create"), "{expired}");
    let good = place.token(&["--role", "worker"]);
    let wrong = good.text().expose().replacen(&good.secret().expose()[..4], "0000", 1);
    let wrong = place.join(&wrong.parse().unwrap(), "w1").await.unwrap_err();
    assert!(wrong.contains("not known here"), "{wrong}");
    let elsewhere = Place::new();
    let foreign = elsewhere.join(&good, "w1").await.unwrap_err();
    assert!(foreign.contains("another coordinator answers"), "{foreign}");

    // A viewer's token makes no worker and no admin; an admin's is not made at all.
    let viewer = place.token(&["--role", "viewer", "--job", "demo-*"]);
    fs::write(place.path("token"), viewer.text().expose()).unwrap();
    let joined = ["certs", "join", "--token-file", "token", "--name", "vic", "--out", "vic"];
    let joined = place.run("none", &joined);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    assert!(place.run("vic", &["status"]).status.success());
    for arguments in [&["token", "create", "--role", "worker"][..], &["cancel", "demo-1"]] {
        let refused = place.run("vic", arguments);
        assert_eq!(refused.status.code(), Some(1));
        let said = text(&refused.stderr);
        assert!(said.contains("viewer vic (jobs demo-*) may not call"), "{said}");
    }
    let vic = ClientTls::new(&Credentials::read(&place.path("vic")).unwrap()).unwrap();
    let vic = tunnel::tunnel(&place.url(), vic).await;
    let refused =
        fake::work(&vic, "vic", fake::Faults { clings: true, ..Default::default() }).await.unwrap_err();
    assert!(refused.contains("may not call Sync"), "{refused}");
    let admin = place.admin(&["token", "create", "--role", "admin"]);
    assert!(text(&admin.stderr).contains("no token makes an admin"), "{}", text(&admin.stderr));
    // A certificate of one cluster says nothing to another.
    fs::rename(elsewhere.path("tls"), place.path("other")).unwrap();
    let other = place.run("other/people/admin", &["status"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("of another cluster"), "{}", text(&other.stderr));

    // What is secret is in no log and in no command line.
    let log = place.log.lock().unwrap().clone();
    assert!(log.contains(token.id()), "{log}");
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", place.serve.id())).unwrap();
    for shown in [log, arguments] {
        for token in [&token, &short, &good, &viewer] {
            assert!(!shown.contains(token.secret().expose()), "{shown}");
        }
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_chains_and_revocations_outlive_the_coordinator() {
    let mut place = Place::new();
    let days = (90 * 24 * 3600).to_string();
    let token = place.token(&["--role", "worker", "--uses", "3", "--ttl-s", &days]);
    let credentials = place.join(&token, "w0").await.unwrap();
    place.join(&token, "w1").await.unwrap();
    let revoked = place.admin(&["certs", "revoke", "w1", "--role", "worker"]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    place.restart();
    let tls = ClientTls::new(&credentials).unwrap();
    let channel = connect_over(&place.url(), &Transport::Tls(tls.clone())).await.unwrap();
    enroll::renew(channel, &tls).await.unwrap();
    let list = place.admin(&["certs", "revoke", "--list"]);
    let (list, line) = (text(&list.stdout), "worker w1 since 20");
    assert!(list.starts_with(line) && list.ends_with("Z by admin admin\n"), "{list}");
    let refused = place.join(&token, "w1").await.unwrap_err();
    assert!(refused.contains("worker w1 was revoked"), "{refused}");
    assert!(place.admin(&["certs", "revoke", "w1", "--undo"]).status.success());
    assert_eq!(text(&place.admin(&["certs", "revoke", "--list"]).stdout), "");
    // What is made in the second of the revocation would be refused with what was made before.
    let early = place.join(&token, "w1").await.err().unwrap_or_default();
    assert!(early.is_empty() || early.contains("try again then"), "{early}");
    if !early.is_empty() {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        place.join(&token, "w1").await.unwrap();
    }
    let used = place.join(&token, "w2").await.unwrap_err();
    assert!(used.contains("is used up"), "{used}");
    assert_eq!(place.admin(&["certs", "revoke", "w1", "--undo"]).status.code(), Some(2));
    let stolen = place.token(&["--role", "worker"]);
    let revoked = place.admin(&["token", "revoke", stolen.id()]);
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    let refused = place.join(&stolen, "w2").await.unwrap_err();
    assert!(refused.contains("was revoked"), "{refused}");
    assert_eq!(place.admin(&["token", "revoke", "00"]).status.code(), Some(2));

    // What it remembers is damaged.
    place.serve.kill().unwrap();
    place.serve.wait().unwrap();
    let access = place.path("data/access");
    let mut bytes = fs::read(&access).unwrap();
    bytes[40] ^= 1;
    fs::write(&access, bytes).unwrap();
    let serve = coxswain(place.folder.path(), &SERVE);
    let said = text(&serve.stderr);
    assert!(serve.status.code() == Some(1) && said.contains("data/access is damaged at line 2"), "{said}");
}

/// What a stranger sends.
#[derive(Clone, Copy, Debug)]
enum Garbage {
    Bytes,
    /// The beginning of a TLS hello, and then nothing.
    Hello,
    Http,
    Nothing,
}

const GARBAGE: [Garbage; 4] = [Garbage::Bytes, Garbage::Hello, Garbage::Http, Garbage::Nothing];

/// Connects and sends it; most of these are hung up on at any point.
fn send(port: u16, garbage: Garbage, n: usize) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let bytes = match garbage {
        Garbage::Bytes => (0..512_usize).map(|i| ((i * 31 + n * 17) ^ (i >> 3)) as u8).collect(),
        // A handshake record that says it has 512 bytes, a hello in it, and 3 of them.
        Garbage::Hello => vec![0x16, 3, 1, 2, 0, 1, 0, 1],
        Garbage::Http => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        Garbage::Nothing => vec![],
    };
    stream.write_all(&bytes).ok()?;
    Some(stream)
}

/// Calls of one caller.
#[derive(Debug)]
struct Throughput {
    a_second: f64,
    slowest: Duration,
}

/// Calls at two thirds of the rate that one caller may have, until then or as long as `on`.
async fn throughput(jobs: &mut JobsClient<Channel>, until: Instant, on: impl Fn() -> bool) -> Throughput {
    let mut due = tokio::time::interval(Duration::from_micros(7_500));
    let (start, mut calls, mut slowest) = (Instant::now(), 0_u32, Duration::ZERO);
    while on() && Instant::now() < until {
        due.tick().await;
        let asked = Instant::now();
        let list = jobs.list(wire::ListRequest::default()).await.unwrap().into_inner();
        (calls, slowest) = (calls + 1, slowest.max(asked.elapsed()));
        assert_eq!(list.workers.len(), 1, "the worker was lost");
    }
    Throughput { a_second: f64::from(calls) / start.elapsed().as_secs_f64(), slowest }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_without_end_cost_no_heartbeat_and_leave_nothing_behind() {
    let count = if skip::long() { 10_000 } else { 600 };
    let place = Place::new();
    let token = place.token(&["--role", "worker"]);
    let credentials = place.join(&token, "w0").await.unwrap();
    let url = tunnel::tunnel(&place.url(), ClientTls::new(&credentials).unwrap()).await;
    let worker = tokio::spawn(async move { fake::work(&url, "w0", fake::Faults::default()).await });
    let admin = Credentials::read(&place.path("tls/people/admin")).unwrap();
    let admin = Transport::Tls(ClientTls::new(&admin).unwrap());
    let mut jobs = jobs_client(connect_over(&place.url(), &admin).await.unwrap());
    while jobs.list(wire::ListRequest::default()).await.unwrap().into_inner().workers.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let baseline = place.open_files();
    let before = throughput(&mut jobs, Instant::now() + Duration::from_secs(2), || true).await;

    let battering = Arc::new(AtomicBool::new(true));
    let (ended, port) = (battering.clone(), place.port);
    let strangers = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        for n in 0..count {
            open.extend(send(port, GARBAGE[n % GARBAGE.len()], n));
            // Half of them are left open from this side, as far as this process may.
            if open.len() > 400 {
                open.drain(..200);
            }
        }
        ended.store(false, Ordering::SeqCst);
        open
    });
    let never = Instant::now() + Duration::from_secs(600);
    let beside = throughput(&mut jobs, never, || battering.load(Ordering::SeqCst)).await;
    let mut open = strangers.await.unwrap();
    let share = beside.a_second / before.a_second;
    println!(
        "{count} strangers: beside them {share:.2} of the calls that there were before: {beside:?}, {before:?}"
    );
    // A call waits where heartbeats do: one that took longer than a lease would cost a worker. How many there are is a
    // matter of the cores, which others may use when no test measures.
    assert!(beside.slowest < Duration::from_millis(coxswain_core::cluster::LEASE_MS), "{beside:?}");
    assert!(!skip::long() || share > 0.8, "{beside:?}, {before:?}");
    assert!(!worker.is_finished(), "the worker's stream broke");
    // All that are left are closed by the coordinator: those that say nothing after its time-out.
    let deadline = Instant::now() + Duration::from_secs(9);
    while place.open_files() > baseline {
        assert!(Instant::now() < deadline, "{} files, {baseline} before", place.open_files());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for stream in &mut open {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // An alert of TLS may come first; then the end, by a close or a reset.
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        assert!(end.as_ref().err().is_none_or(|e| e.kind() != std::io::ErrorKind::WouldBlock), "{end:?}");
    }
    assert_eq!(jobs.list(wire::ListRequest::default()).await.unwrap().into_inner().workers.len(), 1);
    worker.abort();
}

/// Ends a process when dropped.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of 127.0.0.1 is open to all users of a machine, and a coordinator without certificates is its owner's.
#[test]
fn another_user_of_the_machine_is_refused_unless_all_are_taken() {
    const OTHER: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        skip::lacking("root, for only root can be another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("coxswain");
    fs::copy(env!("CARGO_BIN_EXE_coxswain"), &program).unwrap();
    for (options, taken) in [(&[][..], false), (&["--any-user"][..], true)] {
        let mut serve = command(folder.path());
        serve.args(["serve", "--data-dir", "data", "--listen", "127.0.0.1:0"]).args(options);
        let mut serve = Ends(serve.stderr(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(serve.0.stderr.take().unwrap()).lines();
        let first = lines.find(|line| line.as_ref().unwrap().contains("listening on")).unwrap().unwrap();
        let address = first.split("listening on ").nth(1).unwrap().split(';').next().unwrap().to_owned();
        let status = |user: u32| {
            let mut status = Command::new(&program);
            status.args(["status", "--coordinator", &address]).uid(user).gid(user).current_dir("/");
            status.output().unwrap()
        };
        let own = status(0);
        assert!(own.status.success(), "{}", text(&own.stderr));
        let other = status(OTHER);
        let said = text(&other.stderr);
        assert_eq!(other.status.success(), taken, "{options:?}: {said}");
        assert!(taken || said.contains("of user 65534"), "{said}");
    }
}
