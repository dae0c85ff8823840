//! The network of a generation as tensors see it: messages of host memory over a [`MessageTransport`], groups of ranks
//! that reduce together, and who waits for whom. How bytes travel is the transport's.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use crate::TorchError;
use crate::ffi;
use crate::ops::{made, raw};

/// Nothing panics while it holds one of these locks, so what they guard is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bytes of a tensor in host memory, for as long as its exchange lasts. Once that has ended, or is given up,
/// they cannot be reached any more. Clones share them.
#[derive(Clone, Debug)]
pub struct HostBytes {
    bytes: usize,
    at: Arc<Mutex<Option<At>>>,
}

/// Where the bytes are.
#[derive(Clone, Copy, Debug)]
struct At(*mut u8);

// SAFETY: the bytes are reached under the lock of `HostBytes` only.
unsafe impl Send for At {}

impl HostBytes {
    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What `look` makes of the bytes from `start` on; `None` once the exchange has ended.
    pub fn read<T>(&self, start: usize, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let at = locked(&self.at);
        let At(memory) = (*at)?;
        // SAFETY: the tensor lives until its `Lease` has taken the pointer away, under the same lock, and no one writes
        // to one that is being sent. One tensor may be on its way to several ranks.
        let bytes = if self.bytes == 0 { &[] } else { unsafe { slice::from_raw_parts(memory, self.bytes) } };
        bytes.get(start..).map(look)
    }

    /// As [`HostBytes::read`], for one that writes.
    pub fn write<T>(&self, start: usize, fill: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        let at = locked(&self.at);
        let At(memory) = (*at)?;
        // SAFETY: as above, and nothing else reaches a tensor that is being received.
        let bytes =
            if self.bytes == 0 { &mut [] } else { unsafe { slice::from_raw_parts_mut(memory, self.bytes) } };
        bytes.get_mut(start..).map(fill)
    }
}

/// Ends the use of a [`HostBytes`] when it is dropped.
#[derive(Debug)]
struct Lease(HostBytes);

impl Drop for Lease {
    fn drop(&mut self) {
        *locked(&self.0.at) = None;
    }
}

/// Why a message did not arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryFailure {
    /// What happened.
    pub why: String,
    /// Whether nothing came back from the other rank: it may be well, and the network between may not.
    pub no_answer: bool,
}

impl DeliveryFailure {
    /// One that the other rank, or this one, has brought about.
    pub fn new(why: impl Into<String>) -> DeliveryFailure {
        DeliveryFailure { why: why.into(), no_answer: false }
    }
}

/// What carries messages between the ranks of a generation. Messages of one tag from one rank to another arrive in
/// order; those of different tags do not wait for each other.
pub trait MessageTransport: Send + Sync + 'static {
    /// Starts sending a message to rank `peer`. It ends once the peer has a place for it and it is on its way.
    fn send(&self, message: HostBytes, peer: u32, tag: u32) -> Result<Box<dyn Pending>, DeliveryFailure>;
    /// Starts receiving a message of rank `peer`, of as many bytes.
    fn recv(&self, message: HostBytes, peer: u32, tag: u32) -> Result<Box<dyn Pending>, DeliveryFailure>;
    /// Ends everything that is pending, and what is started from now on.
    fn abort(&self);
    /// Bytes of messages that have come or gone.
    fn moved_bytes(&self) -> u64;
}

/// A message on its way.
pub trait Pending: Send {
    /// Waits for its end, and gives up after `limit`.
    fn wait(&mut self, limit: Duration) -> Result<(), DeliveryFailure>;
}

/// Waits in progress and those that have ended.
#[derive(Default)]
struct Waits {
    next: u64,
    /// The rank that the computation waits for, or none where it goes on meanwhile; and since when.
    now: HashMap<u64, (Option<u32>, Instant)>,
    /// How long the engine has waited for its peers in waits that have ended.
    ended: Duration,
}

struct NetworkState {
    transport: Box<dyn MessageTransport>,
    /// How long a wait may take.
    operation: Duration,
    /// The engine's thread. A send waits too, until its receiver is there; one that ends in a thread beside the
    /// engine's keeps no rank from computing.
    engine: ThreadId,
    waits: Mutex<Waits>,
    aborted: AtomicBool,
    /// Set once an exchange fails without an abort. Kept here because most exchanges run inside a tensor
    /// operation, whose error does not say so.
    broken: AtomicBool,
    /// The first rank that did not answer.
    unreachable: Mutex<Option<u32>>,
}

impl NetworkState {
    /// A failed exchange: aborted by this rank, or failed with its peer.
    fn failed(&self, sending: bool, peer: u32, failure: &DeliveryFailure) -> TorchError {
        if self.aborted.load(Ordering::SeqCst) {
            return TorchError("the exchange was aborted".to_owned());
        }
        self.broken.store(true, Ordering::SeqCst);
        if failure.no_answer {
            locked(&self.unreachable).get_or_insert(peer);
        }
        let doing = if sending { "sending to" } else { "receiving from" };
        TorchError(format!("{doing} rank {peer} failed: {}", failure.why))
    }
}

/// A message on its way, and what it needs until it has arrived.
struct Exchange {
    // Before the lease: a transport lets go of a message first.
    pending: Box<dyn Pending>,
    _lease: Lease,
    state: Arc<NetworkState>,
    sending: bool,
    peer: u32,
}

impl Exchange {
    /// Starts one.
    ///
    /// # Safety
    /// `memory` points to so many bytes, which stay where they are until this is dropped.
    unsafe fn start(
        state: &Arc<NetworkState>,
        memory: *mut u8,
        bytes: usize,
        sending: bool,
        peer: u32,
        tag: u32,
    ) -> Result<Exchange, TorchError> {
        let memory = HostBytes { bytes, at: Arc::new(Mutex::new(Some(At(memory)))) };
        let lease = Lease(memory.clone());
        let transport = &state.transport;
        let started =
            if sending { transport.send(memory, peer, tag) } else { transport.recv(memory, peer, tag) };
        match started {
            Ok(pending) => Ok(Exchange { pending, _lease: lease, state: state.clone(), sending, peer }),
            Err(error) => Err(state.failed(sending, peer, &error)),
        }
    }

    /// Waits for its end; `engine_waits` says whether the computation cannot go on before.
    fn wait(&mut self, engine_waits: bool) -> Result<(), TorchError> {
        let state = &self.state;
        let start = Instant::now();
        let number = {
            let mut waits = locked(&state.waits);
            waits.next += 1;
            let number = waits.next;
            waits.now.insert(number, (engine_waits.then_some(self.peer), start));
            number
        };
        let result = self.pending.wait(state.operation);
        let mut waits = locked(&state.waits);
        waits.now.remove(&number);
        if engine_waits {
            waits.ended += start.elapsed();
        }
        drop(waits);
        result.map_err(|error| state.failed(self.sending, self.peer, &error))
    }
}

/// The network of a generation: every rank can send to every other.
#[derive(Clone)]
pub struct Network(Arc<NetworkState>);

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// The network over `transport`, for the thread that calls this. A wait fails after `operation`.
    pub fn new(transport: impl MessageTransport, operation: Duration) -> Network {
        Network(Arc::new(NetworkState {
            transport: Box::new(transport),
            operation,
            engine: std::thread::current().id(),
            waits: Mutex::default(),
            aborted: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            unreachable: Mutex::default(),
        }))
    }

    /// Makes every wait on this network, now and later, end with an error. From any thread.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::SeqCst);
        self.0.transport.abort();
    }

    /// Whether an exchange has failed without this rank having aborted: the peer or the path to it is gone or too
    /// slow. Any operation that exchanges tensors can fail this way.
    pub fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::SeqCst)
    }

    /// The first rank from which nothing came back, though its process may be well.
    pub fn unreachable(&self) -> Option<u32> {
        *locked(&self.0.unreachable)
    }

    /// A rank without which this one cannot go on, if there is one now.
    pub fn waits_for(&self) -> Option<u32> {
        locked(&self.0.waits).now.values().find_map(|(peer, _)| *peer)
    }

    /// Since when this rank waits for the one that [`Network::waits_for`] names.
    pub fn waits_since(&self) -> Option<Instant> {
        locked(&self.0.waits).now.values().find(|(peer, _)| peer.is_some()).map(|(_, since)| *since)
    }

    /// Bytes of tensors that have come from other ranks or gone to them.
    pub fn moved_bytes(&self) -> u64 {
        self.0.transport.moved_bytes()
    }

    /// How long this rank could not go on without its peers, in microseconds.
    pub fn waited_us(&self) -> u64 {
        let waits = locked(&self.0.waits);
        let now = waits.now.values().filter(|(peer, _)| peer.is_some()).map(|(_, since)| since.elapsed());
        (waits.ended + now.sum::<Duration>()).as_micros() as u64
    }

    /// Starts sending a contiguous tensor to rank `peer`. Messages of one tag between two ranks
    /// arrive in order.
    pub fn send(&self, x: &Tensor, peer: u32, tag: u32) -> Result<Transfer, TorchError> {
        let host = if x.device() == Device::Cpu { x.shallow_clone() } else { x.f_to_device(Device::Cpu)? };
        self.transfer(host, None, peer, tag)
    }

    /// Starts receiving into a contiguous tensor from rank `peer`.
    pub fn recv(&self, x: &Tensor, peer: u32, tag: u32) -> Result<Transfer, TorchError> {
        if x.device() == Device::Cpu {
            return self.transfer(x.shallow_clone(), Some(None), peer, tag);
        }
        let host = Tensor::f_empty(x.size(), (x.kind(), Device::Cpu))?;
        self.transfer(host, Some(Some(x.shallow_clone())), peer, tag)
    }

    /// `target` is none for a send, and for a receive the tensor on a GPU that gets what has come, if there is one.
    fn transfer(
        &self,
        host: Tensor,
        target: Option<Option<Tensor>>,
        peer: u32,
        tag: u32,
    ) -> Result<Transfer, TorchError> {
        if !host.is_contiguous() || target.iter().flatten().any(|x| !x.is_contiguous()) {
            return Err(TorchError("a transfer takes a contiguous tensor".to_owned()));
        }
        let bytes = host.numel() * host.kind().elt_size_in_bytes();
        // SAFETY: the transfer drops the exchange before the tensor.
        let exchange =
            unsafe { Exchange::start(&self.0, host.data_ptr().cast(), bytes, target.is_none(), peer, tag) }?;
        Ok(Transfer { exchange, host, target: target.flatten() })
    }
}

/// A send or a receive in flight. It keeps its tensor alive.
pub struct Transfer {
    // Before the tensor: memory is let go of first.
    exchange: Exchange,
    host: Tensor,
    target: Option<Tensor>,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transfer")
    }
}

impl Transfer {
    /// Waits for the end of the transfer. The error names the peer.
    pub fn wait(mut self) -> Result<(), TorchError> {
        let on_engine = std::thread::current().id() == self.exchange.state.engine;
        self.exchange.wait(!self.exchange.sending || on_engine)?;
        if let Some(target) = &mut self.target {
            target.f_copy_(&self.host)?;
        }
        Ok(())
    }
}

/// Runs a call for C++: an error or a panic becomes a text that the shim throws.
fn answer(call: impl FnOnce() -> Result<(), TorchError>) -> *mut c_char {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(TorchError("an exchange panicked".to_owned())));
    match result {
        Ok(()) => std::ptr::null_mut(),
        Err(TorchError(message)) => shim_text(&message.replace('\0', " ")),
    }
}

fn shim_text(text: &str) -> *mut c_char {
    // SAFETY: at least one byte is asked for, and no more than that many are written.
    unsafe {
        let block = ffi::cx_alloc(text.len() + 1).cast::<u8>();
        if !block.is_null() {
            block.copy_from_nonoverlapping(text.as_ptr(), text.len());
            block.add(text.len()).write(0);
        }
        block.cast()
    }
}

extern "C" fn exchange_start(
    state: *const c_void,
    memory: *mut c_void,
    bytes: usize,
    sending: bool,
    peer: c_int,
    tag: c_int,
    out: *mut *mut c_void,
) -> *mut c_char {
    answer(|| {
        // SAFETY: what `Group::new` handed over, on loan for this call.
        let state = std::mem::ManuallyDrop::new(unsafe { Arc::from_raw(state.cast::<NetworkState>()) });
        // SAFETY: the shim drops a message before its tensor.
        let exchange =
            unsafe { Exchange::start(&state, memory.cast(), bytes, sending, peer as u32, tag as u32) }?;
        // SAFETY: `out` is a variable of the caller.
        unsafe { *out = Box::into_raw(Box::new(exchange)).cast() };
        Ok(())
    })
}

extern "C" fn exchange_wait(exchange: *mut c_void) -> *mut c_char {
    // SAFETY: made by `exchange_start`, used by one thread at a time.
    answer(|| unsafe { &mut *exchange.cast::<Exchange>() }.wait(true))
}

extern "C" fn exchange_free(exchange: *mut c_void) {
    // SAFETY: made by `exchange_start`, dropped once.
    drop(unsafe { Box::from_raw(exchange.cast::<Exchange>()) });
}

extern "C" fn network_free(state: *const c_void) {
    // SAFETY: made by `Group::new`, dropped once, with the group.
    drop(unsafe { Arc::from_raw(state.cast::<NetworkState>()) });
}

/// How values are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Added.
    Sum = 0,
    /// The largest.
    Max = 1,
}

/// A list of ranks that reduce together, and this process's place in it. A group of one is a group:
/// its reductions are its own values.
#[derive(Debug)]
pub struct Group {
    group: *mut c_void,
    size: usize,
}

// SAFETY: the C++ object is immutable after it is made.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// The group of `ranks`, in this order, of which this process is the one at `index`. Without a
    /// network only a group of one can work, and a larger one is refused.
    pub fn new(
        network: Option<&Network>,
        ranks: &[u32],
        index: usize,
        tag: u32,
    ) -> Result<Group, TorchError> {
        if index >= ranks.len() || (network.is_none() && ranks.len() > 1) {
            return Err(TorchError(format!(
                "no group of ranks {ranks:?} with a place {index} and this network"
            )));
        }
        let list: Vec<c_int> = ranks.iter().map(|&rank| rank as c_int).collect();
        let calls = ffi::NetworkCalls {
            network: network.map_or(std::ptr::null(), |network| Arc::into_raw(network.0.clone()).cast()),
            start: exchange_start,
            wait: exchange_wait,
            free: exchange_free,
            network_free,
        };
        // SAFETY: the group takes over the reference to the network and copies the list.
        let group =
            unsafe { ffi::cx_group_new(calls, list.as_ptr(), list.len(), index as c_int, tag as c_int) };
        Ok(Group { group, size: ranks.len() })
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Combines `x` over the group, in a fixed tree over its ranks; all ranks get the same bits.
    pub fn reduce(&self, x: &Tensor, op: Op) -> Result<Tensor, TorchError> {
        // SAFETY: group and tensor are alive during the call.
        made(|out| unsafe { ffi::cx_group_reduce(self.group, raw(x), op as c_int, out) })
    }

    /// The values of all ranks, one after another along dim `dim` (0 or more), of which all have the
    /// same shape. Exact, outside autograd; a group of one gets `x`, contiguous.
    pub fn gather(&self, x: &Tensor, dim: i64) -> Result<Tensor, TorchError> {
        // SAFETY: group and tensor are alive during the call.
        made(|out| unsafe { ffi::cx_group_gather(self.group, raw(x), dim, out) })
    }

    pub(crate) fn raw(&self) -> *mut c_void {
        self.group
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        unsafe { ffi::cx_group_free(self.group) }
    }
}
