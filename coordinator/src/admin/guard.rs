//! Who may ask for what. A browser lends its user's rights to every page that it shows, so beside the caller it is
//! checked that a request comes from the page that this port served:
//!
//! - A name that leads here, such as one that another's name server points at this machine, is not one of this port's
//!   names (DNS rebinding).
//! - A page of another origin may not be answered, and what changes something asks for a header that no such page can
//!   send.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use coxswain_proto::limits;
use tokio::time::timeout;
use tonic::Code;

use super::sessions::Sessions;
use crate::auth::{Caller, Peer, now_s, table};

/// The header of requests that change something.
pub(super) const CHANGES: &str = "x-coxswain";

/// The names by which a port is reached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hosts {
    /// Those of this machine, and this address.
    OfMachine(IpAddr),
    /// Any: TLS has checked it.
    Any,
}

/// What the guard of a port knows.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) hosts: Hosts,
    /// Who looks by a token; `None` on a port without certificates.
    pub(super) sessions: Option<Sessions>,
}

/// Who makes a request: whom the connection shows, or who has a session.
fn caller(door: &Guard, peer: &Peer, headers: &HeaderMap) -> Caller {
    let session = || door.sessions.as_ref()?.of(headers);
    match &peer.caller {
        Caller::Anonymous => match session() {
            Some(known) => {
                // The connection lasts as long as the session from now on.
                let _ = peer.turned_out.set(known.clone());
                Caller::Known(known)
            }
            None => Caller::Anonymous,
        },
        caller => caller.clone(),
    }
}

/// What a path is for, and by which call of the other port it is ruled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathRule {
    /// Everyone: it says nothing of the cluster.
    Anyone,
    /// Whoever may make this call.
    Call(&'static str),
}

/// All paths. What has no row is denied.
const PATHS: &[(&str, PathRule)] = &[
    ("/healthz", PathRule::Anyone),
    ("/readyz", PathRule::Anyone),
    ("/", PathRule::Anyone),
    ("/page.css", PathRule::Anyone),
    ("/page.js", PathRule::Anyone),
    ("/parts.js", PathRule::Anyone),
    ("/chart.js", PathRule::Anyone),
    ("/icon.svg", PathRule::Anyone),
    ("/favicon.ico", PathRule::Anyone),
    // Its proof is the token.
    ("/api/login", PathRule::Anyone),
    ("/metrics", PathRule::Call("/coxswain.v1.Jobs/List")),
    ("/api/view", PathRule::Call("/coxswain.v1.Jobs/View")),
    ("/api/events", PathRule::Call("/coxswain.v1.Jobs/Watch")),
    ("/api/series", PathRule::Call("/coxswain.v1.Jobs/Watch")),
    ("/api/runs", PathRule::Call("/coxswain.v1.Jobs/Watch")),
    ("/api/job", PathRule::Call("/coxswain.v1.Jobs/Get")),
    ("/api/log", PathRule::Call("/coxswain.v1.Jobs/Watch")),
    ("/api/cancel", PathRule::Call("/coxswain.v1.Jobs/Cancel")),
    ("/api/drain", PathRule::Call("/coxswain.v1.Jobs/Drain")),
];

/// A refusal in words.
pub(super) fn refusal(status: StatusCode, why: impl Into<String>) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], why.into() + "\n").into_response()
}

/// Lets a request through, or says why not; its answer has headers by which a browser keeps to this origin.
pub(super) async fn guard(
    State(door): State<Guard>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let caller = caller(&door, &peer, request.headers());
    let checked =
        admits(door.hosts, &method, request.headers()).and_then(|()| permits(&path, &caller, now_s()));
    let mut response = match checked {
        Err(refused) => refused.into_response(),
        Ok(()) => {
            request.extensions_mut().insert(Arc::new(caller));
            match timeout(limits::RPC_DEADLINE, next.run(request)).await {
                Ok(response) => response,
                Err(_) => refusal(
                    StatusCode::GATEWAY_TIMEOUT,
                    "no answer in time: the coordinator or a file system is busy; try again",
                ),
            }
        }
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(*name, header::HeaderValue::from_static(value));
    }
    response
}

/// What every answer says to a browser: scripts and styles of this origin only, no frames, nothing kept.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
];

/// A request that is not let through.
#[derive(Debug, PartialEq, Eq)]
struct NotAdmitted(StatusCode, String);

impl IntoResponse for NotAdmitted {
    fn into_response(self) -> Response {
        refusal(self.0, self.1)
    }
}

/// Whether a request comes from the page that this port served, or from a program.
fn admits(hosts: Hosts, method: &Method, headers: &HeaderMap) -> Result<(), NotAdmitted> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let forbidden = |why: String| Err(NotAdmitted(StatusCode::FORBIDDEN, why));
    let Some(host) = text(header::HOST) else {
        return Err(NotAdmitted(StatusCode::BAD_REQUEST, "the request names no host".to_owned()));
    };
    if let Hosts::OfMachine(own) = hosts
        && !is_of_machine(host, own)
    {
        return forbidden(format!(
            "this page is reached as 127.0.0.1 or localhost, and not as {}: another name could be one that leads here \
             without your leave",
            crate::auth::shown(host)
        ));
    }
    let other_site =
        text(header::HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site == "cross-site");
    let other_origin = text(header::ORIGIN)
        .is_some_and(|origin| origin.split_once("://").is_none_or(|(_, of)| !of.eq_ignore_ascii_case(host)));
    let navigates =
        text(header::HeaderName::from_static("sec-fetch-mode")).is_some_and(|mode| mode == "navigate");
    if other_origin || (other_site && !navigates) {
        return forbidden("a page of another origin may not ask for this".to_owned());
    }
    if !matches!(*method, Method::GET | Method::HEAD) && !headers.contains_key(CHANGES) {
        return forbidden(format!("a request that changes something has the header {CHANGES}: 1"));
    }
    Ok(())
}

/// Whether a `Host` names this machine. Its port may be that of a tunnel.
fn is_of_machine(host: &str, own: IpAddr) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback() || ip == own)
}

/// Whether the caller may ask for this path.
fn permits(path: &str, caller: &Caller, now_s: u64) -> Result<(), NotAdmitted> {
    let Some((_, rule)) = PATHS.iter().find(|(known, _)| *known == path) else {
        let why = "nothing is here; / is the page, /api/view the same as JSON, /metrics for Prometheus";
        return Err(NotAdmitted(StatusCode::NOT_FOUND, why.to_owned()));
    };
    let call = match (rule, caller) {
        // Other users of this machine get nothing, the page itself included, but may ask whether it lives.
        (PathRule::Anyone, Caller::OtherUser(_)) if path != "/healthz" && path != "/readyz" => {
            "/coxswain.v1.Jobs/View"
        }
        (PathRule::Anyone, _) => return Ok(()),
        (PathRule::Call(call), _) => call,
    };
    table::decide(call, caller, now_s).map_err(|denied| {
        let status = match denied.status {
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => StatusCode::FORBIDDEN,
        };
        NotAdmitted(status, denied.message)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let lines = lines.iter();
        lines
            .map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn a_request_comes_from_the_page_or_from_a_program() {
        let hosts = Hosts::OfMachine([127, 0, 0, 1].into());
        type Row<'a> = (Method, &'a [(&'static str, &'a str)], bool);
        let rows: &[Row<'_>] = &[
            (Method::GET, &[("host", "127.0.0.1:7071")], true),
            (Method::GET, &[("host", "localhost:9000")], true),
            (Method::GET, &[("host", "[::1]:7071")], true),
            (Method::GET, &[("host", "LOCALHOST")], true),
            (Method::GET, &[], false),
            (Method::GET, &[("host", "evil.example:7071")], false),
            (Method::GET, &[("host", "127.0.0.1.evil.example")], false),
            (Method::GET, &[("host", "10.0.0.1:7071")], false),
            (Method::GET, &[("host", "localhost:1"), ("origin", "http://localhost:1")], true),
            (Method::GET, &[("host", "localhost:1"), ("origin", "http://localhost:2")], false),
            (Method::GET, &[("host", "localhost:1"), ("origin", "null")], false),
            (Method::GET, &[("host", "localhost:1"), ("sec-fetch-site", "cross-site")], false),
            // A link from another site may lead here: it shows the page, and the site sees nothing of it.
            (
                Method::GET,
                &[("host", "localhost:1"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
                true,
            ),
            (Method::POST, &[("host", "localhost:1"), ("origin", "http://localhost:1")], false),
            (Method::POST, &[("host", "localhost:1"), (CHANGES, "1")], true),
            (
                Method::POST,
                &[("host", "localhost:1"), (CHANGES, "1"), ("origin", "http://evil.example")],
                false,
            ),
        ];
        for (method, lines, expected) in rows {
            assert_eq!(admits(hosts, method, &headers(lines)).is_ok(), *expected, "{method} {lines:?}");
        }
        assert!(admits(Hosts::Any, &Method::GET, &headers(&[("host", "gpu.example:7071")])).is_ok());
    }

    #[test]
    fn other_users_get_nothing_and_the_owner_all() {
        for (path, rule) in PATHS {
            assert_eq!(permits(path, &Caller::Trusted, 0), Ok(()), "{path}");
            let probe = matches!(*path, "/healthz" | "/readyz");
            assert_eq!(permits(path, &Caller::OtherUser(7), 0).is_ok(), probe, "{path}");
            assert_eq!(permits(path, &Caller::Anonymous, 0).is_ok(), *rule == PathRule::Anyone, "{path}");
        }
        let unknown = permits("/api/../metrics", &Caller::Trusted, 0).unwrap_err();
        assert_eq!(unknown.0, StatusCode::NOT_FOUND);
    }
}
