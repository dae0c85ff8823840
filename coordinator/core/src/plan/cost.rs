//! What a plan takes to make, in time and memory, told from the job alone. A job beyond [`MOST_NS`] or [`MOST_BYTES`] is
//! refused before anything is planned: what is planned after it would wait. So is one whose assignments are too long to
//! be sent.

use std::fmt;

use coxswain_types::JobSpec;
use coxswain_types::job::RecomputePolicy;
use coxswain_types::params::{Parameter, Split, parameter_table};

use super::{MAX_ASSIGNMENT_BYTES, PlanError};

/// The longest plan, in nanoseconds of one core by the rates below. Others wait for it; a model of 128 layers on 4096
/// workers takes two seconds, one of 32 layers with 512 data ranks ten.
const MOST_NS: u64 = 30_000_000_000;

/// The most memory of a plan, in bytes by the sizes below.
const MOST_BYTES: u64 = 4 << 30;

/// The longest plan of a job that is being submitted, whose caller waits for eight seconds at most.
const MOST_SUBMITTED_NS: u64 = 4_000_000_000;

/// The most memory of such a plan.
const MOST_SUBMITTED_BYTES: u64 = 512 << 20;

/// Nanoseconds for a row of a rank's parameters, one of the ranks that share it, an action, and a part of a layer when
/// the memory of an action is counted. Measured on x86-64 with programs built for release.
const ROW_NS: u64 = 2_000;
const USE_NS: u64 = 20;
const ACTION_NS: u64 = 500;
const PART_NS: u64 = 10;
/// Nanoseconds for a number, a path or an action that each rank's assignment repeats of the job.
const REPEATED_NS: u64 = 10;

/// Bytes of the same.
const ROW_BYTES: u64 = 480;
const USE_BYTES: u64 = 4;
const ACTION_BYTES: u64 = 24;
const REPEATED_BYTES: u64 = 40;

/// The least bytes of a row in an assignment's JSON: its names alone have more.
const ROW_JSON_BYTES: u64 = 150;

/// Actions of a micro-batch on a stage, at most: forward, input and weight gradients with four messages in training,
/// and three in validation.
const ACTIONS: u64 = 10;

/// What a plan has to list and to look at, over all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Rows of the ranks' parts of the parameter table.
    rows: u64,
    /// The ranks that rows name, since they share a slice.
    uses: u64,
    /// Actions.
    actions: u64,
    /// Parts of layers that the search for a budget of memory goes over.
    parts: u64,
    /// What each rank's assignment repeats of the job: a user's own actions, files, and who sums what.
    repeated: u64,
    /// How many ranks there are: each has one assignment, with its own rows and those that it keeps of a neighbour.
    world: u64,
}

impl Cost {
    /// What the job's plan costs.
    pub(super) fn of(spec: &JobSpec) -> Cost {
        let table = parameter_table(&spec.model);
        let layout = &spec.layout;
        let (tensor, data) = (u64::from(layout.tensor), u64::from(layout.data));
        let copies = if spec.keeps_peer_replicas() { 2 } else { 1 };
        let (mut rows, mut uses) = (0_u64, 0_u64);
        for parameter in &table {
            let (of_parameter, named) = rows_of(spec, parameter);
            rows = rows.saturating_add(of_parameter.saturating_mul(copies * data));
            uses = uses.saturating_add(of_parameter.saturating_mul(copies * data * named));
        }
        let layers = u64::from(spec.model.all_layers());
        let micro_batches = u64::from(spec.train.global_micro_batches);
        let passes = match spec.train.recompute {
            // Without any, with the last ones, by halves between, and with the number that was found.
            RecomputePolicy::Budget { .. } => 5 + u64::from(layers.max(1).ilog2()),
            _ => 0,
        };
        Cost {
            rows,
            uses,
            actions: ACTIONS * micro_batches * u64::from(layout.stages()) * tensor,
            parts: passes * 2 * micro_batches * layers * tensor,
            repeated: u64::from(layout.world()).saturating_mul(repeated(spec)),
            world: u64::from(layout.world()).max(1),
        }
    }

    /// Whether a caller can wait for the plan.
    pub(super) fn is_quick(&self) -> bool {
        self.ns() <= MOST_SUBMITTED_NS && self.bytes() <= MOST_SUBMITTED_BYTES
    }

    /// Some assignment has at least as many bytes: as many as all have in the mean.
    fn longest_bytes(&self) -> u64 {
        self.rows.saturating_mul(ROW_JSON_BYTES) / self.world
    }

    /// Refuses what would take too long, or could not be sent.
    pub(super) fn expect_bounded(self) -> Result<(), PlanError> {
        let bytes = self.longest_bytes();
        if bytes > MAX_ASSIGNMENT_BYTES as u64 {
            return Err(PlanError::TooLong { bytes });
        }
        let bounded = self.ns() <= MOST_NS && self.bytes() <= MOST_BYTES;
        if bounded { Ok(()) } else { Err(PlanError::TooLarge(self)) }
    }

    fn ns(&self) -> u64 {
        total([
            (self.rows, ROW_NS),
            (self.uses, USE_NS),
            (self.actions, ACTION_NS),
            (self.parts, PART_NS),
            (self.repeated, REPEATED_NS),
        ])
    }

    fn bytes(&self) -> u64 {
        total([
            (self.rows, ROW_BYTES),
            (self.uses, USE_BYTES),
            (self.actions, ACTION_BYTES),
            (self.repeated, REPEATED_BYTES),
        ])
    }
}

/// Counts, each times what one of it takes.
fn total<const N: usize>(costs: [(u64, u64); N]) -> u64 {
    costs.into_iter().fold(0, |sum, (count, each)| sum.saturating_add(count.saturating_mul(each)))
}

/// What each assignment repeats.
fn repeated(spec: &JobSpec) -> u64 {
    let files =
        spec.data.files().map_or(0, |(_, files)| files.iter().map(|file| 1 + file.len() as u64 / 40).sum());
    let nodes =
        u64::from(spec.train.gradient_groups).min(2 * u64::from(spec.layout.data) * u64::from(u32::BITS));
    spec.actions.len() as u64
        + files
        + u64::from(spec.train.gradient_groups)
        + u64::from(spec.layout.data)
        + nodes
}

/// How many rows the ranks of a data replica have of a parameter, and how many ranks each of them names.
fn rows_of(spec: &JobSpec, parameter: &Parameter) -> (u64, u64) {
    let shards = spec.train.shards(spec.layout.tensor);
    let places = parameter.places.len() as u64;
    let whole = parameter.split == Split::Replicated && !spec.layout.sequence_parallel;
    let rows = places * u64::from(shards) * if whole { u64::from(spec.layout.tensor) } else { 1 };
    let uses = places * u64::from(shards / parameter.slices(shards));
    // A use alone names no rank; else each is named, and its holder.
    (rows, if uses < 2 { 0 } else { 2 * uses })
}

impl fmt::Display for Cost {
    /// What takes most of the time, and how to have less of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows.saturating_mul(ROW_NS).saturating_add(self.uses.saturating_mul(USE_NS));
        let causes = [
            (rows, self.rows, "rows of parameters", "train.tensor_shards, layout.tensor or layout.data"),
            (
                self.actions * ACTION_NS,
                self.actions,
                "actions",
                "train.global_micro_batches or layout.chunks",
            ),
            (
                self.repeated.saturating_mul(REPEATED_NS),
                self.repeated,
                "copies of its files, actions and sums",
                "layout.data, train.gradient_groups, or the number of files",
            ),
            (
                self.parts * PART_NS,
                self.parts,
                "layers whose memory is counted",
                "train.global_micro_batches, or set train.recompute to full",
            ),
        ];
        let Some((_, count, what, lower)) = causes.into_iter().max_by_key(|(ns, ..)| *ns) else {
            return Ok(());
        };
        write!(f, "its ranks have {count} {what} in all; lower {lower}")
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::Assignment;
    use coxswain_types::job::Schedule;
    use expect_test::expect;

    use super::*;
    use crate::plan::encode;
    use crate::plan::tests::changed;

    type Change<'a> = &'a dyn Fn(&mut JobSpec);

    #[test]
    fn what_is_counted_is_what_plans_list() {
        let zero_bubble = |spec: &mut JobSpec| {
            (spec.layout.pipeline, spec.layout.tensor, spec.layout.schedule) = (4, 2, Schedule::ZbH1);
        };
        let split = |spec: &mut JobSpec| {
            (spec.layout.tensor, spec.layout.sequence_parallel, spec.model.tied_embeddings) = (4, true, true);
        };
        let shards = |spec: &mut JobSpec| {
            (spec.layout.data, spec.layout.zero, spec.train.tensor_shards) = (2, true, Some(8));
        };
        let rows: [(&str, Change<'_>); 4] = [
            ("alone", &|_| ()),
            ("zero bubble", &zero_bubble),
            ("split sequence", &split),
            ("shards", &shards),
        ];
        for (name, change) in rows {
            let plan = changed(4, change).unwrap();
            let cost = Cost::of(&plan.assignments[0].spec);
            let sum = |of: fn(&Assignment) -> usize| plan.assignments.iter().map(of).sum::<usize>() as u64;
            let rows = sum(|a| {
                a.parameters.len()
                    + a.peer_replica.as_ref().map_or(0, |peer_replica| peer_replica.parameters.len())
            });
            let uses = sum(|a| a.parameters.iter().map(|row| row.uses.len() + row.holders.len()).sum());
            let actions = sum(|a| a.train.len() + a.evaluate.len());
            // A rank that has a twin keeps no copy.
            assert!(rows <= cost.rows && cost.rows <= 2 * rows, "{name}: {rows} rows, {cost:?}");
            assert!(uses <= cost.uses && cost.uses <= 4 * uses.max(1), "{name}: {uses} uses, {cost:?}");
            assert!(
                actions <= cost.actions && cost.actions <= 6 * actions,
                "{name}: {actions} actions, {cost:?}"
            );
        }
    }

    #[test]
    fn some_assignment_is_as_long_as_the_estimate_with_what_is_kept_of_a_neighbour() {
        let cost = |pipeline, peer_replica| {
            let plan = changed(4, |spec| {
                (spec.layout.pipeline, spec.recovery.peer_replica) = (pipeline, peer_replica)
            })
            .unwrap();
            let cost = Cost::of(&plan.assignments[0].spec);
            let longest = plan.assignments.iter().map(|a| encode(a).0.len() as u64).max().unwrap();
            assert!(cost.longest_bytes() <= longest, "{} of {longest} bytes", cost.longest_bytes());
            cost
        };
        assert_eq!(cost(1, true), cost(1, false), "a rank alone has no neighbour");
        assert_eq!(cost(2, true).longest_bytes(), 2 * cost(2, false).longest_bytes());
    }

    #[test]
    fn a_plan_that_would_take_minutes_is_refused_with_what_to_lower() {
        let large = |spec: &mut JobSpec| {
            (spec.model.heads, spec.model.kv_heads, spec.model.head_dim) = (1024, 1024, 4);
            (spec.train.global_micro_batches, spec.train.gradient_groups) = (4096, 8);
            spec.train.tensor_shards = Some(64);
        };
        let refusal = |change: Change<'_>| {
            let error = changed(1024, |spec| {
                large(spec);
                change(spec);
            });
            error.unwrap_err().to_string()
        };
        let budget = RecomputePolicy::Budget { bytes: 1 << 31 };
        expect!["a rank's assignment has over 19 MiB, and at most 15 can be sent; it names each slice of each layer and each action of a step, so give the job more pipeline or tensor ranks, fewer train.tensor_shards or fewer train.global_micro_batches"]
            .assert_eq(&refusal(&|spec| spec.layout.tensor = 64));
        expect!["a plan of this job would be too large: its ranks have 167772160 actions in all; lower train.global_micro_batches or layout.chunks"].assert_eq(&refusal(&|spec| (spec.layout.pipeline, spec.layout.tensor) = (64, 64)));
        expect!["a rank's assignment has over 20 MiB, and at most 15 can be sent; it names each slice of each layer and each action of a step, so give the job more pipeline or tensor ranks, fewer train.tensor_shards or fewer train.global_micro_batches"].assert_eq(&refusal(&|spec| {
            (spec.layout.tensor, spec.train.recompute) = (32, budget);
        }));
    }
}
