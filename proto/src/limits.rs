//! The bounds that both ends of a call must share, each with its reason.

use std::time::Duration;

/// The most bytes of one message. The largest is an assignment, which lists each parameter and
/// action of a rank: some 100 bytes a row, so 16 MiB is room for a hundred thousand rows, and still
/// little enough that a peer gone wrong cannot fill the memory.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The most bytes of one message to the coordinator. The largest is a status with all its norms, some 3 MiB. What a peer claims to send is refused by its
/// length, before memory is taken for it.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The most bytes of a call's headers; ours take some 300.
pub const MAX_HEADER_BYTES: u32 = 16 << 10;

/// The most bytes of a worker's name, host, device and runtime. With them a list of all workers fits into
/// one message.
pub const MAX_INFO_BYTES: [usize; 4] = [128, 256, 64, 256];

/// The most bytes of what a worker says in words: why it failed or leaves, and what it does. A worker cuts longer ones.
pub const MAX_WORDS_BYTES: usize = 4 << 10;

/// The most files that one rank reports of a checkpoint; it writes two or three.
pub const MAX_SAVED_FILES: usize = 64;

/// The most bytes of a file's name within a run's folder, and of its digest.
pub const MAX_SAVED_FILE_BYTES: [usize; 2] = [256, 128];

/// The most bytes of a path that a caller names: Linux follows none that is longer.
pub const MAX_PATH_BYTES: usize = 4096;

/// The most bytes of the reason that a caller gives.
pub const MAX_REASON_BYTES: usize = 1 << 10;

/// The most bytes of a message about certificates: a request or a certificate has about one KiB, and
/// the one call that needs no certificate is among them.
pub const MAX_ACCESS_BYTES: usize = 16 << 10;

/// The most characters of a caller's text that a message repeats.
pub const MAX_SHOWN_CHARS: usize = 64;

/// How long a call may take until its reply (for a stream: until it is accepted). Longer than
/// [`MAX_STORE_WAIT_MS`] plus an fsync on a busy disk; within the ten seconds in which a run whose
/// coordinator went away has to end.
pub const RPC_DEADLINE: Duration = Duration::from_secs(8);

/// How long a connection may take to come about. On one network it takes milliseconds; whoever
/// calls tries again.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often an idle connection is probed, so that a peer whose machine vanished is noticed though
/// no packet says so.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// How long a probe may stay unanswered. With the interval it stays below [`LEASE_MS`], so that
/// both ends give up a dead link at about the same time.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a worker says how it is when nothing changed, in milliseconds.
pub const HEARTBEAT_MS: u64 = 1000;

/// How long a worker may be silent before it counts as lost, in milliseconds: five heartbeats, so
/// that a busy machine or a lost packet costs no run, and a dead one is named within ten seconds.
pub const LEASE_MS: u64 = 5000;

/// The most step reports in one status. A lead rank that is further ahead sends the rest after the
/// first are acknowledged; 256 reports are some 20 KiB.
pub const MAX_REPORTS: usize = 256;

/// The most parameters whose gradient norms one step report names: the largest model that a job may have, an
/// encoder and a decoder of 1,024 layers each with biases, has some 47,000.
pub const MAX_PARAMETER_NORMS: usize = 48 << 10;

/// The most parameter norms of all reports in one status, some 70 bytes each, so that
/// the status stays below [`MAX_REQUEST_BYTES`]. Where reports name many, fewer of them are sent
/// at once, but always one.
pub const MAX_STATUS_NORMS: usize = MAX_PARAMETER_NORMS;

/// The most bytes of a key of the rendezvous. Keys are short texts.
pub const MAX_STORE_KEY_BYTES: usize = 1 << 10;

/// The most bytes of a value of the rendezvous: a rank's host and address, some 400 bytes.
pub const MAX_STORE_VALUE_BYTES: usize = 4 << 10;

/// The most keys in the rendezvous of one generation: three for each rank; a job has at most 4,096.
pub const MAX_STORE_KEYS: usize = 1 << 14;

/// The most bytes of all keys and values in the rendezvous of one generation, so that it cannot
/// fill the coordinator's memory.
pub const MAX_STORE_BYTES: usize = 16 << 20;

/// The longest that the coordinator holds a `StoreGet` open, in milliseconds. Whoever waits longer
/// asks again, and learns so that the coordinator is alive.
pub const MAX_STORE_WAIT_MS: u64 = 5000;
