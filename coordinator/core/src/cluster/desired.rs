//! What is wanted of each worker. It is computed from the state whenever it is asked for, so that
//! any message may be lost or repeated.

use coxswain_types::ids::{Step, WorkerId};
use coxswain_types::status::{DesiredState, Leave, LeaveCause};

use super::Cluster;

impl Cluster {
    /// What is wanted of `worker` now.
    pub fn desired(&self, worker: &WorkerId) -> DesiredState {
        let dismissed = self.dismissed.clone().filter(|_| !planted!(NoWorkerLeaves));
        let dismissed = dismissed.map(|reason| Leave { cause: LeaveCause::Dismissed, reason });
        let out =
            || self.leave_of(worker).map(|leave| Leave { reason: format!("it {}", leave.reason), ..leave });
        let idle = || DesiredState {
            revision: self.revisions.newest(),
            generation: self.generation,
            leave: dismissed.clone().or_else(out),
            ..DesiredState::default()
        };
        let Some((run, rank)) = self.run_of(worker).and_then(|run| Some((run, run.rank_of(worker)?))) else {
            return idle();
        };
        let seat = &run.seats[if planted!(DirectiveOfAnother) { (rank + 1) % run.seats.len() } else { rank }];
        let lead = rank == 0;
        let member = self.members.get(worker);
        let named = member.is_some_and(|member| seat.is_named_by(run.generation, &member.status));
        DesiredState {
            generation: run.generation,
            assignment_digest: Some(seat.digest.clone()),
            assignment: seat.assignment.clone().filter(|_| !named),
            revision: run.directive.revision,
            // A step behind all: ranks stop after the one that they take.
            run_to: if run.directive.stop.is_some() { Step(0) } else { run.steps },
            save_after: run.directive.save_after,
            publish: run.saving.publishing().filter(|_| lead).cloned(),
            decided: if planted!(DecidedLost) { Step(0) } else { run.saving.newest_decided() },
            acknowledged: if lead { run.acknowledged() } else { Step(0) },
            leave: dismissed,
        }
    }
}
