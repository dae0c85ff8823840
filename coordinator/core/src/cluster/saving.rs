//! When a checkpoint is decided. Every rank of a generation says which files it wrote; once all
//! have, the checkpoint is committed in the journal, and the lead rank publishes its manifest. A
//! checkpoint therefore exists for readers only after it cannot be lost.
//!
//! After which steps they write is the job's to say, and where its newest checkpoint is older than the job allows
//! the coordinator's: it asks for a save, and ranks agree in the closing exchange after which step that is.

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::{Publish, Published, Saved, SavedFile};

use super::Cluster;
use super::event::{Effect, Entry};
use super::job::{Asked, Job};
use super::run::Run;

impl Job {
    /// When its newest checkpoint is too old, where time counts.
    fn save_due_ms(&self) -> Option<u64> {
        let minutes = u64::from(self.submission.spec.checkpoint.every_minutes);
        (minutes > 0).then(|| self.saved_ms.saturating_add(minutes * 60_000))
    }
}

impl Run {
    /// Whether its ranks can be asked for a save: all know the directive before it, no other save is under way up to its
    /// publication, and there are steps to save that the end of the run does not save anyway.
    fn can_save(&self) -> bool {
        let published = self.saving.published();
        let asked = self.directive.stop.is_some() || self.directive.save_after > published;
        let under_way = asked || self.saving.publishing().is_some();
        !under_way && self.is_taken() && self.reported > published && self.reported < self.steps
    }
}

impl Cluster {
    /// Has all ranks of the generation save after a step, if its job's newest checkpoint is too old.
    pub(super) fn save_by_time(&mut self, generation: Generation, out: &mut Vec<Effect>) {
        let Some(index) = self.runs.iter().position(|run| run.generation == generation) else { return };
        let due_ms = self.job(&self.runs[index].job).and_then(Job::save_due_ms);
        if due_ms.is_none_or(|due_ms| self.now_ms < due_ms) || !self.runs[index].can_save() {
            return;
        }
        self.revisions.grow();
        let revision = self.revisions.newest();
        let run = &mut self.runs[index];
        let (job, after) = (run.job.clone(), run.reported.next());
        run.directive = Asked { revision, save_after: after, ..Asked::default() };
        out.push(Effect::Record(Entry::Saving { job, generation, revision, after }));
        out.extend(run.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())));
    }
}

/// How many checkpoints may be incomplete at once. Ranks close each step together, so they are
/// never further apart than one; the rest is room for statuses that come late.
const MAX_INCOMPLETE: usize = 4;

/// The checkpoints of one generation.
#[derive(Clone, Debug)]
pub(super) struct Saving {
    world: usize,
    /// Steps that some ranks have written, with the files by rank.
    incomplete: BTreeMap<Step, Vec<Option<Vec<SavedFile>>>>,
    /// Committed and not yet published.
    publishing: Option<Publish>,
    /// The newest step that readers can see.
    published: Step,
}

impl Saving {
    /// A generation of `world` ranks that starts from the checkpoint of step `from` (0: from none).
    pub(super) fn new(world: usize, from: Step) -> Saving {
        Saving { world, incomplete: BTreeMap::new(), publishing: None, published: from }
    }

    /// Goes on from what was committed and not yet published.
    pub(super) fn decided(&mut self, publishing: Option<Publish>) {
        self.publishing = publishing;
    }

    /// What the lead rank shall publish.
    pub(super) fn publishing(&self) -> Option<&Publish> {
        self.publishing.as_ref()
    }

    /// The newest step that readers can see.
    pub(super) fn published(&self) -> Step {
        self.published
    }

    /// The newest step that is committed, or was where the run began.
    pub(super) fn newest_decided(&self) -> Step {
        self.publishing.as_ref().map_or(self.published, |p| p.step)
    }

    /// Takes in what a rank has written. Repeated news changes nothing.
    pub(super) fn wrote(&mut self, rank: usize, saved: &Saved) {
        if saved.step <= self.newest_decided() {
            return;
        }
        let by_rank = self.incomplete.entry(saved.step).or_insert_with(|| vec![None; self.world]);
        if let Some(files) = by_rank.get_mut(rank) {
            *files = Some(saved.files.clone());
        }
        while self.incomplete.len() > MAX_INCOMPLETE {
            self.incomplete.pop_first();
        }
    }

    /// The next checkpoint that all ranks have written, if none is being published.
    pub(super) fn complete(&self) -> Option<Step> {
        let mut incomplete = self.incomplete.iter().filter(|_| self.publishing.is_none());
        incomplete.find(|(_, by_rank)| by_rank.iter().all(Option::is_some)).map(|(step, _)| *step)
    }

    /// Commits the next checkpoint that all ranks have written. `Err` says why their files make no checkpoint.
    pub(super) fn commit(&mut self) -> Result<Option<&Publish>, String> {
        let complete = self.complete().and_then(|step| Some((step, self.incomplete.get(&step)?)));
        let Some((step, by_rank)) = complete else { return Ok(None) };
        let mut files: BTreeMap<&str, &SavedFile> = BTreeMap::new();
        for file in by_rank.iter().flatten().flatten() {
            if let Some(other) = files.insert(&file.name, file)
                && other != file
            {
                return Err(format!(
                    "two ranks wrote different files under the name {} for the checkpoint of step {step}",
                    file.name
                ));
            }
        }
        let files = files.into_values().cloned().collect();
        self.incomplete.retain(|other, _| *other > step);
        self.publishing = Some(Publish { step, files });
        Ok(self.publishing.as_ref())
    }

    /// Takes in what the lead rank has published; `true` when that is news.
    pub(super) fn publish(&mut self, published: &Published) -> bool {
        let asked = self.publishing.as_ref().is_some_and(|p| p.step == published.step);
        if asked {
            self.publishing = None;
            self.published = published.step;
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(step: u64, name: &str, digest: &str) -> Saved {
        Saved {
            step: Step(step),
            files: vec![SavedFile { name: name.into(), bytes: 1, digest: digest.into() }],
        }
    }

    #[test]
    fn a_checkpoint_needs_every_rank_and_is_decided_once() {
        let mut saving = Saving::new(2, Step(0));
        saving.wrote(0, &saved(5, "a", "x"));
        saving.wrote(0, &saved(5, "a", "x"));
        assert_eq!(saving.commit(), Ok(None));
        saving.wrote(1, &saved(5, "b", "y"));
        let names =
            |p: Option<&Publish>| p.map(|p| p.files.iter().map(|f| f.name.clone()).collect::<String>());
        assert_eq!(saving.commit().map(names), Ok(Some("ab".into())));
        assert_eq!(saving.commit(), Ok(None));
        assert!(!saving.publish(&Published { step: Step(4), digest: "m".into() }));
        assert!(saving.publish(&Published { step: Step(5), digest: "m".into() }));
        assert!(!saving.publish(&Published { step: Step(5), digest: "m".into() }));
        saving.wrote(0, &saved(5, "a", "x"));
        saving.wrote(1, &saved(5, "b", "y"));
        assert_eq!(saving.commit(), Ok(None), "what is published is not decided again");
    }

    #[test]
    fn checkpoints_are_published_one_after_the_other() {
        let mut saving = Saving::new(2, Step(0));
        for step in [5, 10] {
            saving.wrote(0, &saved(step, "a", "x"));
            saving.wrote(1, &saved(step, "b", "y"));
        }
        assert_eq!(saving.commit().unwrap().map(|p| p.step), Some(Step(5)));
        assert_eq!(saving.commit(), Ok(None));
        assert!(saving.publish(&Published { step: Step(5), digest: "m".into() }));
        assert_eq!(saving.commit().unwrap().map(|p| p.step), Some(Step(10)));
    }

    #[test]
    fn one_name_for_two_different_files_is_refused() {
        let mut saving = Saving::new(2, Step(0));
        saving.wrote(0, &saved(5, "same", "x"));
        saving.wrote(1, &saved(5, "same", "y"));
        assert!(saving.commit().unwrap_err().contains("under the name same"));
    }

    #[test]
    fn incomplete_checkpoints_are_bounded() {
        let mut saving = Saving::new(2, Step(0));
        for step in 1..100 {
            saving.wrote(0, &saved(step, "a", "x"));
        }
        assert_eq!(saving.incomplete.len(), MAX_INCOMPLETE);
    }
}
