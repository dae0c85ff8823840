//! The rank's parameters, made from the rows of its assignment and from nothing else.
//!
//! The weights of a place lie in flat buffers, *buckets*, each row starting at a multiple of
//! [`buckets::ROW_ALIGN`] elements; gradients and optimizer state have the same shape. What is reduced,
//! normed, updated or saved is a view. A place has one bucket for each [`buckets::Class`] of its rows.
//!
//! A row is one *use* of a slice. The first use on a rank is its *home*, which has the weights; the
//! others have gradients only.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use coxswain_native::ops::Slot;
use coxswain_types::buckets::{self, BucketLayout};
use coxswain_types::job::{OptimizerKind, Precision};
use coxswain_types::params::{ParameterRow, Place};
use tch::{Device, Kind, Tensor};

use crate::EngineError;

/// One use of a parameter, or of this rank's slice of it.
#[derive(Debug)]
pub struct Param {
    /// What the assignment says of it.
    pub row: ParameterRow,
    /// The fp32 weights, a view of their home's bucket, in the slice's shape.
    pub weight: Tensor,
    /// The weights as products take them: in the job's precision.
    pub compute: Tensor,
    /// Where the gradient of this use goes.
    pub slot: Slot,
    /// Whether the weights lie in this bucket.
    pub home: bool,
    offset: i64,
}

impl Param {
    /// The part of a buffer shaped like the bucket that belongs to this parameter, in its shape.
    pub fn view_of(&self, flat: &Tensor) -> Result<Tensor, EngineError> {
        let elements = self.row.elements() as i64;
        Ok(flat.f_narrow(0, self.offset, elements)?.f_view(self.row.local_shape().as_slice())?)
    }

    /// Where the row lies in its bucket, up to the next aligned element.
    pub fn range(&self) -> Range<i64> {
        self.offset..self.offset + buckets::aligned(&self.row)
    }

    /// What the slice is known by on all ranks.
    pub fn slice(&self) -> (&str, u64) {
        (&self.row.name, self.row.offset)
    }
}

/// Uses of one class of one place, with their weights.
#[derive(Debug)]
pub struct Bucket {
    /// Where they lie.
    pub layout: BucketLayout,
    /// The uses, in the order of the layout.
    pub params: Vec<Rc<Param>>,
    /// The fp32 weights, flat; what lies between rows is zero.
    pub weights: Tensor,
    /// The same in the job's precision; the very same tensor in fp32.
    compute: Tensor,
}

impl Bucket {
    /// A buffer for the gradients of all uses, zero.
    pub fn buffer(&self) -> Tensor {
        Tensor::zeros([self.layout.elements()], (Kind::Float, self.weights.device()))
    }

    /// The uses whose weights lie here.
    pub fn homes(&self) -> impl Iterator<Item = &Rc<Param>> {
        self.params.iter().filter(|param| param.home)
    }

    /// Brings the low-precision weights up to date.
    pub fn refresh(&self) -> Result<(), EngineError> {
        if self.compute.data_ptr() != self.weights.data_ptr() {
            self.compute.shallow_clone().f_copy_(&self.weights)?;
        }
        Ok(())
    }
}

/// All parameters of a rank.
#[derive(Debug)]
pub struct Parameters {
    buckets: Vec<Bucket>,
    taken: RefCell<BTreeSet<(Place, String, u32)>>,
}

impl Parameters {
    /// Allocates the rows, zero, in buckets: places in the order of the rows.
    pub fn allocate(
        rows: &[ParameterRow],
        precision: Precision,
        optimizer: OptimizerKind,
        device: Device,
    ) -> Result<Parameters, EngineError> {
        let weights = |layout: BucketLayout| Ok((zeros(&layout, device)?, layout));
        let layouts = BucketLayout::of(rows, optimizer).into_iter().map(weights);
        Parameters::of(layouts.collect::<Result<_, EngineError>>()?, precision)
    }

    /// Of these weights, in layouts from [`BucketLayout::of`].
    pub fn of(layouts: Vec<(Tensor, BucketLayout)>, precision: Precision) -> Result<Parameters, EngineError> {
        let mut homes = BTreeMap::new();
        let bucket = |(weights, layout)| bucket(layout, weights, precision, &mut homes);
        let buckets = layouts.into_iter().map(bucket).collect::<Result<_, _>>()?;
        Ok(Parameters { buckets, taken: RefCell::default() })
    }

    /// The use of the parameter `name` at `place` by logical shard `shard`, for the one part of the
    /// model that it is for.
    pub fn take(&self, place: Place, name: &str, shard: u32) -> Result<Rc<Param>, EngineError> {
        let wanted = |param: &&Rc<Param>| {
            let row = &param.row;
            (row.place, row.name.as_str(), row.shard) == (place, name, shard)
        };
        let param = self.iter().find(wanted).ok_or_else(|| {
            EngineError::Table(format!("there is no row for {name} at {place:?}, shard {shard}"))
        })?;
        if !self.taken.borrow_mut().insert((place, name.to_owned(), shard)) {
            return Err(EngineError::Table(format!("{name} at {place:?}, shard {shard} is used twice")));
        }
        Ok(Rc::clone(param))
    }

    /// Fails when a row was not used: the plan and the model would disagree about what is trained.
    pub fn expect_all_taken(&self) -> Result<(), EngineError> {
        let taken = self.taken.borrow();
        let key = |param: &Rc<Param>| (param.row.place, param.row.name.clone(), param.row.shard);
        match self.iter().find(|param| !taken.contains(&key(param))) {
            Some(param) => Err(EngineError::Table(format!(
                "the row {} at {:?}, shard {} is not used",
                param.row.name, param.row.place, param.row.shard
            ))),
            None => Ok(()),
        }
    }

    /// The buckets, place by place.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The buckets of a place.
    pub fn buckets_of(&self, place: Place) -> Range<usize> {
        let start = self.buckets.iter().position(|bucket| bucket.layout.place == place).unwrap_or(0);
        let count = self.buckets.iter().filter(|bucket| bucket.layout.place == place).count();
        start..start + count
    }

    /// All uses, bucket by bucket.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<Param>> {
        self.buckets.iter().flat_map(|bucket| &bucket.params)
    }

    /// Brings all low-precision weights up to date.
    pub fn refresh(&self) -> Result<(), EngineError> {
        self.buckets.iter().try_for_each(Bucket::refresh)
    }
}

/// Room for the weights of a bucket.
pub(crate) fn zeros(layout: &BucketLayout, device: Device) -> Result<Tensor, EngineError> {
    Ok(Tensor::f_zeros([layout.weight_elements()], (Kind::Float, device))?)
}

/// The weights of slices that have a home, and what products take of them.
type Homes = BTreeMap<(String, u64), (Tensor, Tensor)>;

fn bucket(
    layout: BucketLayout,
    weights: Tensor,
    precision: Precision,
    homes: &mut Homes,
) -> Result<Bucket, EngineError> {
    let compute = match precision {
        Precision::Fp32 => weights.shallow_clone(),
        low => Tensor::f_zeros([layout.weight_elements()], (kind(low), weights.device()))?,
    };
    let mut params = Vec::new();
    for (at, (row, offset)) in layout.rows().enumerate() {
        let (home, slice) = (at < layout.homes().count(), (row.name.clone(), row.offset));
        if home {
            let view = |flat: &Tensor| -> Result<Tensor, EngineError> {
                let rows = flat.f_narrow(0, offset, row.elements() as i64)?;
                Ok(rows.f_view(row.local_shape().as_slice())?)
            };
            // A norm's weights stay in fp32: its kernel takes them so.
            let used = if row.shape.len() > 1 { view(&compute)? } else { view(&weights)? };
            homes.insert(slice.clone(), (view(&weights)?, used));
        }
        let (weight, compute) = homes
            .get(&slice)
            .ok_or_else(|| EngineError::Table(format!("{} at {} has no weights", row.name, row.offset)))?;
        params.push(Rc::new(Param {
            row: row.clone(),
            weight: weight.shallow_clone(),
            compute: compute.shallow_clone(),
            slot: Slot::new(),
            home,
            offset,
        }));
    }
    Ok(Bucket { layout, params, weights, compute })
}

/// libtorch's name of a precision.
pub(crate) fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::ModelSpec;
    use coxswain_types::params::{Parameter, parameter_table, slice_of};

    use super::*;

    /// The rows of a layer on a rank that holds these of `shards` logical shards.
    fn rows(held: Range<u32>, shards: u32) -> Vec<ParameterRow> {
        let table = parameter_table(&ModelSpec::llama(1, 64, 8, 2, 96, 300));
        let of_layer = table.iter().filter(|parameter| parameter.places[0] == Place::Layer(0));
        let row = |parameter: &Parameter, shard| {
            let mut row = parameter.row(&slice_of(parameter, shard, shards), shard);
            // Key/value heads are fewer than shards.
            row.uses = if parameter.slices(shards) < shards { vec![0; 2] } else { Vec::new() };
            row
        };
        of_layer.flat_map(|parameter| held.clone().map(move |shard| row(parameter, shard))).collect()
    }

    #[test]
    fn data_ranks_own_whole_matrices_where_muon_updates_them() {
        for (held, shards) in [(0..1, 1), (0..4, 4), (2..4, 4), (0..8, 8), (4..8, 8)] {
            for layout in BucketLayout::of(&rows(held.clone(), shards), OptimizerKind::Muon) {
                for parts in 1..=5 {
                    let slices = layout.slices(parts);
                    assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start), "{slices:?}");
                    assert_eq!((slices[0].start, slices[parts - 1].end), (0, layout.elements()));
                    let owner = |range: Range<i64>| {
                        slices.iter().position(|s| s.start <= range.start && range.end <= s.end)
                    };
                    let owners: Vec<_> =
                        layout.homes().map(|(row, range)| (&row.name, owner(range))).collect();
                    for pair in owners.windows(2).filter(|pair| layout.class.muon && pair[0].0 == pair[1].0) {
                        let case = format!("shards {held:?} of {shards}, {parts} parts: {}", pair[0].0);
                        assert!(pair[0].1.is_some() && pair[0].1 == pair[1].1, "{case}: {slices:?}");
                    }
                }
            }
        }
    }
}
