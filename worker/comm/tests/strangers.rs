//! Whoever comes to a worker's port changes nothing and leaves nothing. A test alone in its process, since it counts the
//! process's descriptors.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "common/pair.rs"]
mod pair;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pair::{Authority, both, exchange, port};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Comes to a port as a stranger does: goes at once, says nonsense, or begins what a rank or TLS begins with.
fn come(address: SocketAddr, kind: usize) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    let said: &[u8] = match kind % 5 {
        0 => &[],
        1 => b"GET / HTTP/1.1\r\n\r\n",
        2 => b"CXW1 and then something else, which is as long as what a rank would say first..",
        3 => &[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3],
        _ => &[7; 8],
    };
    // It may be gone already.
    let _ = stream.write_all(said);
    kind.is_multiple_of(7).then_some(stream)
}

#[test]
fn ten_thousand_strangers_change_nothing_and_leave_nothing() {
    let cluster = Authority::new();
    let ports = [0, 1].map(|_| port(Some(cluster.worker())));
    let addresses = ports.clone().map(|port| port.address());
    let before = descriptors();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let strangers = scope.spawn(|| {
            let mut stay = Vec::new();
            for number in 0..10_000 {
                stay.extend(come(addresses[number % 2], number));
                // Those who stay wait to be sent away, which bounds how many there are.
                if stay.len() > 400 {
                    stay.remove(0);
                }
            }
            over.store(true, Ordering::Relaxed);
            stay
        });
        // Ranks meet in the middle of it, again and again.
        let mut met = 0;
        while met < 3 || !over.load(Ordering::Relaxed) {
            both(&ports, |links| exchange(&links, met, 70_000));
            met += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(met >= 3);
        for mut stranger in strangers.join().unwrap() {
            stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // What comes is a refusal, or the end.
            let mut said = Vec::new();
            let _ = stranger.read_to_end(&mut said);
            assert!(said.len() < 200, "a stranger is told {} bytes", said.len());
            let _ = stranger.shutdown(Shutdown::Both);
        }
    });
    let end = Instant::now() + Duration::from_secs(10);
    while descriptors() > before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(descriptors() <= before, "{} descriptors stay open, {before} before", descriptors());
}
