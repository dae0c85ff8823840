//! An independent reader of plans: it shares no code with the planner, takes the finished
//! assignments, and refuses whatever would hang, leave work out, do it twice, or hold more than the
//! memory estimate says.
//!
//! It checks each rank's list by itself, then each pair's messages, then runs all ranks at once.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::Assignment;
use coxswain_types::schedule::{Action, Kind};

/// Receives that a rank has posted and not used: the one that its next compute action needs, and
/// the one after it. Their buffers are in the memory estimate.
pub const POSTED_RECEIVES: usize = 2;

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Ranks and their neighbours do not fit together.
    #[error("rank {rank}: {what}")]
    Mesh {
        /// The rank.
        rank: usize,
        /// What does not fit.
        what: &'static str,
    },
    /// A micro-batch is done by no data rank or by several.
    #[error("micro-batch {micro_batch} of the step belongs to {owners} data ranks")]
    Owners {
        /// The micro-batch.
        micro_batch: u32,
        /// How many have it.
        owners: usize,
    },
    /// An action that this rank has no business with.
    #[error("rank {rank}, {list}: {action} does not belong there")]
    Foreign {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The action.
        action: Action,
    },
    /// An action is listed twice.
    #[error("rank {rank}, {list}: {action} is listed twice")]
    Twice {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The action.
        action: Action,
    },
    /// An action is not listed.
    #[error("rank {rank}, {list}: {action} is missing")]
    Missing {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The action.
        action: Action,
    },
    /// Two actions stand in the wrong order.
    #[error("rank {rank}, {list}: {first} must come before {second}")]
    Order {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// What must come first.
        first: Action,
        /// What must come second.
        second: Action,
    },
    /// A receive is posted too late to travel under the compute before it.
    #[error("rank {rank}, {list}: {action} is posted too late to travel under a compute action")]
    LatePost {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The receive.
        action: Action,
    },
    /// More is held at once than the memory estimate allows.
    #[error("rank {rank}, {list}: at {action} {held} {what} are held; at most {most} may be")]
    Held {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// Where.
        action: Action,
        /// What is held.
        what: &'static str,
        /// How many.
        held: usize,
        /// How many may be.
        most: usize,
    },
    /// Sends and receives of a pair of ranks differ.
    #[error("{list}: rank {from} sends [{sent}] to rank {to}, which receives [{received}]")]
    Messages {
        /// `train` or `evaluate`.
        list: &'static str,
        /// The sender.
        from: usize,
        /// The receiver.
        to: usize,
        /// What is sent, in order.
        sent: String,
        /// What is received, in order.
        received: String,
    },
    /// Ranks wait for each other.
    #[error("{list}: no rank can go on; waiting are {waiting}")]
    Deadlock {
        /// `train` or `evaluate`.
        list: &'static str,
        /// The ranks and the actions at which they stand.
        waiting: String,
    },
}

/// Checks a whole plan, its assignments in the order of their ranks.
///
/// # Errors
/// The first violation.
pub fn check(assignments: &[Assignment]) -> Result<(), Violation> {
    check_mesh(assignments)?;
    check_owners(assignments)?;
    for pass in [Pass { list: "train", backward: true }, Pass { list: "evaluate", backward: false }] {
        for assignment in assignments {
            pass.check_list(assignment)?;
        }
        pass.check_messages(assignments)?;
        pass.run_all(assignments)?;
    }
    Ok(())
}

fn check_mesh(assignments: &[Assignment]) -> Result<(), Violation> {
    for (rank, a) in assignments.iter().enumerate() {
        let there = |other: Option<u32>| other.map(|other| assignments.get(other as usize));
        let before = there(a.previous).map(|other| other.filter(|o| o.next == Some(a.rank.0)));
        let after = there(a.next).map(|other| other.filter(|o| o.previous == Some(a.rank.0)));
        let neighbours = |other: Option<&Assignment>| {
            other.is_some_and(|o| (o.data_index, o.tensor_index) == (a.data_index, a.tensor_index))
        };
        let rules = [
            (a.rank.index() == rank, "does not stand in its place"),
            (a.world as usize == assignments.len(), "has another number of ranks"),
            (a.embedding == (a.stage == 0), "holds the embedding exactly if it is the first stage"),
            (a.previous.is_none() == a.embedding, "has a previous stage exactly if it is not the first"),
            (a.next.is_none() == a.head, "has a next stage exactly if it has no head"),
            (before.is_none_or(neighbours), "is not the next of its previous"),
            (after.is_none_or(neighbours), "is not the previous of its next"),
            (before.flatten().is_none_or(|o| o.layers.end == a.layers.start), "leaves out layers before it"),
            (!a.layers.is_empty(), "has no layers"),
            (a.tensor_group.get(a.tensor_index as usize) == Some(&a.rank.0), "is not in its tensor group"),
            (a.data_group.get(a.data_index as usize) == Some(&a.rank.0), "is not in its data group"),
            (a.owned_runs.end as usize <= a.runs.len(), "owns runs that do not exist"),
        ];
        if let Some((_, what)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(Violation::Mesh { rank, what });
        }
    }
    Ok(())
}

/// The micro-batches that a rank works on.
fn owned(assignment: &Assignment) -> BTreeSet<u32> {
    assignment.owned_runs.clone().flat_map(|run| assignment.runs[run as usize].clone()).collect()
}

fn check_owners(assignments: &[Assignment]) -> Result<(), Violation> {
    for a in assignments {
        let line = a.data_group.iter().filter_map(|rank| assignments.get(*rank as usize)).map(owned);
        let mut owners = BTreeMap::new();
        for micro_batch in line.flatten() {
            *owners.entry(micro_batch).or_insert(0) += 1;
        }
        for micro_batch in 0..a.spec.train.micro_batches {
            let owners = owners.get(&micro_batch).copied().unwrap_or(0);
            if owners != 1 {
                return Err(Violation::Owners { micro_batch, owners });
            }
        }
    }
    Ok(())
}

/// One of the two lists of every rank.
#[derive(Clone, Copy)]
struct Pass {
    list: &'static str,
    backward: bool,
}

impl Pass {
    fn actions(self, a: &Assignment) -> &[Action] {
        if self.backward { &a.train } else { &a.evaluate }
    }

    /// What this rank has to do for each of its micro-batches.
    fn kinds(self, a: &Assignment) -> Vec<Kind> {
        let (before, after, back) = (a.previous.is_some(), a.next.is_some(), self.backward);
        let needed = [
            (Kind::RecvForward, before),
            (Kind::Forward, true),
            (Kind::SendForward, after),
            (Kind::RecvBackward, after && back),
            (Kind::Backward, back),
            (Kind::SendBackward, before && back),
        ];
        needed.into_iter().filter(|(_, needed)| *needed).map(|(kind, _)| kind).collect()
    }

    fn check_list(self, a: &Assignment) -> Result<(), Violation> {
        let (rank, list) = (a.rank.index(), self.list);
        let (owned, kinds) = (owned(a), self.kinds(a));
        let mut at = BTreeMap::new();
        for (position, action) in self.actions(a).iter().enumerate() {
            let known = action.stage == a.stage && kinds.contains(&action.kind);
            if !known || !owned.contains(&action.micro_batch.0) {
                return Err(Violation::Foreign { rank, list, action: *action });
            }
            if at.insert(*action, position).is_some() {
                return Err(Violation::Twice { rank, list, action: *action });
            }
        }
        let action = |kind, micro_batch: u32| Action {
            stage: a.stage,
            kind,
            micro_batch: coxswain_types::MicroBatch(micro_batch),
        };
        let all = owned.iter().flat_map(|m| kinds.iter().map(move |kind| action(*kind, *m)));
        if let Some(missing) = all.clone().find(|action| !at.contains_key(action)) {
            return Err(Violation::Missing { rank, list, action: missing });
        }
        let before = |first: Action, second: Action| match (at.get(&first), at.get(&second)) {
            (Some(i), Some(j)) if i > j => Err(Violation::Order { rank, list, first, second }),
            _ => Ok(()),
        };
        for m in &owned {
            before(action(Kind::RecvForward, *m), action(Kind::Forward, *m))?;
            before(action(Kind::Forward, *m), action(Kind::SendForward, *m))?;
            before(action(Kind::Forward, *m), action(Kind::Backward, *m))?;
            before(action(Kind::RecvBackward, *m), action(Kind::Backward, *m))?;
            before(action(Kind::Backward, *m), action(Kind::SendBackward, *m))?;
        }
        // Gradients accumulate in micro-batch order: the order of backwards is part of the result.
        for (m, n) in owned.iter().zip(owned.iter().skip(1)) {
            before(action(Kind::Forward, *m), action(Kind::Forward, *n))?;
            before(action(Kind::Backward, *m), action(Kind::Backward, *n))?;
        }
        self.check_held(a, owned.len())
    }

    /// Walks the list and counts what is held: activations, and posted receives.
    fn check_held(self, a: &Assignment, micro_batches: usize) -> Result<(), Violation> {
        let (rank, list) = (a.rank.index(), self.list);
        let stages_left = assignments_left(a);
        let most = micro_batches.min(stages_left);
        let (mut computed, mut in_flight) = (0_usize, 0_usize);
        let mut posted: BTreeMap<(Kind, u32), usize> = BTreeMap::new();
        let check = |action: &Action, what, held, most| {
            let action = *action;
            if held > most { Err(Violation::Held { rank, list, action, what, held, most }) } else { Ok(()) }
        };
        for action in self.actions(a) {
            let key = |kind| (kind, action.micro_batch.0);
            let needs = match action.kind {
                Kind::RecvForward | Kind::RecvBackward => {
                    posted.insert(key(action.kind), computed);
                    check(action, "posted receives", posted.len(), POSTED_RECEIVES)?;
                    continue;
                }
                Kind::SendForward | Kind::SendBackward => continue,
                Kind::Forward => Kind::RecvForward,
                _ => Kind::RecvBackward,
            };
            if posted.remove(&key(needs)).is_some_and(|when| when == computed && computed > 0) {
                let action = Action { kind: needs, ..*action };
                return Err(Violation::LatePost { rank, list, action });
            }
            computed += 1;
            if self.backward {
                if action.kind == Kind::Forward {
                    in_flight += 1;
                    check(action, "micro-batches in flight", in_flight, most)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        Ok(())
    }

    /// Messages from one rank to another carry no tags: the first sent is the first received.
    fn check_messages(self, assignments: &[Assignment]) -> Result<(), Violation> {
        for (from, a) in assignments.iter().enumerate() {
            for (to, send, receive) in [
                (a.next, Kind::SendForward, Kind::RecvForward),
                (a.previous, Kind::SendBackward, Kind::RecvBackward),
            ] {
                let Some(to) = to.map(|to| to as usize) else { continue };
                let micro_batches = |a: &Assignment, kind| -> Vec<String> {
                    let of_kind = self.actions(a).iter().filter(|action| action.kind == kind);
                    of_kind.map(|action| action.micro_batch.to_string()).collect()
                };
                let sent = micro_batches(a, send).join(" ");
                let received = micro_batches(&assignments[to], receive).join(" ");
                if sent != received {
                    return Err(Violation::Messages { list: self.list, from, to, sent, received });
                }
            }
        }
        Ok(())
    }

    /// Runs all ranks: a send never waits, a receive is only posted, a compute action waits for the
    /// message it needs.
    fn run_all(self, assignments: &[Assignment]) -> Result<(), Violation> {
        let mut next = vec![0_usize; assignments.len()];
        let mut sent: BTreeSet<(usize, Kind, u32)> = BTreeSet::new();
        loop {
            let mut moved = false;
            for (rank, a) in assignments.iter().enumerate() {
                while let Some(action) = self.actions(a).get(next[rank]) {
                    let micro_batch = action.micro_batch.0;
                    let arrived = |from: Option<u32>, kind| {
                        from.is_none_or(|from| sent.contains(&(from as usize, kind, micro_batch)))
                    };
                    let ready = match action.kind {
                        Kind::Forward => arrived(a.previous, Kind::SendForward),
                        Kind::Backward => arrived(a.next, Kind::SendBackward),
                        _ => true,
                    };
                    if !ready {
                        break;
                    }
                    if matches!(action.kind, Kind::SendForward | Kind::SendBackward) {
                        sent.insert((rank, action.kind, micro_batch));
                    }
                    next[rank] += 1;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        let stuck = assignments.iter().zip(next).filter_map(|(a, next)| {
            self.actions(a).get(next).map(|action| format!("rank {} at {action}", a.rank))
        });
        let waiting: Vec<_> = stuck.collect();
        if waiting.is_empty() {
            return Ok(());
        }
        Err(Violation::Deadlock { list: self.list, waiting: waiting.join(", ") })
    }
}

/// Stages from this one to the last, itself among them: as many micro-batches may be in flight.
fn assignments_left(a: &Assignment) -> usize {
    (a.spec.layout.pipeline - a.stage) as usize
}

#[cfg(test)]
mod tests;
