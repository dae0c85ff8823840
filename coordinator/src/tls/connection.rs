//! A connection with its caller and the time until which it may be used. A caller has a few seconds to
//! begin, one without a certificate a few more for its one call, and one with a certificate as long as
//! that is good.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream as _;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::server::Connected;

use super::gate::ConnectionPermit;
use crate::auth::{Caller, Peer, now_s};

/// How long a connection may take to begin: to send HTTP/2's preface, which a client does at once.
const BEGIN: Duration = Duration::from_secs(5);

/// The preface of HTTP/2, in bytes.
const PREFACE_BYTES: usize = 24;

/// How long a connection without a certificate lives: it makes one call.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(10);

/// How often a connection without an end is looked at nonetheless. Any time does.
const NO_END: Duration = Duration::from_secs(3600);

enum MaybeTlsStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection.
pub(crate) struct Connection {
    stream: MaybeTlsStream,
    peer: Peer,
    opened: Instant,
    /// Bytes read so far, as far as they matter.
    begun: usize,
    alarm: Pin<Box<Sleep>>,
    /// Has an item once the caller is revoked, or another stranger has its place.
    ended: Option<WatchStream<bool>>,
    /// Whether its time is over.
    over: bool,
    /// Its place among the connections.
    _pass: ConnectionPermit,
}

impl Connection {
    pub(crate) fn plain(stream: TcpStream, peer: Peer, pass: ConnectionPermit) -> Connection {
        Connection::new(MaybeTlsStream::Plain(stream), peer, pass)
    }

    pub(crate) fn tls(stream: TlsStream<TcpStream>, peer: Peer, pass: ConnectionPermit) -> Connection {
        Connection::new(MaybeTlsStream::Tls(Box::new(stream)), peer, pass)
    }

    fn new(stream: MaybeTlsStream, peer: Peer, pass: ConnectionPermit) -> Connection {
        let opened = Instant::now();
        let alarm = Box::pin(tokio::time::sleep_until(opened));
        let ended = match &peer.caller {
            Caller::Known(known) if !known.is_revoked() => Some(known.revocation()),
            // It is a known caller now.
            Caller::Trusted => None,
            Caller::Known(_) | Caller::Anonymous | Caller::OtherUser(_) => Some(pass.dismissed()),
        };
        let ended = ended.map(WatchStream::from_changes);
        Connection { stream, peer, opened, begun: 0, alarm, ended, over: false, _pass: pass }
    }

    /// How long it may still be used.
    fn left(&self) -> Duration {
        let since = self.opened.elapsed();
        let begin = if self.begun < PREFACE_BYTES { BEGIN.saturating_sub(since) } else { NO_END };
        let life = match &self.peer.caller {
            Caller::Trusted => NO_END,
            Caller::Anonymous | Caller::OtherUser(_) => match self.peer.turned_out.get() {
                Some(known) if !known.is_revoked() => {
                    Duration::from_secs(known.expires_s().saturating_sub(now_s()))
                }
                _ => ANONYMOUS_LIFE.saturating_sub(since),
            },
            // Long enough to be told why.
            Caller::Known(known) if known.is_revoked() => ANONYMOUS_LIFE.saturating_sub(since),
            Caller::Known(known) => Duration::from_secs(known.expires_s().saturating_sub(now_s())),
        };
        begin.min(life).min(NO_END)
    }

    /// Ready when its time is over, from then on. Each read and each write asks: a caller that reads nothing keeps its
    /// connection busy with writes.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.over {
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the connection's time is over"));
        }
        let end = self.poll_time(context);
        self.over = end.is_ready();
        end
    }

    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let ended = |why: &'static str| io::Error::new(io::ErrorKind::TimedOut, why);
        if let Some(stream) = &mut self.ended
            && let Poll::Ready(Some(_)) = Pin::new(stream).poll_next(context)
        {
            return Poll::Ready(ended("the caller was revoked, or another stranger has its place"));
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            let left = self.left();
            if left.is_zero() {
                return Poll::Ready(ended("the connection's time is over"));
            }
            self.alarm.as_mut().reset(Instant::now() + left);
        }
        Poll::Pending
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(over) = self.poll_end(context) {
            return Poll::Ready(Err(over));
        }
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        self.begun = (self.begun + buffer.filled().len() - before).min(PREFACE_BYTES);
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(over) = self.poll_end(context) {
            return Poll::Ready(Err(over));
        }
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(over) = self.poll_end(context) {
            return Poll::Ready(Err(over));
        }
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_flush(context),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(over) = self.poll_end(context) {
            return Poll::Ready(Err(over));
        }
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            MaybeTlsStream::Plain(stream) => stream.is_write_vectored(),
            MaybeTlsStream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
