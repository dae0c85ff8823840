//! The workers that are here: who may come in, and who has fallen silent.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::ids::WorkerId;
use coxswain_types::status::WorkerStatus;

/// How long a worker may be silent before it counts as lost: five heartbeats of a second, so that a
/// busy machine costs no run and a dead one is named within ten seconds.
pub const LEASE_MS: u64 = 5000;

/// A coordinator that did not run for half a lease or longer renews all leases: it may have missed heartbeats.
pub const PAUSE_MS: u64 = LEASE_MS / 2;

/// The most workers of one coordinator. Each costs a connection, of which a process has 20,000 under common
/// limits, and some 50 KiB.
pub const MAX_WORKERS: usize = 16_384;

/// The most names whose newest process is remembered: as many again as may be here at once. Of those
/// beyond it one that is not here is forgotten.
const MAX_NAMES: usize = 2 * MAX_WORKERS;

/// How long a worker that shows that it has not heard a directive is left alone before it is told again: a
/// heartbeat, so that one that cannot obey costs no more than that.
const REMIND_MS: u64 = 1000;

/// A worker that is here.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The newest that it said.
    pub(super) status: WorkerStatus,
    /// When it said so, in milliseconds of the shell's monotonic clock.
    pub(super) seen_ms: u64,
    /// When it was last told again what is wanted of it, or came.
    reminded_ms: u64,
}

/// All workers that are here.
#[derive(Clone, Debug, Default)]
pub(super) struct MemberTable {
    members: BTreeMap<WorkerId, Member>,
    /// All of them by when they last said something: there may be thousands.
    silence: BTreeSet<(u64, WorkerId)>,
    /// The newest process of each name, whether it is here or not: an older one never has its place again.
    newest: BTreeMap<WorkerId, u64>,
    /// The newest number that a process was given. Those of earlier starts are below those of this one.
    issued: u64,
}

/// What became of a status.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The worker was known, and is as free for work, or as bound, as before.
    Steady,
    /// The worker was known.
    Changed,
    /// It is new.
    New,
    /// It took the place of an older process of the same name.
    Replaced {
        /// The older process.
        incarnation: u64,
    },
    /// It may not come in.
    Refused(String),
}

impl MemberTable {
    /// Numbers of processes are above this one from now on.
    pub(super) fn issue_above(&mut self, number: u64) {
        self.issued = number;
    }

    /// The number of a process that has just started: of two with one name, the greater one is the newer process.
    pub(super) fn issue(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }

    /// Takes in what a worker says.
    pub(super) fn admit(&mut self, now_ms: u64, status: WorkerStatus) -> Admission {
        let info = &status.info;
        if info.incarnation == 0 || info.incarnation > self.issued {
            return Admission::Refused(
                "it has its number from another coordinator, or from one whose journal is lost; start it again"
                    .to_owned(),
            );
        }
        let admission = match self.members.get(&info.id) {
            Some(member)
                if member.status.info.incarnation > info.incarnation && !planted!(StaleIncarnation) =>
            {
                let other = &member.status.info;
                return Admission::Refused(format!(
                    "a newer process goes by the name {} (pid {} on {}); give each worker a name of its own",
                    info.id, other.pid, other.host
                ));
            }
            Some(member) if member.status.info.incarnation < info.incarnation => {
                Admission::Replaced { incarnation: member.status.info.incarnation }
            }
            Some(member) if is_steady(&member.status, &status) => Admission::Steady,
            Some(_) => Admission::Changed,
            None if self.newest.get(&info.id).is_some_and(|newest| *newest > info.incarnation)
                && !planted!(IncarnationForgotten) =>
            {
                return Admission::Refused(format!(
                    "a newer process went by the name {}; start this one again, or give it a name of its own",
                    info.id
                ));
            }
            None if self.members.len() >= MAX_WORKERS => {
                return Admission::Refused(format!(
                    "there are {MAX_WORKERS} workers already, which is the most"
                ));
            }
            None => Admission::New,
        };
        let (id, incarnation) = (info.id.clone(), info.incarnation);
        if !matches!(admission, Admission::Steady | Admission::Changed) {
            self.remember(&id, incarnation);
        }
        let now_ms = match self.members.get(&id) {
            Some(member) if planted!(LeaseNotRenewed) => member.seen_ms,
            _ => now_ms,
        };
        self.silence.insert((now_ms, id.clone()));
        let reminded_ms = self.members.get(&id).map_or(now_ms, |member| member.reminded_ms);
        let before = self.members.insert(id.clone(), Member { status, seen_ms: now_ms, reminded_ms });
        if let Some(before) = before.filter(|before| before.seen_ms != now_ms) {
            self.silence.remove(&(before.seen_ms, id));
        }
        admission
    }

    /// Whether a worker that has not heard a directive is to be told again now.
    pub(super) fn remind(&mut self, now_ms: u64, worker: &WorkerId) -> bool {
        let due = |member: &&mut Member| member.reminded_ms + REMIND_MS <= now_ms;
        let member = self.members.get_mut(worker).filter(due).filter(|_| !planted!(DirectiveNotRepeated));
        member.map(|member| member.reminded_ms = now_ms).is_some()
    }

    /// Notes that a process went by this name.
    pub(super) fn remember(&mut self, worker: &WorkerId, incarnation: u64) {
        let newest = self.newest.entry(worker.clone()).or_default();
        *newest = incarnation.max(*newest);
        if self.newest.len() > MAX_NAMES {
            let gone = self.newest.keys().find(|name| *name != worker && !self.members.contains_key(*name));
            if let Some(gone) = gone.cloned() {
                self.newest.remove(&gone);
            }
        }
    }

    /// The newest process of each name.
    pub(super) fn newest(&self) -> &BTreeMap<WorkerId, u64> {
        &self.newest
    }

    pub(super) fn get(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Forgets a process; `false` when it is not here (any more).
    pub(super) fn remove(&mut self, worker: &WorkerId, incarnation: u64) -> bool {
        let Some(member) = self.members.get(worker).filter(|m| m.status.info.incarnation == incarnation)
        else {
            return false;
        };
        self.silence.remove(&(member.seen_ms, worker.clone()));
        self.members.remove(worker);
        true
    }

    /// Gives every worker a new lease.
    pub(super) fn renew(&mut self, now_ms: u64) {
        self.members.values_mut().for_each(|member| member.seen_ms = now_ms);
        self.silence = self.members.keys().map(|id| (now_ms, id.clone())).collect();
    }

    /// Those whose lease has run out, in the order in which they fell silent.
    pub(super) fn expired(&self, now_ms: u64) -> Vec<(WorkerId, u64)> {
        let until_ms = now_ms.saturating_sub(u64::from(planted!(LeaseOffByOne)));
        let silent = self.silence.iter().take_while(|(seen_ms, _)| seen_ms + lease_ms() <= until_ms);
        silent
            .filter_map(|(_, id)| Some((id.clone(), self.members.get(id)?.status.info.incarnation)))
            .collect()
    }

    /// When the next lease runs out.
    pub(super) fn next_expiry_ms(&self) -> Option<u64> {
        self.silence.first().map(|(seen_ms, _)| seen_ms + lease_ms())
    }
}

fn lease_ms() -> u64 {
    if planted!(LeaseTooShort) { LEASE_MS - 1000 } else { LEASE_MS }
}

/// Whether a worker that said the one and then the other is as free for work, or as bound, as before. What else
/// it says is of its own run alone: reports, what it saved, what it does and for how long.
fn is_steady(before: &WorkerStatus, now: &WorkerStatus) -> bool {
    standing(before) == standing(now)
}

fn standing(status: &WorkerStatus) -> impl PartialEq + '_ {
    let WorkerStatus { info, generation, assignment_digest, phase, leaving, .. } = status;
    (info, generation, assignment_digest, phase, leaving)
}
