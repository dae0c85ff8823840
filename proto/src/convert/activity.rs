//! What a rank does, on the wire and back.

use coxswain_types::activity::{Activity, EnginePhase, EngineWork};
use coxswain_types::ids::{MicroBatch, Rank, Step};
use coxswain_types::schedule::{Action, Kind};

use super::WireError;
use crate::wire;
use crate::wire::activity::Doing as WireDoing;

impl From<Activity> for wire::Activity {
    fn from(activity: Activity) -> Self {
        wire::Activity {
            step: activity.step.0,
            doing: Some(match activity.doing {
                EngineWork::Action(action) => WireDoing::Action(action.into()),
                EngineWork::Phase(phase) => WireDoing::Phase(phase_to_wire(phase).into()),
            }),
            for_ms: activity.for_ms,
            waits_for: activity.waits_for.map(|rank| rank.0),
            last: activity.last.map(Into::into),
            still_ms: activity.still_ms,
        }
    }
}

impl TryFrom<wire::Activity> for Activity {
    type Error = WireError;

    fn try_from(activity: wire::Activity) -> Result<Self, WireError> {
        let doing = match activity.doing.ok_or(WireError::Missing("Activity.doing"))? {
            WireDoing::Action(action) => EngineWork::Action(action.try_into()?),
            WireDoing::Phase(phase) => EngineWork::Phase(phase_from_wire(phase)?),
        };
        Ok(Activity {
            step: Step(activity.step),
            doing,
            for_ms: activity.for_ms,
            waits_for: activity.waits_for.map(Rank),
            last: activity.last.map(Action::try_from).transpose()?,
            still_ms: activity.still_ms,
        })
    }
}

impl From<Action> for wire::Action {
    fn from(action: Action) -> Self {
        let kind = match action.kind {
            Kind::Forward => wire::ActionKind::Forward,
            Kind::Backward => wire::ActionKind::Backward,
            Kind::Input => wire::ActionKind::Input,
            Kind::Weight => wire::ActionKind::Weight,
            Kind::RecvForward => wire::ActionKind::RecvForward,
            Kind::SendForward => wire::ActionKind::SendForward,
            Kind::RecvBackward => wire::ActionKind::RecvBackward,
            Kind::SendBackward => wire::ActionKind::SendBackward,
        };
        wire::Action { stage: action.stage, kind: kind.into(), micro_batch: action.micro_batch.0 }
    }
}

impl TryFrom<wire::Action> for Action {
    type Error = WireError;

    fn try_from(action: wire::Action) -> Result<Self, WireError> {
        let field = "Action.kind";
        let kind = match wire::ActionKind::try_from(action.kind) {
            Ok(wire::ActionKind::Forward) => Kind::Forward,
            Ok(wire::ActionKind::Backward) => Kind::Backward,
            Ok(wire::ActionKind::Input) => Kind::Input,
            Ok(wire::ActionKind::Weight) => Kind::Weight,
            Ok(wire::ActionKind::RecvForward) => Kind::RecvForward,
            Ok(wire::ActionKind::SendForward) => Kind::SendForward,
            Ok(wire::ActionKind::RecvBackward) => Kind::RecvBackward,
            Ok(wire::ActionKind::SendBackward) => Kind::SendBackward,
            Ok(wire::ActionKind::Unspecified) => return Err(WireError::Missing(field)),
            Err(_) => return Err(WireError::Unknown { field, found: action.kind }),
        };
        Ok(Action { stage: action.stage, kind, micro_batch: MicroBatch(action.micro_batch) })
    }
}

fn phase_to_wire(phase: EnginePhase) -> wire::EnginePhase {
    match phase {
        EnginePhase::Joining => wire::EnginePhase::Joining,
        EnginePhase::CheckingFiles => wire::EnginePhase::CheckingFiles,
        EnginePhase::GettingValues => wire::EnginePhase::GettingValues,
        EnginePhase::CheckingCheckpoint => wire::EnginePhase::CheckingCheckpoint,
        EnginePhase::AwaitingChecks => wire::EnginePhase::AwaitingChecks,
        EnginePhase::ReadingCheckpoint => wire::EnginePhase::ReadingCheckpoint,
        EnginePhase::AddingGradients => wire::EnginePhase::AddingGradients,
        EnginePhase::ClosingStep => wire::EnginePhase::ClosingStep,
        EnginePhase::UpdatingWeights => wire::EnginePhase::UpdatingWeights,
        EnginePhase::Evaluating => wire::EnginePhase::Evaluating,
        EnginePhase::WritingCheckpoint => wire::EnginePhase::WritingCheckpoint,
    }
}

fn phase_from_wire(phase: i32) -> Result<EnginePhase, WireError> {
    let field = "Activity.phase";
    let known = wire::EnginePhase::try_from(phase).map_err(|_| WireError::Unknown { field, found: phase })?;
    Ok(match known {
        wire::EnginePhase::Unspecified => return Err(WireError::Missing(field)),
        wire::EnginePhase::Joining => EnginePhase::Joining,
        wire::EnginePhase::CheckingFiles => EnginePhase::CheckingFiles,
        wire::EnginePhase::GettingValues => EnginePhase::GettingValues,
        wire::EnginePhase::CheckingCheckpoint => EnginePhase::CheckingCheckpoint,
        wire::EnginePhase::AwaitingChecks => EnginePhase::AwaitingChecks,
        wire::EnginePhase::ReadingCheckpoint => EnginePhase::ReadingCheckpoint,
        wire::EnginePhase::AddingGradients => EnginePhase::AddingGradients,
        wire::EnginePhase::ClosingStep => EnginePhase::ClosingStep,
        wire::EnginePhase::UpdatingWeights => EnginePhase::UpdatingWeights,
        wire::EnginePhase::Evaluating => EnginePhase::Evaluating,
        wire::EnginePhase::WritingCheckpoint => EnginePhase::WritingCheckpoint,
    })
}
