//! Who holds up a run: from a rank that waits, along whom it waits for, to the one that is silent or computes.

use coxswain_types::activity::{Activity, EngineWork};
use coxswain_types::schedule::{Action, Kind};

use super::run::SILENT_MS;

/// A rank that waits for longer than this, and than [`HANG_STEPS`] steps take, is told of: three heartbeats, so
/// that a slow message is not called a hang.
pub const HANG_MS: u64 = 3000;

/// How many ordinary steps a rank may wait before that is told. A step with an evaluation or a checkpoint takes
/// as long as a few others.
const HANG_STEPS: f64 = 4.0;

/// The same where no step has been taken yet: the first one also loads tokens and builds kernels.
const FIRST_STEP_MS: u64 = 30_000;

/// A run in which every rank waits and no tensor moves for this long, and for [`patience_ms`], has come to a stop for
/// good: a message on its way moves. A connection that answers nothing ends after ten seconds, and says between whom it
/// was; that comes first.
const STUCK_MS: u64 = 20_000;

/// How long it has to be so: two heartbeats of every rank, since one that just began to wait may be about to hear.
pub(super) const STUCK_STAYS_MS: u64 = 2500;

/// A rank as it was heard of.
#[derive(Clone, Debug)]
pub(super) struct RankLook<'a> {
    /// Who it is, such as `worker w5 (stage 2)`.
    pub(super) name: String,
    /// The newest that it said of what it does.
    pub(super) activity: Option<&'a Activity>,
    /// How long ago it said that.
    pub(super) age_ms: u64,
    /// For how long it has said nothing at all.
    pub(super) silent_ms: u64,
}

impl RankLook<'_> {
    /// For how long it has done what it does.
    pub(super) fn for_ms(&self) -> u64 {
        self.activity.map_or(0, |activity| activity.for_ms + self.age_ms)
    }

    fn waits_for(&self) -> Option<usize> {
        self.activity?.waits_for.map(|rank| rank.index())
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent_ms >= SILENT_MS
    }
}

/// The rank that waits the longest, and for how long.
pub(super) fn longest(ranks: &[RankLook<'_>]) -> Option<(usize, u64)> {
    let waits = ranks.iter().enumerate().filter(|(_, rank)| rank.waits_for().is_some() && !rank.is_silent());
    // Of equal ones the lower rank.
    waits.map(|(index, rank)| (index, rank.for_ms())).rev().max_by_key(|(_, for_ms)| *for_ms)
}

/// Whether a rank that does this has waited for another and moved no tensor for as long as a run has to be stuck.
pub(super) fn rests(activity: &Activity, patience_ms: u64) -> bool {
    activity.waits_for.is_some() && activity.for_ms.min(activity.still_ms) >= STUCK_MS.max(patience_ms)
}

/// How long a rank may wait before it is told, where steps take this many seconds.
pub(super) fn patience_ms(step_seconds: Option<f64>) -> u64 {
    step_seconds.map_or(FIRST_STEP_MS, |seconds| HANG_MS.max((HANG_STEPS * seconds.max(0.0) * 1000.0) as u64))
}

/// Who waits for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WaitChain {
    /// In words.
    pub(super) text: String,
    /// The ranks along it.
    pub(super) ranks: Vec<usize>,
}

/// Follows the waiting from rank `from` to its end.
pub(super) fn chain(looks: &[RankLook<'_>], from: usize) -> Option<WaitChain> {
    let first = looks.get(from)?;
    let mut text = first.name.clone();
    let mut ranks = vec![from];
    let mut at = first;
    // Every turn sees another rank, so there are no more turns than ranks.
    while let Some(next) = at.waits_for() {
        let activity = at.activity?;
        let Some(look) = looks.get(next) else {
            text.push_str(&format!(" waits for rank {next}, which is not in this generation"));
            return Some(WaitChain { text, ranks });
        };
        text.push_str(&format!(" waits {} {}", wanted(activity.doing), look.name));
        if ranks.contains(&next) {
            text.push_str(": they wait for each other");
            return Some(WaitChain { text, ranks });
        }
        ranks.push(next);
        at = look;
        if look.is_silent() || look.waits_for().is_none() {
            break;
        }
        text.push_str(", which");
    }
    text.push_str(&match at.activity {
        _ if ranks.len() == 1 => return None,
        Some(activity) if at.is_silent() => {
            let last = activity.last.map_or(activity.doing, EngineWork::Action);
            format!(", silent for {}, which last did {}", seconds(at.silent_ms), without_stage(last))
        }
        None if at.is_silent() => format!(", silent for {}", seconds(at.silent_ms)),
        Some(activity) => {
            format!(", which is at {} for {}", without_stage(activity.doing), seconds(at.for_ms()))
        }
        None => ", which has not said what it does".to_owned(),
    });
    Some(WaitChain { text, ranks })
}

/// What a rank waits for that does this: `for the backward of micro-batch 7 from`.
fn wanted(doing: EngineWork) -> String {
    match doing {
        EngineWork::Action(Action { kind: Kind::Forward | Kind::RecvForward, micro_batch, .. }) => {
            format!("for the forward of micro-batch {micro_batch} from")
        }
        EngineWork::Action(Action {
            kind: Kind::Backward | Kind::Input | Kind::RecvBackward,
            micro_batch,
            ..
        }) => {
            format!("for the backward of micro-batch {micro_batch} from")
        }
        other => format!("at {} for", without_stage(other)),
    }
}

/// `F 11` for `1F11`, since the stage is that of the worker; anything else as it is.
fn without_stage(doing: EngineWork) -> String {
    match doing {
        EngineWork::Action(Action { kind, micro_batch, .. }) => format!("{kind} {micro_batch}"),
        EngineWork::Phase(phase) => phase.to_string(),
    }
}

/// Milliseconds as people read them.
pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use coxswain_types::activity::EnginePhase;
    use coxswain_types::ids::{Rank, Step};

    use super::*;

    /// `doing` is an action, or anything else for what follows the actions.
    fn activity(doing: &str, for_ms: u64, waits_for: Option<u32>, last: &str) -> Activity {
        Activity {
            step: Step(3),
            doing: match doing {
                "gradients" => EngineWork::Phase(EnginePhase::AddingGradients),
                action => EngineWork::Action(action.parse().unwrap()),
            },
            for_ms,
            waits_for: waits_for.map(Rank),
            last: Some(last).filter(|last| !last.is_empty()).map(|last| last.parse().unwrap()),
            still_ms: for_ms,
        }
    }

    fn looks<'a>(rows: &'a [(Option<Activity>, u64)]) -> Vec<RankLook<'a>> {
        let look = |(rank, (activity, silent_ms)): (usize, &'a (Option<Activity>, u64))| RankLook {
            name: format!("worker {rank} (stage {rank})"),
            activity: activity.as_ref(),
            age_ms: *silent_ms,
            silent_ms: *silent_ms,
        };
        rows.iter().enumerate().map(look).collect()
    }

    #[test]
    fn the_waiting_is_followed_to_the_one_that_holds_it_up() {
        let waits = |doing: &str, on: u32| (Some(activity(doing, 2900, Some(on), "0F1")), 100);
        let rows = [
            (
                vec![waits("0B7", 1), waits("1B7", 2), (Some(activity("2B7", 10, None, "2F11")), 3100)],
                "worker 0 (stage 0) waits for the backward of micro-batch 7 from worker 1 (stage 1), which waits for \
                 the backward of micro-batch 7 from worker 2 (stage 2), silent for 3.1 s, which last did F 11",
            ),
            (
                vec![waits("0RECV_B3", 1), (Some(activity("1F2", 4000, None, "")), 200)],
                "worker 0 (stage 0) waits for the backward of micro-batch 3 from worker 1 (stage 1), which is at F 2 \
                 for 4.2 s",
            ),
            (
                vec![waits("gradients", 1), (None, 5000)],
                "worker 0 (stage 0) waits at adding gradients over ranks for worker 1 (stage 1), \
                 silent for 5.0 s",
            ),
            (
                vec![waits("0F1", 1), (None, 0)],
                "worker 0 (stage 0) waits for the forward of micro-batch 1 from worker 1 (stage 1), which has not \
                 said what it does",
            ),
            (
                vec![waits("0B1", 1), waits("1F1", 0)],
                "worker 0 (stage 0) waits for the backward of micro-batch 1 from worker 1 (stage 1), which waits for \
                 the forward of micro-batch 1 from worker 0 (stage 0): they wait for each other",
            ),
            (vec![waits("0B1", 9)], "worker 0 (stage 0) waits for rank 9, which is not in this generation"),
        ];
        for (rows, expected) in rows {
            let ranks = looks(&rows);
            assert_eq!(longest(&ranks).map(|(rank, _)| rank), Some(0));
            let found = chain(&ranks, 0).unwrap_or_default();
            assert_eq!(found.text, expected);
            let named = |rank: &usize| expected.contains(&ranks[*rank].name);
            assert!(found.ranks.iter().all(named), "{found:?}");
        }
        let computes = [(Some(activity("0F1", 9000, None, "")), 0)];
        assert_eq!((longest(&looks(&computes)), chain(&looks(&computes), 0)), (None, None));
    }

    #[test]
    fn a_rank_rests_that_waits_while_no_tensor_moves() {
        let rows = [
            (20_000, Some(1), 3000, 20_000, true),
            (19_900, Some(1), 3000, 20_000, false),
            (20_000, Some(1), 3000, 200, false),
            (20_000, None, 3000, 20_000, false),
            (25_000, Some(1), 30_000, 25_000, false),
            (30_000, Some(1), 30_000, 30_000, true),
        ];
        for (for_ms, waits_for, patience_ms, still_ms, expected) in rows {
            let activity = Activity { still_ms, ..activity("0F1", for_ms, waits_for, "") };
            assert_eq!(rests(&activity, patience_ms), expected, "{activity:?} {patience_ms}");
        }
    }

    #[test]
    fn patience_is_some_steps_and_some_seconds() {
        let rows = [(None, 30_000), (Some(0.1), 3000), (Some(2.0), 8000), (Some(f64::NAN), 3000)];
        for (step_seconds, expected) in rows {
            assert_eq!(patience_ms(step_seconds), expected);
        }
    }
}
