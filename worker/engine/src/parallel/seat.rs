//! The stages of a rank, and the ranks beside each.

use std::rc::Rc;

use coxswain_types::assignment::{self, Assignment};

use crate::EngineError;
use crate::model::{Context, Parameters, Shape, StageModule};

/// A stage and the ranks beside it.
#[derive(Debug)]
pub struct Seat {
    /// Which of all stages.
    pub index: u32,
    /// Its weights.
    pub stage: StageModule,
    /// The rank of the previous stage.
    pub previous: Option<u32>,
    /// The rank of the next stage.
    pub next: Option<u32>,
}

/// The stages of a rank; fails when a row of the assignment is missing or left over.
pub fn seats(
    a: &Assignment,
    parameters: &Parameters,
    context: &Rc<Context>,
) -> Result<Vec<Seat>, EngineError> {
    let seat = |stage: &assignment::Stage| -> Result<Seat, EngineError> {
        let shape = Shape {
            embedding: stage.embedding,
            layers: stage.layers.clone(),
            head: stage.head,
            recompute: stage.recompute.clone(),
        };
        Ok(Seat {
            index: stage.index,
            stage: StageModule::build(shape, parameters, context)?,
            previous: stage.previous,
            next: stage.next,
        })
    };
    let seats = a.stages.iter().map(seat).collect::<Result<_, _>>()?;
    parameters.expect_all_taken()?;
    Ok(seats)
}
