//! Where the ranks of a generation are found, and how they tell each other when it begins.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use serde::{Deserialize, Serialize};

use super::TensorTls;
use super::hello::{self, Endpoint};
use super::port::DataPort;
use crate::rendezvous::Store;

/// How many places one value of the rendezvous holds; they are at most 400 bytes each, and a value 4 KiB.
const PLACES_EACH: usize = 10;

/// The key by which the lead rank says that all ranks are there, and all places can be read.
const ALL_HERE: &[u8] = b"here/all";

/// Where a rank is found, as it tells the others.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct RankAddress {
    pub(crate) address: SocketAddr,
    pub(crate) endpoint: Endpoint,
    host: [u8; 16],
    encrypts: Encrypts,
}

impl fmt::Debug for RankAddress {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({}, {:?})", self.address, self.encrypts)
    }
}

/// Which connections a rank encrypts. Two ranks have to agree about theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encrypts {
    None,
    BetweenHosts,
    All,
}

impl Encrypts {
    /// What a port encrypts.
    pub(crate) fn of(tls: Option<&TensorTls>) -> Encrypts {
        match tls {
            None => Encrypts::None,
            Some(tls) if tls.on_one_host => Encrypts::All,
            Some(_) => Encrypts::BetweenHosts,
        }
    }

    /// Whether it encrypts a connection with a rank of `host` at `address`.
    pub(crate) fn with(self, host: &[u8; 16], address: IpAddr) -> bool {
        match self {
            Encrypts::None => false,
            Encrypts::BetweenHosts => *host != hello::host() || !is_local(address),
            Encrypts::All => true,
        }
    }
}

/// Whether an address is one of this machine's.
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

impl RankAddress {
    /// This rank's.
    pub(crate) fn of(endpoint: &Endpoint, port: &DataPort) -> RankAddress {
        RankAddress {
            address: port.address(),
            endpoint: *endpoint,
            host: hello::host(),
            encrypts: Encrypts::of(port.tls()),
        }
    }

    /// By what this process connects to it: `None` is plain text.
    ///
    /// # Errors
    /// In words, where one of the two encrypts and the other does not.
    pub(crate) fn security<'a>(&self, own: Option<&'a TensorTls>) -> Result<Option<&'a TensorTls>, String> {
        let with = |encrypts: Encrypts| encrypts.with(&self.host, self.address.ip());
        let text = match (with(self.encrypts), with(Encrypts::of(own))) {
            (false, false) => return Ok(None),
            (true, true) => return Ok(own),
            (true, false) => {
                "it takes encrypted tensors only, and this worker was started with --trust-network, or without a \
                 certificate"
            }
            (false, true) => {
                "it was started with --trust-network, or without a certificate, and this worker sends encrypted \
                 tensors only"
            }
        };
        Err(text.to_owned())
    }
}

/// Tells the others this rank's place, and returns those of all ranks once all are there: then connecting takes
/// milliseconds, and needs no other process.
///
/// Only the lead rank asks for every other rank; the others read what it has collected.
///
/// # Errors
/// In words: which key is missing, or what cannot be read.
pub(crate) fn meet(
    store: &dyn Store,
    rank: u32,
    world: u32,
    own: &RankAddress,
) -> Result<Vec<RankAddress>, String> {
    let text = |places: &[RankAddress]| serde_json::to_vec(places).map_err(|error| error.to_string());
    store.set(&key("place", rank as usize), &text(std::slice::from_ref(own))?)?;
    let read = |key: &[u8]| -> Result<Vec<RankAddress>, String> {
        let told = store.get(key)?;
        serde_json::from_slice(&told)
            .map_err(|_| "a rank is told of in another form; is it another version?".to_owned())
    };
    let mut places = Vec::new();
    if rank == 0 {
        places.push(own.clone());
        for other in 1..world {
            places.extend(read(&key("place", other as usize))?);
        }
        for (number, some) in places.chunks(PLACES_EACH).enumerate() {
            store.set(&key("places", number), &text(some)?)?;
        }
        store.set(ALL_HERE, b"here")?;
    } else {
        store.get(ALL_HERE).map_err(|error| format!("not all ranks are here: {error}"))?;
        for number in 0..(world as usize).div_ceil(PLACES_EACH) {
            places.extend(read(&key("places", number))?);
        }
    }
    if places.len() != world as usize {
        return Err(format!("{} of {world} ranks are told of", places.len()));
    }
    Ok(places)
}

fn key(what: &str, number: usize) -> Vec<u8> {
    format!("{what}/{number}").into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::MemoryStore;

    #[test]
    fn all_ranks_are_told_of_all_places_and_no_value_is_too_long() {
        const WORLD: u32 = 40;
        let (store, port) = (MemoryStore::default(), DataPort::local().unwrap());
        let ends: Vec<_> = (0..WORLD).map(|_| Endpoint::random().unwrap()).collect();
        let ids = |places: &[RankAddress]| places.iter().map(|place| place.endpoint.id).collect::<Vec<_>>();
        let expected: Vec<_> = ends.iter().map(|end| end.id).collect();
        std::thread::scope(|scope| {
            for rank in 0..WORLD {
                let (store, own, expected) =
                    (&store, RankAddress::of(&ends[rank as usize], &port), &expected);
                scope.spawn(move || {
                    assert_eq!(ids(&meet(store, rank, WORLD, &own).unwrap()), *expected);
                });
            }
        });
        let place = RankAddress {
            address: SocketAddr::from(([0xffff; 8], 65_535)),
            endpoint: Endpoint { id: [0xff; 16], secret: [0xff; 32] },
            host: [0xff; 16],
            encrypts: Encrypts::BetweenHosts,
        };
        assert!(serde_json::to_vec(&vec![place; PLACES_EACH]).unwrap().len() <= 4096);
    }

    #[test]
    fn only_what_stays_on_this_machine_is_left_in_plain_text() {
        let (here, there) = (hello::host(), [7; 16]);
        let (local, remote) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([203, 0, 113, 9]));
        assert!(!Encrypts::BetweenHosts.with(&here, local));
        assert!(Encrypts::BetweenHosts.with(&there, local));
        assert!(Encrypts::BetweenHosts.with(&here, remote), "a machine that calls itself as this one");
        assert!(Encrypts::All.with(&here, local) && !Encrypts::None.with(&there, remote));
    }
}
