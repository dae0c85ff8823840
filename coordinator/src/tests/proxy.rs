//! A network that misbehaves: a proxy in front of a coordinator whose faults follow from a seed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coxswain_files::hash::draw_below;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// What a connection suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Every byte is late by so many milliseconds, and by up to as many again that differ from piece to piece.
    Late { ms: u64, jitter_ms: u64 },
    /// After so many bytes nothing goes on for a while.
    Stall { after: u64, ms: u64 },
    /// After so many bytes it is closed.
    Cut { after: u64 },
    /// After so many bytes it is reset.
    Reset { after: u64 },
    /// After so many bytes nothing goes on any more, and neither end is told.
    HalfOpen { after: u64 },
}

impl Trouble {
    /// The trouble of a seed: one in twelve takes its time to be noticed.
    pub(crate) fn of(seed: u64) -> Trouble {
        let after = 200 + u64::from(draw_below(seed, 1, 20_000));
        let ms = u64::from(draw_below(seed, 2, 100));
        match seed % 12 {
            0..4 => Trouble::Late { ms: 20 + ms * 8 / 10, jitter_ms: 100 },
            4..6 => Trouble::Stall { after, ms: 500 + ms * 5 },
            6..9 => Trouble::Cut { after },
            9..11 => Trouble::Reset { after },
            _ => Trouble::HalfOpen { after },
        }
    }

    /// Whether a worker behind it is never given up.
    pub(crate) fn is_harmless(self) -> bool {
        matches!(self, Trouble::Late { .. } | Trouble::Stall { .. })
    }
}

/// How many connections suffer before the network is well again: fewer for all workers of a run than the
/// tries that it has. A half-open one takes five seconds to be noticed.
fn suffering(trouble: Trouble) -> u64 {
    if matches!(trouble, Trouble::HalfOpen { .. }) { 1 } else { 3 }
}

/// Pieces that may be on their way in one direction.
const MAX_PIECES: usize = 1024;

/// A proxy; it ends with this.
pub(crate) struct Proxy {
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr, trouble: Trouble, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for n in 0.. {
                let Ok((from, _)) = listener.accept().await else { return };
                let trouble = Some(trouble).filter(|_| n < suffering(trouble));
                connections.spawn(connection(from, to, trouble, seed ^ n << 32));
            }
        });
        Proxy { url, task }
    }
}

async fn connection(from: TcpStream, to: SocketAddr, trouble: Option<Trouble>, seed: u64) {
    let Ok(to) = TcpStream::connect(to).await else { return };
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    if matches!(trouble, Some(Trouble::Reset { .. })) {
        // Dropping it then sends a reset.
        let _ = (from.set_zero_linger(), to.set_zero_linger());
    }
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    let passed = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = watch::channel(false);
    let way = |read, write, seed| Way {
        read,
        write,
        trouble,
        seed,
        passed: passed.clone(),
        stopped: stopped.clone(),
    };
    let (up, down) = (way(from_read, to_write, seed), way(to_read, from_write, seed ^ 1));
    tokio::select! {
        () = up.pass() => {}
        () = down.pass() => {}
    }
    drop(stop);
}

/// One direction of a connection.
struct Way {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    trouble: Option<Trouble>,
    seed: u64,
    /// Bytes that passed in both directions.
    passed: Arc<AtomicU64>,
    stopped: watch::Receiver<bool>,
}

impl Way {
    /// Passes bytes on until the connection is to end.
    async fn pass(mut self) {
        let (pieces, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(MAX_PIECES);
        let mut write = self.write;
        let writer = async move {
            while let Some((due, piece)) = waiting.recv().await {
                sleep_until(due).await;
                if write.write_all(&piece).await.is_err() {
                    return;
                }
            }
        };
        let reader = async {
            let mut buffer = vec![0; 4096];
            let mut due = Instant::now();
            for n in 0.. {
                let Ok(count @ 1..) = self.read.read(&mut buffer).await else { return };
                let before = self.passed.fetch_add(count as u64, Ordering::Relaxed);
                let reached = |after| (before..before + count as u64).contains(&after);
                match self.trouble {
                    Some(Trouble::Late { ms, jitter_ms }) => {
                        let jitter_ms = draw_below(self.seed, n, jitter_ms as u32 + 1);
                        due = due.max(Instant::now() + Duration::from_millis(ms + u64::from(jitter_ms)));
                    }
                    Some(Trouble::Stall { after, ms }) if reached(after) => {
                        sleep(Duration::from_millis(ms)).await;
                    }
                    Some(Trouble::Cut { after } | Trouble::Reset { after }) if before >= after => return,
                    // The other direction hangs as well with its next byte.
                    Some(Trouble::HalfOpen { after }) if before >= after => {
                        let _ = self.stopped.wait_for(|stopped| *stopped).await;
                        return;
                    }
                    _ => {}
                }
                if pieces.send((due, buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = writer => {}
            () = reader => {}
        }
    }
}
