//! What crosses between two ranks arrives as it was sent, encrypted or not, whoever else comes to their ports.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coxswain_comm::{Axis, DataPort, Links, MemoryStore, TensorTls};
use coxswain_proto::tls::{ClientTls, Credentials, Secret};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tch::{Device, Kind, Tensor};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Certificates of one cluster.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// The TLS of a new worker, also towards ranks of its own machine.
    fn worker(&self) -> TensorTls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let credentials = Credentials { ca: self.pem.clone(), chain, key: Secret::new(key.serialize_pem()) };
        let (client, server) = ClientTls::new(&credentials).unwrap().between_workers().unwrap();
        TensorTls { client, server, on_one_host: true }
    }
}

fn port(tls: Option<TensorTls>) -> Arc<DataPort> {
    DataPort::open(SocketAddr::new(LOOPBACK, 0), LOOPBACK, tls).unwrap()
}

/// Runs both ranks of two, each at its port.
fn both<T: Send>(ports: &[Arc<DataPort>; 2], rank: impl Fn(Links) -> T + Sync) -> Vec<T> {
    let store = MemoryStore::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .zip(ports)
            .map(|(at, port)| {
                let (store, rank) = (store.clone(), &rank);
                scope.spawn(move || rank(Links::join(store, at, 2, port, 5_000, 20_000).unwrap()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Numbers that look random; the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A message of this tag that no other is like.
fn message(from: u32, tag: u32, number: u64, bytes: u64) -> Tensor {
    let mut numbers = Numbers(u64::from(from) << 40 | u64::from(tag) << 20 | number);
    let content: Vec<u8> = (0..bytes).map(|_| numbers.below(256) as u8).collect();
    Tensor::from_slice(&content)
}

/// Each rank sends the other messages of four tags, ones without a byte and some of `longest`, and takes in the
/// other's in an order of its own.
fn exchange(links: &Links, seed: u64, longest: u64) {
    const TAGS: u32 = 4;
    const EACH: u64 = 12;
    let (rank, other) = (links.rank(), 1 - links.rank());
    let axis = |tag| Axis::Data { bucket: tag, gather: false };
    let size = |from: u32, tag: u32, number: u64| {
        let mut numbers = Numbers(seed ^ u64::from(from + 1) << 32 ^ u64::from(tag + 1) << 16 ^ number);
        [0, 1, 16, 4_097, 17_000, longest][(numbers.below(6) + numbers.below(2)) as usize % 6]
    };
    let mut numbers = Numbers(seed ^ u64::from(rank));
    let (mut sent, mut taken) = ([0; TAGS as usize], [0; TAGS as usize]);
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    while sent.iter().chain(&taken).any(|count| *count < EACH) {
        let tag = numbers.below(TAGS.into()) as u32;
        let (counts, sending) = if numbers.below(2) == 0 { (&mut sent, true) } else { (&mut taken, false) };
        let number = counts[tag as usize];
        if number == EACH {
            continue;
        }
        counts[tag as usize] += 1;
        if sending {
            let x = message(rank, tag, number, size(rank, tag, number));
            sends.push(links.send(&x, other, axis(tag)).unwrap());
        } else {
            let x = Tensor::zeros([size(other, tag, number) as i64], (Kind::Uint8, Device::Cpu));
            receives.push((links.recv(&x, other, axis(tag)).unwrap(), x, tag, number));
        }
    }
    for (receive, x, tag, number) in receives {
        receive.wait().unwrap();
        assert_eq!(x, message(other, tag, number, x.numel() as u64), "message {number} of tag {tag}");
    }
    sends.into_iter().for_each(|send| send.wait().unwrap());
}

#[test]
fn messages_of_all_sizes_arrive_in_the_order_of_their_tags_and_whole() {
    let cluster = Authority::new();
    for seed in 0..6 {
        let tls = |_| (seed % 2 == 1).then(|| cluster.worker());
        both(&[0, 1].map(tls).map(port), |links| exchange(&links, seed, 3 << 20));
    }
}

#[test]
fn what_was_sent_last_arrives_though_the_sender_leaves() {
    let cluster = Authority::new();
    for tls in [false, true] {
        let ports = [0, 1].map(|_| port(tls.then(|| cluster.worker())));
        let found = both(&ports, |links| {
            let x = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
            if links.rank() == 0 {
                // A place for something that never comes is on its way to the one that leaves.
                let never = Tensor::zeros([1], (Kind::Float, Device::Cpu));
                let _never = links.recv(&never, 1, Axis::Tensor).unwrap();
                let y = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
                links.recv(&y, 1, Axis::World).unwrap().wait().unwrap();
                return y == x;
            }
            links.send(&x, 0, Axis::World).unwrap().wait().unwrap();
            true
        });
        assert_eq!(found, [true; 2], "encrypted: {tls}");
    }
}

#[test]
fn ranks_that_do_not_belong_together_say_why() {
    let (cluster, another) = (Authority::new(), Authority::new());
    let fails = |ports: [Arc<DataPort>; 2]| {
        both(&ports, |links| {
            let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
            if links.rank() == 0 {
                return links.recv(&x, 1, Axis::World).unwrap().wait().unwrap_err().to_string();
            }
            // The one that was connected to finds out as well.
            std::thread::sleep(Duration::from_millis(200));
            String::new()
        })
        .remove(0)
    };
    let error = fails([port(Some(cluster.worker())), port(Some(another.worker()))]);
    assert!(error.contains("TLS failed"), "{error}");
    let error = fails([port(None), port(Some(cluster.worker()))]);
    assert!(error.contains("takes encrypted tensors only"), "{error}");
    let error = fails([port(Some(cluster.worker())), port(None)]);
    assert!(error.contains("this worker sends encrypted tensors only"), "{error}");
    // One that waits for less than what is sent to it.
    let errors = both(&[port(None), port(None)], |links| {
        let x = Tensor::zeros([4 + i64::from(links.rank())], (Kind::Float, Device::Cpu));
        match links.rank() {
            0 => links.recv(&x, 1, Axis::World),
            _ => links.send(&x, 0, Axis::World),
        }
        .unwrap()
        .wait()
        .unwrap_err()
        .to_string()
    });
    assert!(errors[1].contains("it waits for 16 bytes where this rank has 20"), "{}", errors[1]);
}

#[test]
fn a_rank_of_an_older_generation_reaches_nobody() {
    let store = MemoryStore::default();
    let (here, late) = (port(None), port(None));
    let join = |rank, port: &Arc<DataPort>| Links::join(store.clone(), rank, 2, port, 5_000, 5_000);
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| join(0, &here).unwrap());
        let second = scope.spawn(|| join(1, &late).unwrap());
        (first.join().unwrap(), second.join().unwrap())
    });
    // Its generation has ended; its process takes part in the next one.
    drop(first);
    let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let error = second.send(&x, 0, Axis::World).unwrap().wait().unwrap_err();
    assert!(error.0.contains("it takes no part in this generation any more"), "{error}");
}

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
