//! Holds every call to the table and to its caller's rate, before any of its bytes are read.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use coxswain_core::code::ErrorCode;
use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::rates::{Rate, Rates};
use super::{Caller, Peer, now_s, table};

use crate::lock::lock;
use crate::refusal::denied_status;

/// What a caller with a certificate may do. When a generation is formed, the lead rank's worker makes a call of the
/// rendezvous for each other rank, and the others one for each ten. They make none while it runs.
const KNOWN: Rate = Rate { per_s: 200.0, burst: 4000.0 };

/// What callers without a certificate may do, all of one address together: join. Machines that start
/// dozens of workers at once pass, and guessing a secret of 128 bits does not.
const ANONYMOUS: Rate = Rate { per_s: 20.0, burst: 200.0 };

/// Whose rate it is.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Who {
    Address(IpAddr),
    Name(String),
}

/// The layer around both services.
#[derive(Clone, Debug)]
pub(crate) struct Authorize {
    rates: Arc<Mutex<Rates<Who>>>,
}

impl Authorize {
    pub(crate) fn new() -> Authorize {
        Authorize { rates: Arc::new(Mutex::new(Rates::new())) }
    }

    fn check<B>(&self, request: &Request<B>) -> Result<(), Status> {
        let Some(peer) = request.extensions().get::<Peer>() else {
            return Err(Status::internal("this call has no known peer address"));
        };
        let agent = request.headers().get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        coxswain_transport::expect_protocol(agent.unwrap_or_default())
            .map_err(Status::failed_precondition)?;
        let (who, rate) = match &peer.caller {
            // Whoever reaches a port without certificates can do worse than call often.
            Caller::Trusted => return Ok(()),
            Caller::Anonymous | Caller::OtherUser(_) => (Who::Address(peer.address), ANONYMOUS),
            Caller::Known(known) => (Who::Name(known.identity.uri()), KNOWN),
        };
        let mut rates = lock(&self.rates);
        if !rates.take(who, rate, Instant::now()) {
            let message =
                format!("more than {} calls a second from this caller; wait before the next", rate.per_s);
            return Err(denied_status(Code::ResourceExhausted, ErrorCode::AccessRate, message));
        }
        drop(rates);
        table::decide(request.uri().path(), &peer.caller, now_s())
            .map_err(|denied| denied_status(denied.status, denied.code, denied.message))
    }
}

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized { authorize: self.clone(), inner }
    }
}

/// A service behind the layer.
#[derive(Clone, Debug)]
pub(crate) struct Authorized<S> {
    authorize: Authorize,
    inner: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S, B> Service<Request<B>> for Authorized<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer<Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.authorize.check(&request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}
