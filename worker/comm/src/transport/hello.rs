//! How the two ends of a connection prove to each other that they are ranks of one generation.
//!
//! A rank publishes its [`Endpoint`] to the ranks of its generation, by the coordinator, which tells it to them alone.
//! Whoever connects names the endpoint, and both show that they know its secret: by a keyed hash over all that was
//! said, over fresh random bytes of both, and over the TLS session, where there is one. So what one connection has
//! heard proves nothing on another, and an endpoint of an older generation is not there any more.

use std::io::{self, Read, Write};
use std::sync::OnceLock;

use rustls::crypto::ring;
use serde::{Deserialize, Serialize};

/// The first bytes of a connection in plain text; a TLS connection begins with 0x16.
const MAGIC: [u8; 4] = *b"CXW1";
/// Bytes of what is said first.
const HELLO_BYTES: usize = 4 + 16 + 4 + 16 + 32;

/// Answers of the end that was connected to.
const GOES_ON: u8 = 0;
const UNKNOWN: u8 = 1;
const TAKEN: u8 = 2;

/// Where a rank is found, and what proves that somebody was told.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// Its name, which may be public.
    pub(crate) id: [u8; 16],
    /// What only the ranks of the generation know.
    pub(crate) secret: [u8; 32],
}

impl Endpoint {
    /// A new one.
    pub(crate) fn random() -> io::Result<Endpoint> {
        Ok(Endpoint { id: random()?, secret: random()? })
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let filled = ring::default_provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system has no random bytes"))?;
    Ok(bytes)
}

/// What the end that connects says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The endpoint that it looks for.
    pub(crate) endpoint: [u8; 16],
    /// Its own rank.
    pub(crate) from: u32,
    /// Its machine: [`host`].
    pub(crate) host: [u8; 16],
    nonce: [u8; 32],
}

impl Hello {
    /// The hello of rank `from` for an endpoint.
    pub(crate) fn new(endpoint: [u8; 16], from: u32) -> io::Result<Hello> {
        Ok(Hello { endpoint, from, host: host(), nonce: random()? })
    }

    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..20].copy_from_slice(&self.endpoint);
        bytes[20..24].copy_from_slice(&self.from.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.host);
        bytes[40..].copy_from_slice(&self.nonce);
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Hello> {
        let part = |range: std::ops::Range<usize>| bytes[range].try_into().ok();
        let from = u32::from_le_bytes(bytes[20..24].try_into().ok()?);
        let hello =
            Hello { endpoint: part(4..20)?, from, host: part(24..40)?, nonce: bytes[40..].try_into().ok()? };
        (bytes[..4] == MAGIC).then_some(hello)
    }
}

/// This machine, as long as it is up, and the network namespace of this process: what goes between two processes with
/// the same one leaves neither. Where the system does not tell, no other process has the same.
pub(crate) fn host() -> [u8; 16] {
    static HOST: OnceLock<[u8; 16]> = OnceLock::new();
    *HOST.get_or_init(|| {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
        let namespace = namespace.as_os_str().as_encoded_bytes();
        let mut hasher = blake3::Hasher::new();
        if boot.is_empty() || namespace.is_empty() {
            // Without random bytes a rank has no endpoint either.
            hasher.update(&random::<32>().unwrap_or_default()).update(&std::process::id().to_le_bytes());
        }
        hasher.update(&boot).update(namespace);
        let mut host = [0; 16];
        hasher.finalize_xof().fill(&mut host);
        host
    })
}

/// Which of the two ends speaks.
#[derive(Clone, Copy)]
enum HandshakeRole {
    Connects = 1,
    Listens = 2,
}

/// What an end shows. `channel` is bound to the TLS session; all zeros where there is none.
fn proof(
    secret: &[u8; 32],
    end: HandshakeRole,
    said: &[u8; HELLO_BYTES],
    answered: &[u8; 32],
    channel: &[u8; 32],
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(&[end as u8]).update(said).update(answered).update(channel);
    hasher.finalize()
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())
}

/// The end that connects. `false` where the ranks have another connection already.
///
/// # Errors
/// Of kind `PermissionDenied` where the other end refuses or cannot prove that it is the one; all others may pass.
pub(crate) fn connect(
    stream: &mut (impl Read + Write),
    hello: &Hello,
    secret: &[u8; 32],
    channel: &[u8; 32],
) -> io::Result<bool> {
    let said = hello.encode();
    stream.write_all(&said)?;
    stream.flush()?;
    let mut status = [0];
    stream.read_exact(&mut status)?;
    if status[0] != GOES_ON {
        return Err(refused("it takes no part in this generation any more"));
    }
    let (mut nonce, mut shown) = ([0; 32], [0; 32]);
    stream.read_exact(&mut nonce)?;
    stream.read_exact(&mut shown)?;
    // Hashes are compared in constant time.
    if blake3::Hash::from_bytes(shown) != proof(secret, HandshakeRole::Listens, &said, &nonce, channel) {
        return Err(refused("what answers at its address is another program"));
    }
    stream.write_all(proof(secret, HandshakeRole::Connects, &said, &nonce, channel).as_bytes())?;
    stream.flush()?;
    stream.read_exact(&mut status)?;
    match status[0] {
        GOES_ON => Ok(true),
        TAKEN => Ok(false),
        _ => Err(refused("it takes no connection of this rank")),
    }
}

/// The end that is connected to: who came, once it has proved that. `find` has the endpoint's secret, if it is here and
/// this caller may come so. [`answer`] has to follow.
///
/// # Errors
/// Where the other end is a stranger, or goes.
pub(crate) fn listen<E>(
    stream: &mut (impl Read + Write),
    channel: &[u8; 32],
    find: impl FnOnce(&Hello) -> Option<(E, [u8; 32])>,
) -> io::Result<(E, Hello)> {
    let mut said = [0; HELLO_BYTES];
    stream.read_exact(&mut said)?;
    let hello = Hello::decode(&said).ok_or_else(|| refused("it speaks another protocol"))?;
    let Some((endpoint, secret)) = find(&hello) else {
        stream.write_all(&[UNKNOWN])?;
        stream.flush()?;
        return Err(refused("it asks for an endpoint that is not here"));
    };
    let nonce = random()?;
    let mut answer = vec![GOES_ON];
    answer.extend(nonce);
    answer.extend(proof(&secret, HandshakeRole::Listens, &said, &nonce, channel).as_bytes());
    stream.write_all(&answer)?;
    stream.flush()?;
    let mut shown = [0; 32];
    stream.read_exact(&mut shown)?;
    if blake3::Hash::from_bytes(shown) != proof(&secret, HandshakeRole::Connects, &said, &nonce, channel) {
        return Err(refused("it does not know the secret of the endpoint"));
    }
    Ok((endpoint, hello))
}

/// Tells one who has proved who it is whether its connection is taken.
pub(crate) fn answer(stream: &mut impl Write, taken: bool) -> io::Result<()> {
    stream.write_all(&[if taken { GOES_ON } else { TAKEN }])?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use std::os::unix::net::UnixStream;

    use super::*;

    /// What both ends come to: the one that connects with `says` and `secret` over a session `channels.0`, and one that
    /// has `here` over a session `channels.1` and wants the connection or not.
    fn met(
        says: [u8; 16],
        secret: [u8; 32],
        here: Endpoint,
        channels: ([u8; 32], [u8; 32]),
        wanted: bool,
    ) -> (Result<bool, io::ErrorKind>, Result<Option<u32>, io::ErrorKind>) {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let listens = scope.spawn(move || {
                let find = |hello: &Hello| (hello.endpoint == here.id).then_some(((), here.secret));
                let met = listen(&mut other, &channels.1, find);
                let told = met.and_then(|((), hello)| answer(&mut other, wanted).map(|()| hello.from));
                told.map(|from| wanted.then_some(from)).map_err(|error| error.kind())
            });
            let hello = Hello::new(says, 3).unwrap();
            let connects = connect(&mut one, &hello, &secret, &channels.0).map_err(|error| error.kind());
            // Who is refused goes.
            drop(one);
            (connects, listens.join().unwrap())
        })
    }

    #[test]
    fn only_those_who_know_the_secret_of_this_very_endpoint_meet() {
        use io::ErrorKind::{PermissionDenied, UnexpectedEof};
        let here = Endpoint::random().unwrap();
        let older = Endpoint::random().unwrap();
        let same = ([0; 32], [0; 32]);
        assert_eq!(met(here.id, here.secret, here, same, true), (Ok(true), Ok(Some(3))));
        assert_eq!(met(here.id, here.secret, here, same, false), (Ok(false), Ok(None)), "has one already");
        let refused = (Err(PermissionDenied), Err(PermissionDenied));
        assert_eq!(met(older.id, older.secret, here, same, true), refused, "an older generation");
        // The one that connects finds out first, and goes.
        let found_out = (Err(PermissionDenied), Err(UnexpectedEof));
        assert_eq!(met(here.id, older.secret, here, same, true), found_out, "another secret");
        let relayed = ([1; 32], [2; 32]);
        assert_eq!(met(here.id, here.secret, here, relayed, true), found_out, "somebody between them");
    }

    #[test]
    fn one_who_answers_without_the_secret_is_refused() {
        let here = Endpoint::random().unwrap();
        let (mut one, mut other) = UnixStream::pair().unwrap();
        // A stranger that took the address: it says back whatever it heard.
        other.write_all(&[GOES_ON; 65]).unwrap();
        let error = connect(&mut one, &Hello::new(here.id, 0).unwrap(), &here.secret, &[0; 32]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let (mut one, mut other) = UnixStream::pair().unwrap();
        // One that connects and cannot prove anything.
        one.write_all(&Hello::new(here.id, 0).unwrap().encode()).unwrap();
        one.write_all(&[7; 32]).unwrap();
        let error = listen(&mut other, &[0; 32], |_| Some(((), here.secret))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let (mut one, mut other) = UnixStream::pair().unwrap();
        one.write_all(&[b'G'; HELLO_BYTES]).unwrap();
        let error = listen(&mut other, &[0; 32], |_| Some(((), here.secret))).unwrap_err();
        assert_eq!(error.to_string(), "it speaks another protocol");
    }
}
