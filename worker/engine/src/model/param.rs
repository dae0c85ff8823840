//! The rank's parameters, made from the rows of its assignment and from nothing else.
//!
//! The weights of a place lie in one flat buffer, a *bucket*, each row starting at a multiple of
//! [`ROW_ALIGN`] elements; gradients and optimizer state have the same shape. What is reduced,
//! normed, updated or saved is a view.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use coxswain_native::ops::Slot;
use coxswain_types::params::{ParameterRow, Place};
use tch::{Device, Kind, Tensor};

use crate::EngineError;

/// Elements. Borders of slices are multiples of this from a row's start: the optimizer's vector
/// loop gives other bits at odd cuts, and matrix products want aligned rows.
pub(crate) const ROW_ALIGN: i64 = 64;

/// One parameter, or this rank's slice of it.
#[derive(Debug)]
pub struct Param {
    /// What the assignment says of it.
    pub row: ParameterRow,
    /// The weights, a view of the bucket's buffer, in the slice's shape.
    pub weight: Tensor,
    /// Where its gradient goes.
    pub slot: Slot,
    offset: i64,
}

impl Param {
    /// The part of a buffer shaped like the bucket that belongs to this parameter, in its shape.
    pub fn view_of(&self, flat: &Tensor) -> Result<Tensor, EngineError> {
        let elements = self.row.elements() as i64;
        Ok(flat.f_narrow(0, self.offset, elements)?.f_view(self.row.local_shape().as_slice())?)
    }
}

/// The parameters of one place, in table order.
#[derive(Debug)]
pub struct Bucket {
    /// The place.
    pub place: Place,
    /// Its parameters.
    pub params: Vec<Rc<Param>>,
    /// All weights, flat; what lies between rows is zero.
    pub weights: Tensor,
}

impl Bucket {
    /// Number of elements of a buffer of this shape.
    pub fn elements(&self) -> i64 {
        self.weights.size().first().copied().unwrap_or(0)
    }

    /// A buffer of this shape, zero.
    pub fn buffer(&self) -> Tensor {
        Tensor::zeros([self.elements()], (Kind::Float, Device::Cpu))
    }
}

/// All parameters of a rank.
#[derive(Debug)]
pub struct Parameters {
    buckets: Vec<Bucket>,
    taken: RefCell<BTreeSet<String>>,
}

impl Parameters {
    /// Allocates the rows, zero, one bucket for each place in the order of the rows.
    pub fn allocate(rows: &[ParameterRow]) -> Result<Parameters, EngineError> {
        let mut buckets = Vec::new();
        for rows in rows.chunk_by(|a, b| a.place == b.place) {
            let aligned =
                |row: &ParameterRow| (row.elements() as i64 + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
            let elements: i64 = rows.iter().map(aligned).sum();
            let weights = Tensor::f_zeros([elements], (Kind::Float, Device::Cpu))?;
            let mut offset = 0;
            let mut params = Vec::new();
            for row in rows {
                let weight = weights
                    .f_narrow(0, offset, row.elements() as i64)?
                    .f_view(row.local_shape().as_slice())?;
                params.push(Rc::new(Param { row: row.clone(), weight, slot: Slot::new(), offset }));
                offset += aligned(row);
            }
            buckets.push(Bucket { place: rows[0].place, params, weights });
        }
        Ok(Parameters { buckets, taken: RefCell::default() })
    }

    /// The parameter of this name, for the one layer that uses it.
    pub fn take(&self, name: &str) -> Result<Rc<Param>, EngineError> {
        let param = self
            .iter()
            .find(|param| param.row.name == name)
            .ok_or_else(|| EngineError::Table(format!("there is no row for {name}")))?;
        if !self.taken.borrow_mut().insert(name.to_owned()) {
            return Err(EngineError::Table(format!("{name} is used twice")));
        }
        Ok(Rc::clone(param))
    }

    /// Fails when a row was not used: the plan and the model would disagree about what is trained.
    pub fn expect_all_taken(&self) -> Result<(), EngineError> {
        let taken = self.taken.borrow();
        match self.iter().find(|param| !taken.contains(&param.row.name)) {
            Some(param) => Err(EngineError::Table(format!("the row {} is not used", param.row.name))),
            None => Ok(()),
        }
    }

    /// The buckets, in table order.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The bucket of a place.
    pub fn bucket_of(&self, place: Place) -> Result<usize, EngineError> {
        self.buckets
            .iter()
            .position(|bucket| bucket.place == place)
            .ok_or_else(|| EngineError::Table(format!("there are no rows for {place:?}")))
    }

    /// All parameters, in table order.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<Param>> {
        self.buckets.iter().flat_map(|bucket| &bucket.params)
    }
}
