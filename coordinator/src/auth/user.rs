//! Which user of this machine a loopback connection comes from, as Linux tells: a port of 127.0.0.1 is open to all of
//! them, and without certificates a caller acts with the rights of the user that started the coordinator.
//!
//! The kernel is asked for the one socket at the other end (`sock_diag`, see sock_diag(7)).

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// The user of root, who can do everything anyway.
const ROOT: u32 = 0;

/// How long the kernel may take to answer. It answers at once.
const ANSWERS: Duration = Duration::from_secs(1);

// From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const ENOENT: i32 = 2;
/// Bytes of `nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Where `idiag_state` is in an answer: the second byte behind the header.
const STATE_AT: usize = HEADER_BYTES + 1;
const TCP_ESTABLISHED: u8 = 1;
/// Where `idiag_uid` is: behind the header, four bytes, the socket's id, and three words. `idiag_inode` follows.
const USER_AT: usize = HEADER_BYTES + 4 + 48 + 12;

/// Which user is at the other end of a loopback connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// The coordinator's own, or root.
    Owner,
    /// Another one.
    Other(u32),
    /// One that cannot be told any more: the connection is gone.
    Gone,
}

/// The user of the process that connected from `peer` to `own`.
///
/// # Errors
/// Where the system does not tell.
pub(crate) fn of(peer: SocketAddr, own: SocketAddr) -> io::Result<User> {
    let owner = rustix::process::geteuid().as_raw();
    let mut socket =
        Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.set_read_timeout(Some(ANSWERS))?;
    socket.write_all(&question(peer, own))?;
    let mut answer = [0; 1024];
    let bytes = socket.read(&mut answer)?;
    Ok(match user_in(&answer[..bytes])? {
        None => User::Gone,
        Some(user) if user == owner || user == ROOT => User::Owner,
        Some(user) => User::Other(user),
    })
}

/// Asks for the socket that is bound to `local` and connected to `remote`: `inet_diag_req_v2` behind its header.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let family = if local_ip.is_ipv4() { AF_INET } else { AF_INET6 };
    // All states.
    let mut body = vec![family, IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff];
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    for ip in [local_ip, remote_ip] {
        let mut bytes = [0; 16];
        match ip {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.copy_from_slice(&ip.octets()),
        }
        body.extend(bytes);
    }
    // On any interface, by its addresses alone.
    body.extend(0_u32.to_ne_bytes());
    body.extend([0xff; 8]);
    let mut message = Vec::new();
    message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The user in an answer; `None` where no process holds such a connection. One that its process has closed belongs to
/// root by the kernel's words, and what was sent on it before can still be read.
fn user_in(answer: &[u8]) -> io::Result<Option<u32>> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is too short");
    let word = |at: usize| -> io::Result<[u8; 4]> {
        answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).ok_or_else(short)
    };
    let kind = u16::from_ne_bytes(answer.get(4..6).and_then(|kind| kind.try_into().ok()).ok_or_else(short)?);
    match kind {
        SOCK_DIAG_BY_FAMILY => {
            let user = u32::from_ne_bytes(word(USER_AT)?);
            let held = word(USER_AT + 4)? != [0; 4] && answer.get(STATE_AT) == Some(&TCP_ESTABLISHED);
            Ok(held.then_some(user))
        }
        NLMSG_ERROR => match -i32::from_ne_bytes(word(HEADER_BYTES)?) {
            ENOENT => Ok(None),
            error => Err(io::Error::from_raw_os_error(error)),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is of another kind")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_of_this_process_is_its_owners_and_one_that_was_closed_is_gone() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(bind) else { continue };
            let own = listener.local_addr().unwrap();
            let client = TcpStream::connect(own).unwrap();
            let (_server, peer) = listener.accept().unwrap();
            assert_eq!(of(peer, own).unwrap(), User::Owner, "{bind}");
            assert_eq!(of(own, own).unwrap(), User::Gone, "{bind}");
            drop(client);
            assert_eq!(of(peer, own).unwrap(), User::Gone, "{bind}");
        }
    }

    #[test]
    fn an_answer_tells_the_user_or_what_went_wrong() {
        let mut answer = vec![0; USER_AT + 8];
        (answer[STATE_AT], answer[USER_AT + 4]) = (TCP_ESTABLISHED, 1);
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[USER_AT..USER_AT + 4].copy_from_slice(&65_534_u32.to_ne_bytes());
        assert_eq!(user_in(&answer).unwrap(), Some(65_534));
        assert!(user_in(&answer[..USER_AT + 3]).is_err() && user_in(&[]).is_err());
        for (at, value) in [(STATE_AT, 10), (USER_AT + 4, 0)] {
            let mut other = answer.clone();
            other[at] = value;
            assert_eq!(
                user_in(&other).unwrap(),
                None,
                "a socket that listens, or that its process has closed"
            );
        }
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&(-ENOENT).to_ne_bytes());
        assert_eq!(user_in(&answer).unwrap(), None);
        answer[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert!(user_in(&answer).is_err());
    }
}
