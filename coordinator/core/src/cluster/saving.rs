//! When a checkpoint is decided. Every rank of a generation says which files it wrote; once all
//! have, the checkpoint is committed in the journal, and the lead rank publishes its manifest. A
//! checkpoint therefore exists for readers only after it cannot be lost.
//!
//! After which steps they write is the job's to say, and where its newest checkpoint is older than the job allows
//! the coordinator's: it asks for a save, and ranks agree in the closing exchange after which step that is.

use coxswain_types::ids::Generation;

use super::Cluster;
use super::entry::Entry;
use super::event::Effect;
use super::job::Job;
use super::revision::RunDirective;
use super::run::GenerationRun;

impl Job {
    /// When its newest checkpoint is too old, where time counts.
    fn save_due_ms(&self) -> Option<u64> {
        let minutes = u64::from(self.submission.spec.checkpoint.every_minutes);
        (minutes > 0).then(|| self.saved_ms.saturating_add(minutes * 60_000))
    }
}

impl GenerationRun {
    /// Whether its ranks can be asked for a save: all know the directive before it, no other save is under way up to
    /// its publication, and there are steps to save that the end of the run does not save anyway.
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
        run.directive = RunDirective { revision, save_after: after, ..RunDirective::default() };
        out.push(Effect::Record(Entry::Saving { job, generation, revision, after }));
        out.extend(run.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())));
    }
}
