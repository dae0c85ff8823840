//! The workers that are here: who may come in, and who has fallen silent.

use std::collections::BTreeMap;

use coxswain_types::ids::WorkerId;
use coxswain_types::status::WorkerStatus;

/// How long a worker may be silent before it counts as lost: five heartbeats of a second, so that a
/// busy machine costs no run and a dead one is named within ten seconds.
pub const LEASE_MS: u64 = 5000;

/// The most workers of one coordinator. Each costs a stream and a few kilobytes; a cluster of more
/// has outgrown one journal as well.
pub const MAX_WORKERS: usize = 4096;

/// A worker that is here.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The newest that it said.
    pub(super) status: WorkerStatus,
    /// When it said so, in milliseconds of the shell's monotonic clock.
    pub(super) seen_ms: u64,
}

/// All workers that are here.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    members: BTreeMap<WorkerId, Member>,
}

/// What became of a status.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The worker was known.
    Known,
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

impl Members {
    /// Takes in what a worker says.
    pub(super) fn admit(&mut self, now_ms: u64, status: WorkerStatus) -> Admission {
        let info = &status.info;
        let admission = match self.members.get(&info.id) {
            Some(member) if member.status.info.incarnation > info.incarnation => {
                let other = &member.status.info;
                return Admission::Refused(format!(
                    "a newer process goes by the name {} (pid {} on {}); give each worker a name of its own",
                    info.id, other.pid, other.host
                ));
            }
            Some(member) if member.status.info.incarnation < info.incarnation => {
                Admission::Replaced { incarnation: member.status.info.incarnation }
            }
            Some(_) => Admission::Known,
            None if self.members.len() >= MAX_WORKERS => {
                return Admission::Refused(format!(
                    "there are {MAX_WORKERS} workers already, which is the most"
                ));
            }
            None => Admission::New,
        };
        self.members.insert(info.id.clone(), Member { status, seen_ms: now_ms });
        admission
    }

    pub(super) fn get(&self, worker: &WorkerId) -> Option<&Member> {
        self.members.get(worker)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Forgets a process; `false` when it is not here (any more).
    pub(super) fn remove(&mut self, worker: &WorkerId, incarnation: u64) -> bool {
        let here = self.members.get(worker).is_some_and(|m| m.status.info.incarnation == incarnation);
        if here {
            self.members.remove(worker);
        }
        here
    }

    /// Those whose lease has run out, in the order in which they fell silent.
    pub(super) fn expired(&self, now_ms: u64) -> Vec<(WorkerId, u64)> {
        let mut silent: Vec<_> = self.members.values().filter(|m| m.seen_ms + LEASE_MS <= now_ms).collect();
        silent.sort_by_key(|m| m.seen_ms);
        silent.iter().map(|m| (m.status.info.id.clone(), m.status.info.incarnation)).collect()
    }

    /// When the next lease runs out.
    pub(super) fn next_expiry_ms(&self) -> Option<u64> {
        self.members.values().map(|m| m.seen_ms + LEASE_MS).min()
    }
}
