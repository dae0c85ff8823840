//! Slices with several uses: tied embeddings, layers of a group, key/value heads that several tensor
//! shards read, norms over a split sequence. Each use has its own gradient tree over micro-batches;
//! here the sums are added in the order of uses, on the first rank that holds the slice, which sends
//! the total to the others. Where one rank has all uses, nothing travels.

use std::collections::BTreeMap;

use coxswain_comm::{Axis, Links};
use tch::{Kind, Tensor};

use crate::EngineError;
use crate::error::Doing;
use crate::model::{Param, Parameters, buffer};

/// A use on this rank: bucket and place in it.
type At = (usize, usize);

/// A slice with several uses.
#[derive(Debug)]
struct SharedSlice {
    /// The uses on this rank, by their place in the order of addition.
    here: BTreeMap<usize, At>,
    /// The use that has the weights on this rank, and takes the total.
    home: At,
    /// The rank that brings each use.
    uses: Vec<u32>,
    /// The ranks that hold the slice; the first adds.
    holders: Vec<u32>,
}

/// The slices of a rank that have several uses, in an order that all ranks agree on.
#[derive(Debug)]
pub(super) struct Shared {
    rank: u32,
    slices: Vec<SharedSlice>,
}

impl Shared {
    pub(super) fn new(rank: u32, parameters: &Parameters) -> Shared {
        let mut slices: BTreeMap<(&str, u64), SharedSlice> = BTreeMap::new();
        for (at, bucket) in parameters.buckets().iter().enumerate() {
            for (place, param) in bucket.params.iter().enumerate().filter(|(_, p)| p.row.uses.len() > 1) {
                let slice = slices.entry(param.slice()).or_insert_with(|| SharedSlice {
                    here: BTreeMap::new(),
                    home: (at, place),
                    uses: param.row.uses.clone(),
                    holders: param.row.holders.clone(),
                });
                slice.here.insert(param.row.use_index as usize, (at, place));
                if param.home {
                    slice.home = (at, place);
                }
            }
        }
        Shared { rank, slices: slices.into_values().collect() }
    }

    /// Adds the uses of every slice; the total is then in the gradient of its home.
    pub(super) fn add(
        &self,
        parameters: &Parameters,
        totals: &[&Tensor],
        links: &Links,
    ) -> Result<(), EngineError> {
        let view = |(at, place): At| {
            let param: &Param = &parameters.buckets()[at].params[place];
            param.view_of(totals[at])
        };
        let doing = || "adding the gradients of a shared parameter".to_owned();
        for slice in &self.slices {
            let Some((&adder, others)) = slice.holders.split_first() else { continue };
            let home = view(slice.home)?;
            if adder != self.rank {
                let sends = slice.here.iter().filter(|(place, _)| slice.uses[**place] == self.rank);
                let sends: Vec<_> = sends
                    .map(|(_, at)| Ok(links.send(&view(*at)?.f_contiguous()?, adder, Axis::Shared)?))
                    .collect::<Result<_, EngineError>>()?;
                for send in sends {
                    send.wait().doing(doing)?;
                }
                links.recv(&home, adder, Axis::Shared)?.wait().doing(doing)?;
                continue;
            }
            let mut parts = Vec::new();
            for (place, &from) in slice.uses.iter().enumerate() {
                parts.push(match slice.here.get(&place) {
                    Some(at) if from == self.rank => (None, view(*at)?),
                    _ => {
                        let part = buffer(&home.size(), Kind::Float, home.device())?;
                        (Some(links.recv(&part, from, Axis::Shared)?), part)
                    }
                });
            }
            // The sum is made in the buffer of the first use, whose own gradient is not read again.
            let mut sum: Option<Tensor> = None;
            for (receive, part) in parts {
                receive.map_or(Ok(()), |receive| receive.wait().doing(doing))?;
                match &mut sum {
                    None => sum = Some(part),
                    Some(sum) => drop(sum.f_add_(&part)?),
                }
            }
            if let Some(sum) = sum.filter(|sum| sum.data_ptr() != home.data_ptr()) {
                home.shallow_clone().f_copy_(&sum)?;
            }
            let sends: Vec<_> =
                others.iter().map(|&rank| links.send(&home, rank, Axis::Shared)).collect::<Result<_, _>>()?;
            for send in sends {
                send.wait().doing(doing)?;
            }
        }
        Ok(())
    }
}
