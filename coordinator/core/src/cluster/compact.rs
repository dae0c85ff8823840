//! The older part of a journal in fewer entries, from which a restart knows the same.
//!
//! An entry sets fields of its job, and a later one sets them again. So an entry is needed as long as one
//! of its fields is set by no later entry, or is read by a later one that is needed, and as long as its job is
//! remembered. What is counted over all entries goes into one, [`Entry::Compacted`].
//!
//! A snapshot of the cluster in place of them would not be simpler. The entries after it are replayed all the same, so
//! `replay` would stay and the snapshot would be a second form of each job's state, to be written, read and kept in
//! step with the first. Entries are also what `coxswain events` prints and what the times in `coxswain status` come
//! from, so a snapshot would have to carry copies of them.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::ids::WorkerId;

use super::Cluster;
use super::entry::Entry;
use super::job::MAX_INTERRUPTIONS;

/// What an entry sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Submission,
    Preparing,
    State,
    /// The newest interruption. The list of them grows with each.
    Interruption,
    /// The generation, its layout, its threads and what it computes with.
    Formation,
    Ranks,
    Begun,
    Directive,
    Cancelling,
    Step,
    Committed,
    Checkpoint,
}

/// The job that an entry is about and the fields of it that it sets, as [`Cluster::apply`] does.
fn sets(entry: &Entry) -> Option<(&str, &'static [Field])> {
    use Field::*;
    match entry {
        Entry::Compacted { .. } | Entry::Started { .. } | Entry::Drained { .. } | Entry::Noted { .. } => None,
        Entry::Submitted(submission) => Some((&submission.job, &[Submission])),
        Entry::Preparing { job, .. } | Entry::Prepared { job } => Some((job, &[Preparing])),
        Entry::Formed { job, .. } => {
            Some((job, &[Preparing, State, Formation, Ranks, Begun, Directive, Step, Committed]))
        }
        Entry::Begun { job, .. } => Some((job, &[Begun])),
        Entry::Stopping { job, .. } | Entry::Saving { job, .. } => Some((job, &[Directive])),
        Entry::Cancelling { job, .. } => Some((job, &[Cancelling])),
        Entry::Interrupted { job, .. } | Entry::Regrouped { job, .. } => Some((job, &[State, Interruption])),
        Entry::Committed { job, .. } => Some((job, &[Committed])),
        Entry::Published { job, .. } => Some((job, &[Step, Committed, Checkpoint])),
        Entry::Ended { job, .. } => {
            Some((job, &[Preparing, State, Ranks, Begun, Directive, Cancelling, Committed]))
        }
    }
}

/// For how many entries of a journal that was never compacted this one stands.
fn weight(entry: &Entry) -> u64 {
    match entry {
        Entry::Compacted { entries, .. } => *entries,
        _ => 1,
    }
}

/// The fewest of `entries`, in their order, from which a restart knows the same as from all of them,
/// whatever follows. Each comes and goes with the time at which it was written.
pub fn compact(entries: &[(u64, Entry)]) -> Vec<(u64, Entry)> {
    let Some((first_ms, _)) = entries.first() else { return Vec::new() };
    let known = Counted::of(entries);
    let mut later = Later { known: &known, set: BTreeSet::new(), interruptions: BTreeMap::new() };
    let needed = entries.iter().rev().filter_map(|(at_ms, entry)| Some((*at_ms, later.needs(entry)?)));
    let mut kept: Vec<_> = needed.collect();
    let submissions = kept.iter().filter(|(_, entry)| matches!(entry, Entry::Submitted(_))).count();
    let counted = Entry::Compacted {
        entries: known.entries - kept.len() as u64,
        submitted: known.cluster.submitted - submissions as u64,
        generation: known.cluster.generation,
        epoch: known.cluster.revisions.epoch(),
        newest: known.cluster.members.newest().clone(),
    };
    kept.push((*first_ms, counted));
    kept.reverse();
    kept
}

/// Something that is set.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Setting<'a> {
    Job(&'a str, Field),
    Drain(&'a WorkerId),
}

/// What later entries say, while entries are looked at from the newest to the oldest.
struct Later<'a> {
    known: &'a Counted,
    /// What is set by an entry that is kept, and read by none before that.
    set: BTreeSet<Setting<'a>>,
    /// How many interruptions of a job are kept.
    interruptions: BTreeMap<&'a str, usize>,
}

impl<'a> Later<'a> {
    /// The entry as it is kept, if it is needed.
    fn needs(&mut self, entry: &'a Entry) -> Option<Entry> {
        if let Entry::Drained { worker, .. } = entry {
            let newest =
                self.known.cluster.drains.contains_key(worker) && self.set.insert(Setting::Drain(worker));
            return newest.then(|| entry.clone());
        }
        let (job, fields) = sets(entry).filter(|(job, _)| self.known.jobs.contains(*job))?;
        let newest: Vec<_> =
            fields.iter().copied().filter(|field| self.set.insert(Setting::Job(job, *field))).collect();
        let listed = matches!(entry, Entry::Interrupted { .. } | Entry::Regrouped { .. });
        if listed {
            let count = self.interruptions.entry(job).or_default();
            if *count == MAX_INTERRUPTIONS {
                return None;
            }
            *count += 1;
            // The list says of which generation it was, and after which step.
            self.set.remove(&Setting::Job(job, Field::Formation));
            self.set.remove(&Setting::Job(job, Field::Step));
        } else if newest.is_empty() {
            return None;
        }
        let mut entry = entry.clone();
        if let Entry::Formed { ranks, .. } = &mut entry
            && !newest.contains(&Field::Ranks)
        {
            ranks.clear();
        }
        Some(entry)
    }
}

/// What is counted over all entries, and what is remembered after them.
struct Counted {
    cluster: Cluster,
    entries: u64,
    jobs: BTreeSet<String>,
}

impl Counted {
    fn of(entries: &[(u64, Entry)]) -> Counted {
        let mut cluster = Cluster::default();
        for (_, entry) in entries {
            match entry {
                // These alone decide what is counted, and which jobs and drains are remembered.
                Entry::Submitted(_)
                | Entry::Ended { .. }
                | Entry::Compacted { .. }
                | Entry::Started { .. }
                | Entry::Drained { .. } => cluster.apply(entry.clone()),
                Entry::Formed { generation, ranks, .. } => {
                    cluster.generation = cluster.generation.max(*generation);
                    for rank in ranks {
                        cluster.members.remember(&rank.worker, rank.incarnation);
                    }
                }
                Entry::Preparing { .. }
                | Entry::Prepared { .. }
                | Entry::Begun { .. }
                | Entry::Stopping { .. }
                | Entry::Saving { .. }
                | Entry::Cancelling { .. }
                | Entry::Regrouped { .. }
                | Entry::Interrupted { .. }
                | Entry::Committed { .. }
                | Entry::Published { .. }
                | Entry::Noted { .. } => {}
            }
        }
        let jobs = cluster.jobs().into_iter().map(|job| job.job).collect();
        Counted { cluster, entries: entries.iter().map(|(_, entry)| weight(entry)).sum(), jobs }
    }
}
