//! Process groups over Gloo, groups of ranks, and transfers.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Arc;

use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi;
use crate::ops::{made, raw};

/// The rendezvous through which the ranks of a generation find each other.
pub trait Store: Send + Sync + 'static {
    /// Makes a value visible to all ranks.
    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String>;
    /// Waits for a value. The error says what was waited for and why it ended.
    fn get(&self, key: &[u8]) -> Result<Vec<u8>, String>;
}

fn shim_bytes(bytes: &[u8]) -> *mut u8 {
    // SAFETY: at least one byte is asked for, and no more than that many are written.
    unsafe {
        let block = ffi::cx_alloc(bytes.len() + 1).cast::<u8>();
        if !block.is_null() {
            block.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            block.add(bytes.len()).write(0);
        }
        block
    }
}

/// Runs a store call for C++: an error or a panic becomes a text that the shim throws.
fn answer(call: impl FnOnce() -> Result<(), String>) -> *mut c_char {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("the rendezvous store panicked".to_owned()));
    match result {
        Ok(()) => std::ptr::null_mut(),
        Err(message) => shim_bytes(message.replace('\0', " ").as_bytes()).cast(),
    }
}

extern "C" fn store_set(
    context: *mut c_void,
    key: *const c_char,
    key_len: usize,
    value: *const u8,
    value_len: usize,
) -> *mut c_char {
    answer(|| {
        // SAFETY: the context is the store that `Network` keeps alive; the slices are C++ strings
        // and vectors that live during the call.
        let (store, key, value) = unsafe {
            (&*context.cast::<Box<dyn Store>>(), slice(key.cast(), key_len), slice(value, value_len))
        };
        store.set(key, value)
    })
}

extern "C" fn store_get(
    context: *mut c_void,
    key: *const c_char,
    key_len: usize,
    value: *mut *mut u8,
    value_len: *mut usize,
) -> *mut c_char {
    answer(|| {
        // SAFETY: as in `store_set`.
        let (store, key) = unsafe { (&*context.cast::<Box<dyn Store>>(), slice(key.cast(), key_len)) };
        let bytes = store.get(key)?;
        // SAFETY: both point to variables of the caller.
        unsafe {
            *value = shim_bytes(&bytes);
            *value_len = bytes.len();
        }
        Ok(())
    })
}

/// SAFETY: `data` points to `len` bytes, or `len` is zero.
unsafe fn slice<'a>(data: *const u8, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(data, len) }
}

struct NetworkInner {
    network: *mut c_void,
    // The process group calls the store only while it forms, but keeps a pointer to it.
    _store: Box<Box<dyn Store>>,
}

// SAFETY: the C++ object guards its own state with a mutex, and c10d's sends, receives and aborts
// may come from any thread.
unsafe impl Send for NetworkInner {}
// SAFETY: as above.
unsafe impl Sync for NetworkInner {}

impl Drop for NetworkInner {
    fn drop(&mut self) {
        // SAFETY: made by `Network::join`, dropped once, with the last clone.
        unsafe { ffi::cx_network_free(self.network) }
    }
}

/// The process group of a generation: every rank can send to every other.
#[derive(Clone)]
pub struct Network(Arc<NetworkInner>);

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Network")
    }
}

impl Network {
    /// Joins rank `rank` of `world`, bound to the local `address`; ends when all have joined.
    /// Fails after `forming_ms`; every later operation fails after `operation_ms`.
    pub fn join(
        store: impl Store,
        rank: u32,
        world: u32,
        address: &str,
        forming_ms: u64,
        operation_ms: u64,
    ) -> Result<Network, TorchError> {
        let address = CString::new(address).map_err(|error| TorchError(error.to_string()))?;
        let store: Box<Box<dyn Store>> = Box::new(Box::new(store));
        let calls = ffi::StoreCalls {
            context: std::ptr::from_ref::<Box<dyn Store>>(&store).cast_mut().cast(),
            set: store_set,
            get: store_get,
        };
        let mut network = std::ptr::null_mut();
        // SAFETY: the store outlives the network: both are dropped together, the network first.
        check(unsafe {
            ffi::cx_network_new(
                calls,
                rank as c_int,
                world as c_int,
                address.as_ptr(),
                forming_ms as i64,
                operation_ms as i64,
                &mut network,
            )
        })?;
        Ok(Network(Arc::new(NetworkInner { network, _store: store })))
    }

    /// Makes every wait on this network, now and later, end with an error. From any thread.
    pub fn abort(&self) {
        // SAFETY: the network is alive.
        unsafe { ffi::cx_network_abort(self.0.network) }
    }

    /// Whether an exchange has failed without this rank having aborted: the peer or the path to it is gone or too
    /// slow, or Gloo refused the tensor. Any operation that exchanges tensors can fail this way.
    pub fn is_broken(&self) -> bool {
        // SAFETY: the network is alive, and what is read is atomic.
        unsafe { ffi::cx_network_broken(self.0.network) }
    }

    /// A rank without which this one cannot go on, if there is one now.
    pub fn waits_for(&self) -> Option<u32> {
        // SAFETY: the network is alive, and the call takes its mutex.
        u32::try_from(unsafe { ffi::cx_network_waits_for(self.0.network) }).ok()
    }

    /// How long this rank could not go on without its peers, in microseconds.
    pub fn waited_us(&self) -> u64 {
        // SAFETY: the network is alive, and the call takes its mutex.
        u64::try_from(unsafe { ffi::cx_network_waited_us(self.0.network) }).unwrap_or(0)
    }

    /// Starts sending a contiguous tensor to rank `peer`. Messages of one tag between two ranks
    /// arrive in order.
    pub fn send(&self, x: &Tensor, peer: u32, tag: u32) -> Result<Transfer, TorchError> {
        self.transfer(x, true, peer, tag)
    }

    /// Starts receiving into a contiguous tensor from rank `peer`.
    pub fn recv(&self, x: &Tensor, peer: u32, tag: u32) -> Result<Transfer, TorchError> {
        self.transfer(x, false, peer, tag)
    }

    fn transfer(&self, x: &Tensor, sending: bool, peer: u32, tag: u32) -> Result<Transfer, TorchError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: network and tensor are alive; the transfer keeps references to both.
        check(unsafe {
            ffi::cx_transfer_new(self.0.network, raw(x), sending, peer as c_int, tag as c_int, &mut out)
        })?;
        Ok(Transfer { transfer: out, _network: self.clone() })
    }
}

/// A send or a receive in flight. It keeps its tensor alive.
#[derive(Debug)]
pub struct Transfer {
    transfer: *mut c_void,
    // The process group keeps a pointer to the store, which lives as long as its network.
    _network: Network,
}

// SAFETY: the C++ object is used by one thread at a time.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Waits for the end of the transfer. The error names the peer.
    pub fn wait(self) -> Result<(), TorchError> {
        // SAFETY: the transfer is alive until it is dropped below.
        check(unsafe { ffi::cx_transfer_wait(self.transfer) })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // SAFETY: made by `Network::transfer`, dropped once.
        unsafe { ffi::cx_transfer_free(self.transfer) }
    }
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
    // The process group keeps a pointer to the store, which lives as long as its network.
    _network: Option<Network>,
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
        let kept = network.cloned();
        let network = network.map_or(std::ptr::null_mut(), |network| network.0.network);
        // SAFETY: the group takes its own reference to the network and copies the list.
        let group =
            unsafe { ffi::cx_group_new(network, list.as_ptr(), list.len(), index as c_int, tag as c_int) };
        Ok(Group { group, size: ranks.len(), _network: kept })
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
