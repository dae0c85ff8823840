//! The admin port as browsers and programs meet it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use coxswain_transport::tls::JoinToken;
use coxswain_transport::tls::client::{certificates, private_key, provider, roots};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::fake::Faults;
use super::secured::Secured;
use super::{JOB, Site};
use crate::admin::{AdminArgs, PlainDoor};
use crate::auth::identity::Role;
use crate::auth::tokens::Grant;
use crate::tls::authority::DAY;
use crate::view::ClusterView;

/// A command with the options of the port.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn options(listen: &str) -> AdminArgs {
    Options::parse_from(["serve", "--admin-listen", listen]).admin
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A coordinator with its page.
async fn paged() -> (Site, SocketAddr) {
    let site = Site::start().await;
    let page = options("127.0.0.1:0").open(any_port(), false).await.unwrap().unwrap();
    let address = page.url().trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    page.serve(site.hub.clone(), PlainDoor::Owner, None);
    (site, address)
}

/// An answer: its status, its head and its body.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A request that is refused by its head may be cut short.
    let _ = stream.write_all(request.as_bytes());
    stream
}

/// Asks on a connection of its own.
async fn ask(address: SocketAddr, line: &str, headers: &[&str], body: &str) -> Answer {
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("host:")) {
        request += &format!("host: {address}\r\n");
    }
    headers.iter().for_each(|header| request += &format!("{header}\r\n"));
    if !body.is_empty() {
        request += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    }
    request += &format!("\r\n{body}");
    tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        let _ = send(address, &request).read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    })
    .await
    .unwrap()
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), &[], "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_run_and_a_worker_that_is_lost_within_two_seconds() {
    let (mut site, page) = paged().await;
    let job = site.submit(JOB, &["train.steps=100000"]).await.unwrap();
    let dies = Faults { dies_at: Some(40), ..Faults::default() };
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", dies)];
    let request = format!("GET /api/events?job={job} HTTP/1.1\r\nhost: {page}\r\n\r\n");
    let told = tokio::task::spawn_blocking(move || {
        let (mut kind, mut steps, mut running) = (String::new(), 0, None);
        for line in BufReader::new(send(page, &request)).lines() {
            let line = line.unwrap();
            if let Some(name) = line.strip_prefix("event: ") {
                kind = name.to_owned();
            }
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if kind == "steps" {
                let told: Value = serde_json::from_str(data).unwrap();
                steps = told["steps"].as_array().unwrap().last().unwrap()["step"].as_u64().unwrap();
                running = Some(Instant::now());
                continue;
            }
            let view: ClusterView = serde_json::from_str(data).unwrap();
            let grid = view.detail.unwrap().grid;
            let lost = grid.iter().flat_map(|grid| &grid.ranks).any(|rank| {
                rank.shown.worker == "w1" && rank.shown.state == coxswain_core::cluster::RankState::Lost
            });
            if lost {
                return (steps, running.map(|last: Instant| last.elapsed()));
            }
        }
        panic!("the stream ended");
    });
    let (steps, since) = told.await.unwrap();
    // The steps may be told together with the loss, if they are quick.
    assert!((1..=40).contains(&steps) || since.is_none(), "{steps}");
    assert!(since.is_none_or(|since| since < Duration::from_secs(2)), "{since:?}");
    let view: ClusterView = serde_json::from_str(&get(page, "/api/view").await.body).unwrap();
    let detail = view.detail.unwrap();
    assert_eq!((detail.job.as_str(), detail.lost.interruptions), (job.as_str(), 1));
    assert!(detail.interruptions[0].cause.contains("worker w1"), "{detail:?}");
    assert!(detail.planned.unwrap().rows.len() == 2);
    let series: Value =
        serde_json::from_str(&get(page, &format!("/api/series?job={job}")).await.body).unwrap();
    // The last steps before the loss may not have been reported by both.
    assert!(series["step"].as_array().unwrap().len() as u64 >= steps.max(1), "{series}");
    let runs: Value = serde_json::from_str(&get(page, &format!("/api/runs?job={job}")).await.body).unwrap();
    assert_eq!(runs[0]["run"], "run");
    assert!(get(page, &format!("/api/job?job={job}")).await.body.contains("steps: 100000"));
    let numbers = [
        "coxswain_jobs{state=\"gathering\"} 1",
        &format!("coxswain_job_interruptions_total{{job=\"{job}\"}} 1"),
        "coxswain_workers{phase=\"idle\"} 1",
    ];
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        // The job is prepared anew before it waits for workers.
        let metrics = get(page, "/metrics").await.body;
        if numbers.iter().all(|number| metrics.contains(number)) {
            break;
        }
        assert!(Instant::now() < until, "{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_refused_with_words() {
    let (_site, page) = paged().await;
    let port = format!("origin: http://{page}");
    let long = format!("{{\"job\": \"{}\"}}", "a".repeat(20_000));
    let rows: &[(&str, &[&str], &str, u16, &str)] = &[
        ("GET /", &[], "", 200, "<!doctype html>"),
        ("GET /page.js", &[], "", 200, "use strict"),
        ("GET /healthz", &[], "", 200, "ok"),
        ("GET /readyz", &[], "", 200, "ready"),
        ("GET /metrics", &[], "", 200, "coxswain_build_info"),
        ("GET /api/view?job=none-1", &[], "", 404, "there is no job none-1"),
        ("GET /api/view?jobs=x", &[], "", 400, "jobs"),
        ("GET /api/series?job=none-1", &[], "", 404, "there is no job"),
        ("GET /nothing", &[], "", 404, "nothing is here"),
        ("GET /api/view", &["host: evil.example"], "", 403, "127.0.0.1 or localhost"),
        ("GET /api/view", &["origin: http://evil.example"], "", 403, "another origin"),
        ("GET /api/cancel", &[], "", 405, ""),
        ("POST /api/cancel", &[&port], "{\"job\": \"none-1\"}", 403, "x-coxswain"),
        ("POST /api/cancel", &["x-coxswain: 1"], "{\"job\": \"none-1\"}", 404, "there is no job none-1"),
        ("POST /api/cancel", &["x-coxswain: 1"], "{}", 422, "job"),
        ("POST /api/cancel", &["x-coxswain: 1"], &long, 413, ""),
        ("POST /api/drain", &["x-coxswain: 1"], "{\"worker\": \"w9\"}", 404, "there is no worker w9"),
    ];
    for (line, headers, body, status, words) in rows {
        let answer = ask(page, line, headers, body).await;
        assert_eq!(answer.status, *status, "{line} {headers:?}: {answer:?}");
        assert!(answer.body.contains(words), "{line}: {answer:?}");
        assert!(answer.head.contains("content-security-policy: default-src 'none'"), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_and_a_worker_drained_from_the_page() {
    let (mut site, page) = paged().await;
    let job = site.submit(JOB, &["train.steps=100000"]).await.unwrap();
    let worker = site.worker("w0", Faults::default());
    let body = "{\"worker\": \"w0\"}";
    let until = Instant::now() + Duration::from_secs(10);
    while ask(page, "POST /api/drain", &["x-coxswain: 1"], body).await.status != 200 {
        assert!(Instant::now() < until, "the worker does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(worker.await.unwrap().unwrap().contains("on the page"));
    let answer = ask(page, "POST /api/cancel", &["x-coxswain: 1"], &format!("{{\"job\": \"{job}\"}}")).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "a user cancelled it on the page"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_be_had_stops_nothing_and_one_that_others_reach_needs_certificates() {
    let free = std::net::TcpListener::bind(any_port()).unwrap().local_addr().unwrap().to_string();
    let listener = std::net::TcpListener::bind(any_port()).unwrap();
    let in_use = listener.local_addr().unwrap().to_string();
    let open = |listen: String| async move { options(&listen).open(any_port(), false).await };
    assert!(open(in_use).await.unwrap().is_none());
    assert!(open("off".to_owned()).await.unwrap().is_none());
    // With certificates no page lets this machine's users in unasked.
    assert!(Options::parse_from(["serve"]).admin.open(any_port(), true).await.unwrap().is_none());
    assert!(open(free).await.unwrap().is_some());
    let error = open("0.0.0.0:0".to_owned()).await.err().unwrap().to_string();
    assert!(error.contains("--tls-dir") && error.contains("ssh -L"), "{error}");
    let error = open("nonsense".to_owned()).await.err().unwrap().to_string();
    assert!(error.contains("HOST:PORT"), "{error}");
}

/// Asks over TLS, with a certificate or without one.
async fn ask_over_tls(site: &Secured, own: Option<&str>, request: &str) -> String {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(site.authority.pem()).unwrap());
    let config = match own {
        Some(uri) => {
            let own = site.credentials(&site.authority, uri, DAY);
            let chain = certificates("the certificate", &own.chain).unwrap();
            builder.with_client_auth_cert(chain, private_key(&own.key).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let port: u16 = site.page_url.trim_end_matches('/').rsplit_once(':').unwrap().1.parse().unwrap();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let request = request.replacen(" HTTP/1.1", " HTTP/1.1\r\nhost: gpu-7\r\nconnection: close", 1);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_network_a_certificate_or_a_viewers_token_lets_in() {
    let site = Secured::start().await;
    assert!(site.page_url.starts_with("https://"), "{}", site.page_url);
    let job = site.submit(&[]).await;
    let view = "GET /api/view HTTP/1.1\r\n\r\n";
    let cancel = |more: &str| {
        let body = format!("{{\"job\": \"{job}\"}}");
        let length = body.len();
        format!(
            "POST /api/cancel HTTP/1.1\r\nx-coxswain: 1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             {more}\r\n{body}"
        )
    };
    let viewer = Some("coxswain://viewer/vera/job/tiny-*");
    let rows = [
        (None, "GET /healthz HTTP/1.1\r\n\r\n".to_owned(), "200", "ok"),
        (None, "GET / HTTP/1.1\r\n\r\n".to_owned(), "200", "<!doctype html>"),
        (None, view.to_owned(), "401", "certificate"),
        (None, "GET /metrics HTTP/1.1\r\n\r\n".to_owned(), "401", "certificate"),
        (viewer, view.to_owned(), "200", job.as_str()),
        (Some("coxswain://viewer/otto/job/other-*"), view.to_owned(), "200", "\"jobs\":[]"),
        (Some("coxswain://worker/w0/job/*"), view.to_owned(), "403", "may not call View"),
        (viewer, cancel(""), "403", "may not call Cancel"),
    ];
    for (own, request, status, words) in rows {
        let answer = ask_over_tls(&site, own, &request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words),
            "{request}: {answer}"
        );
    }
    // A token of each role; a viewer's is good for a session that looks at its jobs.
    let login = |token: &str| {
        let body = format!("{{\"token\": \"{token}\"}}");
        let length = body.len();
        format!(
            "POST /api/login HTTP/1.1\r\nx-coxswain: 1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             \r\n{body}"
        )
    };
    let token = |n: u8, role| {
        let token = JoinToken::new([n; 4], [n; 16], site.authority.der());
        let grant = Grant { role, jobs: "tiny-*".parse().unwrap(), ttl_s: 60, uses: 1 };
        site.members.grant(&token, grant).unwrap();
        token.text().expose().to_owned()
    };
    let worker = ask_over_tls(&site, None, &login(&token(1, Role::Worker))).await;
    assert!(worker.starts_with("HTTP/1.1 401") && worker.contains("--role viewer"), "{worker}");
    let viewer = token(2, Role::Viewer);
    let welcome = ask_over_tls(&site, None, &login(&viewer)).await;
    assert!(welcome.starts_with("HTTP/1.1 200"), "{welcome}");
    let cookie = welcome.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.ends_with("; HttpOnly; Secure; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let seen = format!("GET /api/view HTTP/1.1\r\ncookie: a=b; {cookie}\r\n\r\n");
    assert!(ask_over_tls(&site, None, &seen).await.contains(&job));
    let refused = ask_over_tls(&site, None, &cancel(&format!("cookie: {cookie}\r\n"))).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let again = ask_over_tls(&site, None, &login(&viewer)).await;
    assert!(again.starts_with("HTTP/1.1 401") && again.contains("used up"), "{again}");
    let wrong = ask_over_tls(&site, None, &seen.replace("coxswain=", "coxswain=0")).await;
    assert!(wrong.starts_with("HTTP/1.1 401"), "{wrong}");
}
