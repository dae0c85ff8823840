//! Two ranks, each at a port of its own, and what they exchange.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use coxswain_comm::{Axis, DataPort, Links, MemoryStore, TensorTls};
use coxswain_transport::tls::{ClientTls, Credentials, Secret};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tch::{Device, Kind, Tensor};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Certificates of one cluster.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    /// The TLS of a new worker, also towards ranks of its own machine.
    pub(crate) fn worker(&self) -> TensorTls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let credentials = Credentials { ca: self.pem.clone(), chain, key: Secret::new(key.serialize_pem()) };
        let (client, server) = ClientTls::new(&credentials).unwrap().between_workers().unwrap();
        TensorTls { client, server, on_one_host: true }
    }
}

pub(crate) fn port(tls: Option<TensorTls>) -> Arc<DataPort> {
    let port = DataPort::open(SocketAddr::new(LOOPBACK, 0), LOOPBACK).unwrap();
    tls.into_iter().for_each(|tls| port.encrypt(tls));
    port
}

/// Runs both ranks of two, each at its port.
pub(crate) fn both<T: Send>(ports: &[Arc<DataPort>; 2], rank: impl Fn(Links) -> T + Sync) -> Vec<T> {
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
pub(crate) fn exchange(links: &Links, seed: u64, longest: u64) {
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
