//! The gradient tree, over the micro-batches of this rank and over data ranks.
//!
//! Within a gradient group a bucket accumulates into one buffer; finished groups combine into
//! tree nodes as soon as both halves are there, so at most log2(R) + 1 buffers live. When a
//! bucket's last micro-batch is done, its nodes set out to the owners of their slices, while
//! earlier layers still compute; owners combine in the tree's order. The sums go back to all, unless
//! each data rank updates its own slice only (ZeRO-1): then only the gradients of slices with several
//! uses go back, because `shared` adds those of all uses first.

use std::ops::Range;
use std::rc::Rc;

use coxswain_comm::{Axis, Links, Transfer};
use coxswain_types::assignment::Assignment;
use coxswain_types::params::Place;
use coxswain_types::tree::{self, TreeNode};
use tch::{Kind, Tensor};

use super::shared::Shared;
use crate::EngineError;
use crate::error::Doing;
use crate::model::{Bucket, Param, Parameters, buffer};

/// Gradients of all buckets, and the order in which they are added.
#[derive(Debug)]
pub struct GradientSum {
    links: Links,
    runs: Vec<Range<u32>>,
    owned: Range<u32>,
    nodes: Vec<Vec<TreeNode>>,
    peers: Vec<u32>,
    index: usize,
    buckets: Vec<Gradients>,
    shared: Shared,
    sharded: bool,
}

/// Gradients of one bucket.
#[derive(Debug, Default)]
struct Gradients {
    /// What each data rank combines.
    slices: Vec<Range<i64>>,
    current: Option<Tensor>,
    nodes: Vec<(TreeNode, Tensor)>,
    spare: Vec<Tensor>,
    parts: Vec<(TreeNode, Tensor)>,
    receives: Vec<Transfer>,
    sends: Vec<Transfer>,
}

impl GradientSum {
    /// No gradients yet.
    pub fn new(
        assignment: &Assignment,
        parameters: &Parameters,
        links: &Links,
    ) -> Result<GradientSum, EngineError> {
        let peers = assignment.data_group.clone();
        let gradients =
            |bucket: &Bucket| Gradients { slices: bucket.layout.slices(peers.len()), ..Gradients::default() };
        Ok(GradientSum {
            links: links.clone(),
            runs: assignment.runs.clone(),
            owned: assignment.owned_runs.clone(),
            nodes: assignment.data_nodes.clone(),
            index: assignment.data_index as usize,
            buckets: parameters.buckets().iter().map(gradients).collect(),
            shared: Shared::new(assignment.rank.0, parameters),
            sharded: assignment.optimizer_group.len() > 1,
            peers,
        })
    }

    /// Directs the slots of a place to where the micro-batch accumulates.
    pub fn begin(
        &mut self,
        parameters: &Parameters,
        place: Place,
        micro_batch: u32,
    ) -> Result<(), EngineError> {
        for at in parameters.buckets_of(place) {
            let gradients = &mut self.buckets[at];
            if gradients.current.is_none() {
                let bucket = &parameters.buckets()[at];
                let buffer = gradients.spare.pop().unwrap_or_else(|| bucket.buffer());
                for param in &bucket.params {
                    param.slot.set(&param.view_of(&buffer)?);
                }
                gradients.current = Some(buffer);
                if self.group_of(micro_batch)?.1.start != micro_batch {
                    let why = format!("micro-batch {micro_batch} is not the first of its gradient group");
                    return Err(EngineError::Other(why));
                }
            }
        }
        Ok(())
    }

    /// The micro-batch's gradients of a place are in. After the last one they set out.
    ///
    /// # Errors
    /// A gradient group ends in which a parameter got no gradient.
    pub fn end(
        &mut self,
        parameters: &Parameters,
        place: Place,
        micro_batch: u32,
    ) -> Result<(), EngineError> {
        let (run, range) = self.group_of(micro_batch)?;
        if range.end != micro_batch + 1 {
            return Ok(());
        }
        let root = TreeNode::root(self.runs.len() as u32);
        for at in parameters.buckets_of(place) {
            // The buffer may be an earlier step's, with its numbers.
            let written = |param: &&Rc<Param>| !param.slot.is_fresh();
            let params = &parameters.buckets()[at].params;
            if let Some(param) = params.iter().find(|param| !written(param)) {
                let (name, shard) = (param.row.name.clone(), param.row.shard);
                return Err(EngineError::Unwritten { name, place, shard, run: range });
            }
            let gradients = &mut self.buckets[at];
            let buffer = gradients.current.take().ok_or_else(|| {
                EngineError::Other(format!("micro-batch {micro_batch} ends before it began"))
            })?;
            gradients.push(root, TreeNode::leaf(run), buffer)?;
            if run + 1 == self.owned.end {
                self.send_parts(at)?;
            }
        }
        Ok(())
    }

    /// What a bucket has accumulated of the gradient group at hand.
    pub fn current(&self, at: usize) -> Option<&Tensor> {
        self.buckets[at].current.as_ref()
    }

    /// The slice of a bucket whose sums this rank has after [`GradientSum::finish`], and which it
    /// updates: all of it, or under ZeRO-1 its own.
    pub fn own(&self, at: usize) -> Range<i64> {
        let slices = &self.buckets[at].slices;
        match (self.sharded, slices.last()) {
            (true, _) => slices[self.index].clone(),
            (false, last) => 0..last.map_or(0, |last| last.end),
        }
    }

    /// The slices of a bucket that each rank of the data group updates.
    pub fn slices(&self, at: usize) -> &[Range<i64>] {
        &self.buckets[at].slices
    }

    fn group_of(&self, micro_batch: u32) -> Result<(u32, Range<u32>), EngineError> {
        self.owned
            .clone()
            .map(|run| (run, self.runs[run as usize].clone()))
            .find(|(_, range)| range.contains(&micro_batch))
            .ok_or_else(|| EngineError::Other(format!("micro-batch {micro_batch} is not this rank's")))
    }

    fn others(&self) -> impl Iterator<Item = (usize, u32)> + use<> {
        let index = self.index;
        self.peers.clone().into_iter().enumerate().filter(move |(peer, _)| *peer != index)
    }

    fn send_parts(&mut self, at: usize) -> Result<(), EngineError> {
        let device = self.buckets[at].total()?.device();
        let axis = Axis::Data { bucket: at as u32, gather: false };
        let own = &self.buckets[at].slices[self.index];
        let own_len = own.end - own.start;
        for (peer, rank) in self.others() {
            for &node in self.nodes[peer].iter().filter(|_| own_len > 0) {
                let part = buffer(&[own_len], Kind::Float, device)?;
                let receive = self.links.recv(&part, rank, axis)?;
                self.buckets[at].receives.push(receive);
                self.buckets[at].parts.push((node, part));
            }
        }
        for (peer, rank) in self.others() {
            let Range { start, end } = self.buckets[at].slices[peer].clone();
            let len = end - start;
            for place in 0..self.buckets[at].nodes.len() {
                if len > 0 {
                    let part = self.buckets[at].nodes[place].1.f_narrow(0, start, len)?;
                    let send = self.links.send(&part, rank, axis)?;
                    self.buckets[at].sends.push(send);
                }
            }
        }
        Ok(())
    }

    /// Waits for the sums over all data ranks and adds those of shared slices; then
    /// [`GradientSum::total`] has them, in the slice that is this rank's [`GradientSum::own`].
    pub fn finish(&mut self, parameters: &Parameters) -> Result<(), EngineError> {
        for (at, bucket) in parameters.buckets().iter().enumerate() {
            self.combine(at)?;
            if bucket.layout.class.shared || !self.sharded {
                self.send_sums(at)?;
            }
        }
        for gradients in &mut self.buckets {
            let transfers = gradients.receives.drain(..).chain(gradients.sends.drain(..));
            for transfer in transfers {
                transfer.wait().doing(|| "gathering gradients over data ranks".to_owned())?;
            }
        }
        let totals: Vec<_> = self.buckets.iter().map(Gradients::total).collect::<Result<_, _>>()?;
        self.shared.add(parameters, &totals, &self.links)
    }

    /// Combines this rank's slice of a bucket in the order of the tree.
    fn combine(&mut self, at: usize) -> Result<(), EngineError> {
        let Range { start, end } = self.buckets[at].slices[self.index].clone();
        let len = end - start;
        let root = TreeNode::root(self.runs.len() as u32);
        let gradients = &mut self.buckets[at];
        for transfer in gradients.receives.drain(..) {
            transfer.wait().doing(|| "receiving parts of gradients from data ranks".to_owned())?;
        }
        let sum = gradients.sum(root, start, len)?;
        // The parts have left before their buffer takes the sums.
        for transfer in gradients.sends.drain(..) {
            transfer.wait().doing(|| "sending parts of gradients to data ranks".to_owned())?;
        }
        gradients.parts.clear();
        while gradients.nodes.len() > 1 {
            gradients.spare.extend(gradients.nodes.pop().map(|(_, buffer)| buffer));
        }
        let mut own = gradients.total()?.f_narrow(0, start, len)?;
        if own.data_ptr() != sum.data_ptr() {
            own.f_copy_(&sum)?;
        }
        Ok(())
    }

    fn send_sums(&mut self, at: usize) -> Result<(), EngineError> {
        let axis = Axis::Data { bucket: at as u32, gather: true };
        let Range { start, end } = self.buckets[at].slices[self.index].clone();
        let len = end - start;
        for (peer, rank) in self.others() {
            let total = self.buckets[at].total()?.shallow_clone();
            let theirs = self.buckets[at].slices[peer].clone();
            if !theirs.is_empty() {
                let into = total.f_narrow(0, theirs.start, theirs.end - theirs.start)?;
                let receive = self.links.recv(&into, rank, axis)?;
                self.buckets[at].receives.push(receive);
            }
            if len > 0 {
                let send = self.links.send(&total.f_narrow(0, start, len)?, rank, axis)?;
                self.buckets[at].sends.push(send);
            }
        }
        Ok(())
    }

    /// The sum over the whole step of a bucket's gradients, after [`GradientSum::finish`].
    pub fn total(&self, at: usize) -> Result<&Tensor, EngineError> {
        self.buckets[at].total()
    }

    /// The sums of all buckets. They are those of this step until [`GradientSum::clear`].
    pub fn totals(&self) -> Result<Vec<Tensor>, EngineError> {
        self.buckets.iter().map(|gradients| Ok(gradients.total()?.shallow_clone())).collect()
    }

    /// Gives the buffers back for the next step.
    pub fn clear(&mut self) {
        for gradients in &mut self.buckets {
            gradients.spare.extend(gradients.nodes.drain(..).map(|(_, buffer)| buffer));
        }
    }
}

impl Gradients {
    /// The sum of a slice over the whole step, in the order of the tree, from this rank's nodes and
    /// the parts of the others.
    fn sum(&self, root: TreeNode, start: i64, len: i64) -> Result<Tensor, EngineError> {
        if len == 0 {
            // The bucket has fewer blocks than there are data ranks; no rank sends an empty part.
            return Ok(self.total()?.f_narrow(0, 0, 0)?);
        }
        let mut failed = None;
        let sum = tree::reduce(
            root,
            &mut |node| {
                let own = self.nodes.iter().find(|(own, _)| *own == node);
                let part = || self.parts.iter().find(|(part, _)| *part == node);
                own.map(|(_, buffer)| buffer.narrow(0, start, len))
                    .or_else(|| part().map(|(_, part)| part.shallow_clone()))
            },
            &mut |left: Tensor, right| {
                left.f_add(&right).unwrap_or_else(|error| {
                    failed = Some(error);
                    left
                })
            },
        )
        .map_err(|missing| {
            EngineError::Other(format!("no gradient covers gradient group {}", missing.first))
        })?;
        failed.map_or(Ok(sum), |error| Err(error.into()))
    }

    /// Adds a finished node and combines siblings.
    fn push(&mut self, root: TreeNode, node: TreeNode, buffer: Tensor) -> Result<(), EngineError> {
        let (mut node, mut buffer) = (node, buffer);
        while let Some((left, _)) = self.nodes.last() {
            let Some(parent) = root.parent_of(node).filter(|p| p.children() == Some((*left, node))) else {
                break;
            };
            let Some((_, mut sum)) = self.nodes.pop() else { break };
            drop(sum.f_add_(&buffer)?);
            self.spare.push(buffer);
            (node, buffer) = (parent, sum);
        }
        self.nodes.push((node, buffer));
        Ok(())
    }

    fn total(&self) -> Result<&Tensor, EngineError> {
        let first = self.nodes.first().map(|(_, buffer)| buffer);
        first.ok_or_else(|| EngineError::Other("a bucket has no gradients".to_owned()))
    }
}
