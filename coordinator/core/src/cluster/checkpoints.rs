//! The checkpoints of one generation: which ranks have written theirs, which is committed, and which can be read.

use std::collections::BTreeMap;

use coxswain_types::ids::Step;
use coxswain_types::status::{Publish, Published, Saved, SavedFile};

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
        let rank = match by_rank.iter().position(Option::is_none) {
            Some(other) if planted!(AckCountedTwice) => other,
            _ => rank,
        };
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
        let complete = |by_rank: &Vec<Option<_>>| match planted!(CommitWithMissingRank) {
            true => by_rank.iter().any(Option::is_some),
            false => by_rank.iter().all(Option::is_some),
        };
        incomplete.find(|(_, by_rank)| complete(by_rank)).map(|(step, _)| *step)
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
        let asked = asked || planted!(AnyPublishCounts) && self.newest_decided() <= published.step;
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
