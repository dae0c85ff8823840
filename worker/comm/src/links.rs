//! This rank's connection to all others.

use coxswain_native::TorchError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use coxswain_native::net::{Group, MessageTransport, Network, Transfer};
use coxswain_types::activity::{EnginePhase, EngineWork};
use coxswain_types::schedule::Action;
use tch::{Device, Kind, Tensor};

use crate::rendezvous::Store;
use crate::transport::{DataPort, PeerMesh, locked};
use crate::tree::{below, children, parent};

/// What traffic is for. Messages of one purpose between two ranks arrive in order; those of
/// different purposes never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Activations from a stage to the next, or their gradients on the way back.
    Edge {
        /// The earlier of the two stages.
        stage: u32,
        /// Whether these are gradients.
        backward: bool,
    },
    /// Partial sums between tensor shards.
    Tensor,
    /// Gradients of slices with several uses.
    Shared,
    /// Parts of norms and of the optimizer's state, between data ranks.
    Optimizer,
    /// The closing exchange.
    World,
    /// State that ranks of an earlier generation held, on its way to those that need it.
    Handover,
    /// Gradients for the copy that another rank keeps.
    Replica,
    /// Gradients of one bucket between data ranks: parts to the owner of a slice, and sums back.
    Data {
        /// The bucket.
        bucket: u32,
        /// Whether these are sums on their way back.
        gather: bool,
    },
}

impl Axis {
    fn tag(self) -> u32 {
        match self {
            Axis::Shared => 1,
            Axis::Tensor => 2,
            Axis::Optimizer => 3,
            Axis::World => 4,
            Axis::Handover => 5,
            Axis::Replica => 6,
            // Stages are at most as many as layers, and buckets a few for each.
            Axis::Edge { stage, backward } => 16 + 2 * stage + u32::from(backward),
            Axis::Data { bucket, gather } => (1 << 16) + 2 * bucket + u32::from(gather),
        }
    }
}

/// This rank's connection to the others of its generation.
#[derive(Clone, Debug)]
pub struct Links {
    network: Option<Network>,
    now: Arc<Now>,
    rank: u32,
    world: u32,
}

/// How long connecting to a rank that is there may take: a thousand times what it takes on a network
/// that is not loaded.
const CONNECT_MS: u64 = 10_000;

/// What this rank does now, seen from other threads.
#[derive(Debug)]
struct Now {
    aborted: AtomicBool,
    doing: Mutex<RankActivity>,
    looks: Mutex<Looks>,
    /// The newest number of bytes that have moved, and since when it is that.
    still: Mutex<(u64, Instant)>,
}

/// How long this rank works between two calls of [`Links::expect_wanted`].
#[derive(Debug)]
struct Looks {
    /// The newest call.
    at: Instant,
    /// How long the rank had waited for others by then, in microseconds.
    waited_us: u64,
    /// The longest work between two calls, without waits.
    longest: Duration,
}

/// What a rank is doing.
#[derive(Clone, Debug)]
pub struct RankActivity {
    /// The step that it takes.
    pub step: u64,
    /// What it does.
    pub what: EngineWork,
    /// Since when.
    pub since: Instant,
    /// The action that it ended last.
    pub last: Option<Action>,
}

impl Now {
    fn new() -> Arc<Now> {
        let what = EngineWork::Phase(EnginePhase::Joining);
        let doing = Mutex::new(RankActivity { step: 0, what, since: Instant::now(), last: None });
        let looks = Mutex::new(Looks { at: Instant::now(), waited_us: 0, longest: Duration::ZERO });
        Arc::new(Now {
            aborted: AtomicBool::new(false),
            doing,
            looks,
            still: Mutex::new((0, Instant::now())),
        })
    }
}

/// The most that a rank may share at once: a list of what it holds, some 100 bytes for each of a hundred
/// thousand slices.
pub const SHARED_MAX_BYTES: usize = 16 << 20;

fn add(sums: &mut [f64], list: &[f64]) {
    sums.iter_mut().zip(list).for_each(|(sum, value)| *sum += value);
}

impl Links {
    /// Joins the generation as `rank` of `world`, which others reach at `port`. Two ranks connect when they first
    /// have something for each other.
    ///
    /// Fails when the ranks are not all there after `rendezvous_ms`, which the store measures; later operations fail
    /// after `operation_ms`.
    pub fn join(
        store: impl Store,
        rank: u32,
        world: u32,
        port: &Arc<DataPort>,
        rendezvous_ms: u64,
        operation_ms: u64,
    ) -> Result<Links, TorchError> {
        let connect = Duration::from_millis(rendezvous_ms.min(CONNECT_MS));
        let mesh = PeerMesh::join(&store, rank, world, port, connect).map_err(TorchError)?;
        Ok(Links::over(mesh, rank, world, Duration::from_millis(operation_ms)))
    }

    /// The links of `rank` of `world` over a transport of its own, for the thread that calls this. Operations fail after
    /// `operation`.
    pub fn over(transport: impl MessageTransport, rank: u32, world: u32, operation: Duration) -> Links {
        Links { network: Some(Network::new(transport, operation)), now: Now::new(), rank, world }
    }

    /// A rank that has no others.
    pub fn alone() -> Links {
        Links { network: None, now: Now::new(), rank: 0, world: 1 }
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Makes every wait end with an error, now and later, and [`Links::expect_wanted`] too. From any
    /// thread.
    pub fn abort(&self) {
        self.now.aborted.store(true, Ordering::Relaxed);
        if let Some(network) = &self.network {
            network.abort();
        }
    }

    /// Whether an exchange with another rank failed before [`Links::abort`].
    pub fn is_broken(&self) -> bool {
        self.network.as_ref().is_some_and(Network::is_broken)
    }

    /// The first rank from which nothing came back, though its process may be well.
    pub fn unreachable(&self) -> Option<u32> {
        self.network.as_ref().and_then(Network::unreachable)
    }

    /// Fails once aborted. For stretches of work without a wait, which would end a rank as well.
    pub fn expect_wanted(&self) -> Result<(), TorchError> {
        let now = Instant::now();
        let mut looks = self.looks();
        looks.longest = looks.longest.max(self.worked(&looks, now));
        (looks.at, looks.waited_us) = (now, self.waited_us());
        drop(looks);
        if self.now.aborted.load(Ordering::Relaxed) {
            return Err(TorchError("the work was aborted".to_owned()));
        }
        Ok(())
    }

    /// The longest that this rank has worked between two calls of [`Links::expect_wanted`], up to now. Waits for other
    /// ranks do not count, since an abort ends them.
    pub fn longest_stretch(&self) -> Duration {
        let looks = self.looks();
        looks.longest.max(self.worked(&looks, Instant::now()))
    }

    fn worked(&self, looks: &Looks, now: Instant) -> Duration {
        let waited = Duration::from_micros(self.waited_us().saturating_sub(looks.waited_us));
        now.saturating_duration_since(looks.at).saturating_sub(waited)
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        locked(&self.now.looks)
    }

    /// Says what this rank does from now on, for those who ask while it does.
    pub fn enter(&self, step: u64, what: EngineWork) {
        let mut doing = self.doing_now();
        doing.step = step;
        doing.what = what;
        doing.since = Instant::now();
    }

    /// This action, which [`Links::enter`] named, has ended.
    pub fn ended(&self, action: Action) {
        self.doing_now().last = Some(action);
    }

    /// What this rank does now.
    pub fn doing(&self) -> RankActivity {
        self.doing_now().clone()
    }

    fn doing_now(&self) -> MutexGuard<'_, RankActivity> {
        locked(&self.now.doing)
    }

    /// A rank without which this one cannot go on, if there is one now.
    pub fn waits_for(&self) -> Option<u32> {
        self.network.as_ref().and_then(Network::waits_for)
    }

    /// For how long this rank has waited for another while no byte of a tensor has come or gone, as far as the calls of
    /// this tell.
    pub fn still_for(&self) -> Duration {
        let moved = self.network.as_ref().map_or(0, Network::moved_bytes);
        let mut still = locked(&self.now.still);
        if still.0 != moved {
            *still = (moved, Instant::now());
        }
        let waits_since = self.network.as_ref().and_then(Network::waits_since);
        waits_since.map_or(Duration::ZERO, |since| since.elapsed().min(still.1.elapsed()))
    }

    /// How long this rank could not go on without its peers, in microseconds.
    pub fn waited_us(&self) -> u64 {
        self.network.as_ref().map_or(0, Network::waited_us)
    }

    /// The group of `ranks`, of which this rank is one, for reductions of one purpose.
    pub fn group(&self, ranks: &[u32], axis: Axis) -> Result<Group, TorchError> {
        let index = ranks
            .iter()
            .position(|&rank| rank == self.rank)
            .ok_or_else(|| TorchError(format!("rank {} is not in its own group {ranks:?}", self.rank)))?;
        Group::new(self.network.as_ref(), ranks, index, axis.tag())
    }

    /// Starts sending a contiguous tensor.
    pub fn send(&self, x: &Tensor, to: u32, axis: Axis) -> Result<Transfer, TorchError> {
        self.network()?.send(x, to, axis.tag())
    }

    /// Starts receiving into a contiguous tensor.
    pub fn recv(&self, x: &Tensor, from: u32, axis: Axis) -> Result<Transfer, TorchError> {
        self.network()?.recv(x, from, axis.tag())
    }

    /// One small exchange over all ranks: each brings `own`, a list whose length is the same on all, and all
    /// get what `merge` made of the lists.
    ///
    /// Lists meet in a tree of ranks, so `merge` must not depend on how they are grouped, and what it returns
    /// is as long as each of them. Every rank acts on the same bytes, so no two can come to different decisions.
    pub fn close(
        &self,
        own: &[f64],
        merge: impl FnOnce(Vec<Vec<f64>>) -> Vec<f64>,
    ) -> Result<Vec<f64>, TorchError> {
        let buffer = || Tensor::zeros([own.len() as i64], (Kind::Double, Device::Cpu));
        let children = children(self.rank, self.world);
        let parts: Vec<_> = children.clone().map(|rank| (rank, buffer())).collect();
        let receives: Vec<_> =
            parts.iter().map(|(rank, part)| self.recv(part, *rank, Axis::World)).collect::<Result<_, _>>()?;
        receives.into_iter().try_for_each(Transfer::wait)?;
        let mut lists = vec![own.to_vec()];
        for (_, part) in &parts {
            lists.push(Vec::try_from(part)?);
        }
        let merged = merge(lists);
        let result = match parent(self.rank) {
            None => merged,
            Some(parent) => {
                self.send(&Tensor::from_slice(&merged), parent, Axis::World)?.wait()?;
                let result = buffer();
                self.recv(&result, parent, Axis::World)?.wait()?;
                Vec::try_from(&result)?
            }
        };
        let message = Tensor::from_slice(&result);
        // One that is gone keeps none of the others from what was decided.
        let sends: Vec<_> = children.map(|rank| self.send(&message, rank, Axis::World)).collect();
        let ends: Vec<_> = sends.into_iter().map(|send| send.and_then(Transfer::wait)).collect();
        ends.into_iter().collect::<Result<(), _>>()?;
        Ok(result)
    }

    /// Returns once every rank has called it.
    pub fn barrier(&self) -> Result<(), TorchError> {
        self.close_sum(&[0.0]).map(drop)
    }

    /// The sum of the lists of all ranks. Where one rank alone brings something else than zero to a place, the
    /// sum is exact.
    pub fn close_sum(&self, own: &[f64]) -> Result<Vec<f64>, TorchError> {
        self.close(own, |lists| {
            let mut lists = lists.into_iter();
            let mut sums = lists.next().unwrap_or_default();
            lists.for_each(|list| add(&mut sums, &list));
            sums
        })
    }

    /// What every rank brings, by rank, on all of them. For documents that are rare: each rank takes in all of
    /// them, from the lead rank down the tree of the closing exchange, on which they came up.
    ///
    /// # Errors
    /// An exchange failed, or a rank brings more than [`SHARED_MAX_BYTES`].
    pub fn share(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, TorchError> {
        let mut lengths = vec![0.0; self.world as usize];
        lengths[self.rank as usize] = own.len() as f64;
        let lengths = self.close_sum(&lengths)?;
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        if let Some(rank) = lengths.iter().position(|length| *length > SHARED_MAX_BYTES) {
            return Err(TorchError(format!(
                "rank {rank} has {} bytes to share, at most {SHARED_MAX_BYTES} are allowed",
                lengths[rank]
            )));
        }
        let len_of = |ranks: &[u32]| ranks.iter().map(|rank| lengths[*rank as usize]).sum::<usize>();
        let order = below(0, self.world);
        let children: Vec<_> = children(self.rank, self.world).collect();
        let mut texts = own.to_vec();
        let parts: Vec<_> =
            children.iter().map(|child| (*child, len_of(&below(*child, self.world)))).collect();
        for part in self.recv_bytes(&parts)? {
            texts.extend(part);
        }
        if let Some(parent) = parent(self.rank) {
            self.send_bytes(&texts, &[parent])?;
            texts = self.recv_bytes(&[(parent, len_of(&order))])?.concat();
        }
        self.send_bytes(&texts, &children)?;
        let mut by_rank = vec![Vec::new(); self.world as usize];
        let mut rest = texts.as_slice();
        for rank in order {
            let (own, others) = rest.split_at(lengths[rank as usize]);
            by_rank[rank as usize] = own.to_vec();
            rest = others;
        }
        Ok(by_rank)
    }

    /// Receives so many bytes of each of these ranks, of all at once; where there are none, none are sent.
    fn recv_bytes(&self, parts: &[(u32, usize)]) -> Result<Vec<Vec<u8>>, TorchError> {
        let buffers: Vec<_> = parts
            .iter()
            .map(|(rank, len)| (*rank, Tensor::zeros([*len as i64], (Kind::Uint8, Device::Cpu))))
            .collect();
        let full = buffers.iter().filter(|(_, buffer)| buffer.numel() > 0);
        let receives: Vec<_> =
            full.map(|(rank, buffer)| self.recv(buffer, *rank, Axis::World)).collect::<Result<_, _>>()?;
        receives.into_iter().try_for_each(Transfer::wait)?;
        buffers.iter().map(|(_, buffer)| Ok(Vec::try_from(buffer)?)).collect()
    }

    /// Sends bytes to each of these ranks, if there are any.
    fn send_bytes(&self, bytes: &[u8], to: &[u32]) -> Result<(), TorchError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let message = Tensor::from_slice(bytes);
        let sends: Vec<_> =
            to.iter().map(|rank| self.send(&message, *rank, Axis::World)).collect::<Result<_, _>>()?;
        sends.into_iter().try_for_each(Transfer::wait)
    }

    /// Adds lists of which every rank of `ranks` brings one; the first of them gets the sums, the
    /// others their own list back. Where one rank alone brings something else than zero to a place,
    /// the sum is exact.
    pub fn sum_to_first(&self, ranks: &[u32], own: Vec<f64>, axis: Axis) -> Result<Vec<f64>, TorchError> {
        let Some((&first, others)) = ranks.split_first() else { return Ok(own) };
        if first != self.rank {
            self.send(&Tensor::from_slice(&own), first, axis)?.wait()?;
            return Ok(own);
        }
        let buffer = || Tensor::zeros([own.len() as i64], (Kind::Double, Device::Cpu));
        let parts: Vec<_> = others.iter().map(|rank| (*rank, buffer())).collect();
        let receives: Vec<_> =
            parts.iter().map(|(rank, part)| self.recv(part, *rank, axis)).collect::<Result<_, _>>()?;
        receives.into_iter().try_for_each(Transfer::wait)?;
        let mut sums = own;
        for (_, part) in &parts {
            add(&mut sums, &Vec::try_from(part)?);
        }
        Ok(sums)
    }

    fn network(&self) -> Result<&Network, TorchError> {
        self.network
            .as_ref()
            .ok_or_else(|| TorchError("a rank alone has no peer to exchange with".to_owned()))
    }
}
