//! What a rank does at a moment, as it tells the coordinator.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Rank, Step};
use crate::schedule::Action;

/// What a rank is doing. From those of all ranks it shows who holds up a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// The step that it takes.
    pub step: Step,
    /// What it does.
    pub doing: EngineWork,
    /// For how long it has done so, in milliseconds.
    pub for_ms: u64,
    /// The rank that it cannot go on without, where it waits for one.
    pub waits_for: Option<Rank>,
    /// The action that it ended last.
    pub last: Option<Action>,
    /// For how long it has waited for that rank while no byte of a tensor has come or gone, in milliseconds.
    pub still_ms: u64,
}

/// What an engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineWork {
    /// An action of its schedule.
    Action(Action),
    /// What comes before, between and behind the schedules of steps.
    Phase(EnginePhase),
}

/// A stretch of an engine's work outside the schedule of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnginePhase {
    /// It meets the other ranks of its generation.
    Joining,
    /// It checks the files of its run.
    CheckingFiles,
    /// It finds its values: in memory, in a checkpoint, or the initial ones.
    GettingValues,
    /// It checks its part of the checkpoint to resume from.
    CheckingCheckpoint,
    /// It has checked that, and waits for the other ranks.
    AwaitingChecks,
    /// It reads that checkpoint.
    ReadingCheckpoint,
    /// It adds gradients over ranks.
    AddingGradients,
    /// It closes the step with all ranks.
    ClosingStep,
    /// It updates weights.
    UpdatingWeights,
    /// It evaluates the model on validation text.
    Evaluating,
    /// It writes its part of a checkpoint.
    WritingCheckpoint,
}

impl fmt::Display for EnginePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EnginePhase::Joining => "joining",
            EnginePhase::CheckingFiles => "checking the files of its run",
            EnginePhase::GettingValues => "getting its values",
            EnginePhase::CheckingCheckpoint => "checking the files of the checkpoint",
            EnginePhase::AwaitingChecks => {
                "waiting until all ranks have checked their part of the checkpoint"
            }
            EnginePhase::ReadingCheckpoint => "reading the checkpoint",
            EnginePhase::AddingGradients => "adding gradients over ranks",
            EnginePhase::ClosingStep => "closing the step with all ranks",
            EnginePhase::UpdatingWeights => "updating weights",
            EnginePhase::Evaluating => "computing the validation loss",
            EnginePhase::WritingCheckpoint => "writing its part of a checkpoint",
        })
    }
}

impl fmt::Display for EngineWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineWork::Action(action) => action.fmt(f),
            EngineWork::Phase(phase) => phase.fmt(f),
        }
    }
}
