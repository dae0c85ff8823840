//! Rules of what is written down, checked when an entry is on disk.

use coxswain_core::cluster::{Entry, FormedRank, JobEnding};
use coxswain_types::ids::{Generation, Step};
use coxswain_types::job::{Layout, OnLoss, Schedule};
use coxswain_types::status::{Directive, Published, SavedFile};

use super::{JobRecord, MAX_FAILED_ATTEMPTS, MAX_TRIES, Running};
use crate::world::World;

impl World {
    /// An entry is on disk.
    pub(crate) fn judge_recorded(&mut self, entry: &Entry) {
        self.judge.entries += 1;
        let fault = match entry {
            Entry::Submitted(submission) => {
                let spec = &submission.spec;
                let record = JobRecord {
                    directory: submission.directory.clone(),
                    layout: spec.layout,
                    steps: spec.train.steps,
                    keep: spec.checkpoint.keep,
                    on_loss: spec.recovery.on_loss,
                    rebalance: spec.recovery.rebalance,
                    every_minutes: spec.checkpoint.every_minutes,
                    running: None,
                    ended: None,
                    published: Step(0),
                    made: None,
                    since_new: 0,
                    since_any: 0,
                    newest: 0,
                    excused: false,
                    cancelled: false,
                    cancelling: false,
                };
                let before = self.judge.jobs.insert(submission.job.clone(), record);
                before.map(|_| ("S9", format!("{} was accepted twice", submission.job)))
            }
            Entry::Started { epoch } => {
                let before = std::mem::replace(&mut self.judge.epoch, *epoch);
                (*epoch != before + 1).then(|| ("S1", format!("start {epoch} after {before}")))
            }
            Entry::Noted { .. } | Entry::Begun { .. } | Entry::Compacted { .. } | Entry::Prepared { .. } => {
                None
            }
            Entry::Preparing { job, tries } => {
                // The next coordinator may not try again.
                if *tries >= MAX_TRIES {
                    self.judge.excuse(job);
                }
                let record = self.judge.jobs.get(job);
                let new = record.is_some_and(|record| record.running.is_none());
                (!new).then(|| ("S9", format!("{job} is prepared anew while it is at work")))
            }
            Entry::Formed { job, generation, ranks, threads, from, revision, layout, .. } => self
                .judge_size(job, ranks, *layout)
                .or_else(|| self.judge_formed(job, *generation, ranks, *threads, *from))
                .or_else(|| self.judge_directive(job, *generation, *revision, None, Step(0))),
            Entry::Cancelling { job, .. } => {
                let record = self.judge.jobs.get_mut(job).filter(|record| record.running.is_some());
                let first = record.is_some_and(|record| !std::mem::replace(&mut record.cancelling, true));
                (!first).then(|| ("S9", format!("{job} is cancelled twice, or is not at work")))
            }
            Entry::Stopping { job, generation, revision, reason } => self
                .judge_stopping(job, *generation, reason)
                .or_else(|| self.judge_directive(job, *generation, *revision, Some(Step(0)), Step(0))),
            Entry::Saving { job, generation, revision, after } => self
                .judge_saving(job, *generation, *after)
                .or_else(|| self.judge_directive(job, *generation, *revision, None, *after)),
            Entry::Regrouped { job, generation, step, .. } => self.judge_regrouped(job, *generation, *step),
            Entry::Drained { worker, incarnation, .. } => {
                let before = self.judge.drained.insert(worker.clone(), *incarnation);
                for newest in [&mut self.judge.formed, &mut self.judge.known] {
                    let newest = newest.entry(worker.clone()).or_default();
                    *newest = (*incarnation).max(*newest);
                }
                (before > Some(*incarnation))
                    .then(|| ("drain", format!("an older process of {worker} is drained")))
            }
            Entry::Interrupted { job, generation, reason } => {
                self.judge_interrupted(job, *generation, reason)
            }
            Entry::Committed { job, generation, step, files } => {
                self.judge_committed(job, *generation, *step, files)
            }
            Entry::Published { job, checkpoint } => self.judge_published(job, checkpoint),
            Entry::Ended { job, ending, reason } => self.judge_ended(job, *ending, reason),
        };
        if let Some((rule, text)) = fault {
            self.broken(rule, text);
        }
    }

    fn judge_formed(
        &mut self,
        job: &str,
        generation: Generation,
        ranks: &[FormedRank],
        threads: u32,
        from: Step,
    ) -> Option<(&'static str, String)> {
        if generation <= self.judge.generation {
            return Some(("S1", format!("generation {generation} after {}", self.judge.generation)));
        }
        self.judge.generation = generation;
        let mut names: Vec<_> = ranks.iter().map(|rank| &rank.worker).collect();
        names.sort();
        names.dedup();
        if names.len() != ranks.len() {
            return Some(("S2", format!("a worker has two ranks of generation {generation}")));
        }
        for rank in ranks {
            if let Some(other) = self.judge.running_of(&rank.worker) {
                let other = other.generation;
                return Some(("S2", format!("{} is of generation {other} and {generation}", rank.worker)));
            }
            if self.judge.wants_out(&rank.worker, rank.incarnation) {
                return Some(("drain", format!("{} has a place and shall leave", rank.worker)));
            }
            if self.judge.members.get(&rank.worker).is_some_and(|member| *member != rank.incarnation) {
                return Some((
                    "S8",
                    format!("{} has a newer process than generation {generation}", rank.worker),
                ));
            }
            let newest = self.judge.formed.entry(rank.worker.clone()).or_default();
            if rank.incarnation < *newest {
                return Some((
                    "S1",
                    format!("generation {generation} has an older process of {}", rank.worker),
                ));
            }
            *newest = rank.incarnation;
        }
        let runtime = |rank: &FormedRank| {
            let of =
                |process: &&crate::worker::SimProcess| process.status.info.incarnation == rank.incarnation;
            self.processes.iter().find(of).map(|process| process.status.info.runtime.clone())
        };
        let mut runtimes: Vec<_> = ranks.iter().map(runtime).collect();
        runtimes.dedup();
        let [Some(runtime)] = runtimes.as_slice() else {
            return Some(("S8", format!("generation {generation} computes with {runtimes:?}")));
        };
        if runtime.is_empty() {
            return Some(("S8", format!("generation {generation} does not say what it computes with")));
        }
        let life = self.coordinator.life;
        let healed = self.healed;
        let Some(record) = self.judge.jobs.get_mut(job) else {
            return Some(("S6", format!("{job} runs, and its submission is not on disk")));
        };
        if record.ended.is_some() || record.running.is_some() || record.cancelling {
            return Some((
                "S3",
                format!("generation {generation} of {job}, which runs, is cancelled or is over"),
            ));
        }
        let (directory, known) = (record.directory.clone(), record.published);
        let before = record.made.replace((threads, runtime.clone()));
        record.running = Some(Running {
            generation,
            ranks: ranks.to_vec(),
            from,
            committed: None,
            published: from,
            complained_ms: None,
            paused_ms: None,
            own: false,
            life,
            directive: Directive::default(),
            shrunk: ranks.len() < record.layout.world() as usize,
        });
        self.judge.formed_ever.insert(job.to_owned());
        if healed {
            *self.judge.formed_since.entry(job.to_owned()).or_default() += 1;
        }
        if from < known {
            return Some(("S13", format!("{job} goes on from step {from}, and {known} was published")));
        }
        let folder = self.folders.entry(directory.clone()).or_default();
        let before = before.or((from > Step(0)).then(|| folder.made(from)));
        if let Some(before) = before.filter(|before| *before != (threads, runtime.clone())) {
            return Some((
                "S4",
                format!("{threads} threads and {runtime}, and {before:?} before: other bits"),
            ));
        }
        if from > Step(0) {
            let found = folder.read(from, None);
            let truth = self.truth(&directory, from.0);
            if found != Ok(truth) {
                return Some(("S13", format!("{job} goes on from step {from}, which holds {found:x?}")));
            }
        }
        None
    }

    /// A generation is as large as its job says, or where the job may shrink as the layout that is noted.
    fn judge_size(
        &self,
        job: &str,
        ranks: &[FormedRank],
        layout: Option<Layout>,
    ) -> Option<(&'static str, String)> {
        let record = self.judge.jobs.get(job)?;
        let own = record.layout;
        let fault = match layout {
            None if ranks.len() != own.world() as usize => format!("for a layout of {}", own.world()),
            None => return None,
            Some(layout) => {
                let kept = Layout { pipeline: own.pipeline, data: own.data, ..layout };
                let plain = Layout { schedule: Schedule::OneFOneB, ..own };
                let less = layout.pipeline <= own.pipeline && layout.data <= own.data;
                let begun = self.judge.formed_ever.contains(job);
                let may = record.on_loss == OnLoss::Shrink && begun;
                let fits = ranks.len() == layout.world() as usize && layout.world() < own.world();
                if may && fits && less && (kept == own || kept == plain) {
                    return None;
                }
                format!("for {layout:?} of {own:?}")
            }
        };
        Some(("S2", format!("{job} has {} ranks {fault}", ranks.len())))
    }

    /// Numbers of directives grow, over restarts too.
    fn judge_directive(
        &mut self,
        job: &str,
        generation: Generation,
        revision: u64,
        run_to: Option<Step>,
        save_after: Step,
    ) -> Option<(&'static str, String)> {
        let before = std::mem::replace(&mut self.judge.revision, revision);
        let record = self.judge.jobs.get_mut(job)?;
        let run_to = run_to.unwrap_or(Step(record.steps));
        record.running.as_mut()?.directive = Directive { revision, run_to, save_after };
        (revision <= before)
            .then(|| ("S1", format!("directive {revision} of generation {generation} after {before}")))
    }

    fn judge_stopping(
        &mut self,
        job: &str,
        generation: Generation,
        reason: &str,
    ) -> Option<(&'static str, String)> {
        let running = self.judge.jobs.get(job)?.running.as_ref();
        let Some(running) = running.filter(|running| running.generation == generation) else {
            return Some(("S3", format!("generation {generation} of {job} shall stop and is not at work")));
        };
        if running.directive.run_to == Step(0) {
            return Some(("S9", format!("generation {generation} of {job} shall stop twice")));
        }
        let out = |rank: &FormedRank| self.judge.wants_out(&rank.worker, rank.incarnation);
        let slow = |rank: &FormedRank| self.judge.slow.contains(&rank.worker);
        let unbalanced = self.judge.jobs.get(job)?.rebalance && running.ranks.iter().any(slow);
        let cancelling = self.judge.jobs.get(job)?.cancelling;
        let cause = cancelling || running.shrunk || unbalanced || running.ranks.iter().any(out);
        (!cause).then(|| ("L4", format!("{job} shall stop for nothing: {reason}")))
    }

    /// A save by time is asked for where the job counts time, of ranks that are not asked for anything else.
    fn judge_saving(
        &mut self,
        job: &str,
        generation: Generation,
        after: Step,
    ) -> Option<(&'static str, String)> {
        let record = self.judge.jobs.get(job)?;
        let running = record.running.as_ref().filter(|running| running.generation == generation);
        let Some(running) = running else {
            return Some(("S3", format!("generation {generation} of {job} shall save and is not at work")));
        };
        let busy = running.directive.run_to == Step(0) || running.directive.save_after > running.published;
        let nothing = record.every_minutes == 0 || after <= running.published;
        (busy || nothing).then(|| ("L4", format!("{job} shall save after step {after} for nothing")))
    }

    fn judge_regrouped(
        &mut self,
        job: &str,
        generation: Generation,
        step: Step,
    ) -> Option<(&'static str, String)> {
        let record = self.judge.jobs.get_mut(job)?;
        let Some(running) = record.running.take().filter(|running| running.generation == generation) else {
            return Some(("S8", format!("generation {generation} of {job} is regrouped and not at work")));
        };
        if running.directive.run_to != Step(0) {
            return Some(("L4", format!("generation {generation} of {job} stopped unasked")));
        }
        if record.cancelling {
            return Some(("S6", format!("{job} is cancelled and is gathered again")));
        }
        let open = running.committed.is_some() || running.published != step || step.0 >= record.steps;
        open.then(|| ("S6", format!("{job} is regrouped after step {step}, which is not saved or the last")))
    }

    fn judge_interrupted(
        &mut self,
        job: &str,
        generation: Generation,
        reason: &str,
    ) -> Option<(&'static str, String)> {
        let (life, now_ms) = (self.coordinator.life, self.coordinator.now_ms());
        let record = self.judge.jobs.get_mut(job)?;
        let Some(running) = record.running.take().filter(|running| running.generation == generation) else {
            return Some(("S8", format!("generation {generation} of {job} is interrupted and not at work")));
        };
        if record.cancelling {
            return Some(("S6", format!("{job} is cancelled and is gathered again")));
        }
        record.since_new += 1;
        record.since_any += 1;
        if record.since_any > MAX_FAILED_ATTEMPTS {
            return Some((
                "failed_attempts",
                format!("{job} was interrupted {} times without a step", record.since_any),
            ));
        }
        if !running.is_lost(life, now_ms) {
            return Some(("L4", format!("{job} was interrupted for nothing: {reason}")));
        }
        None
    }

    fn judge_committed(
        &mut self,
        job: &str,
        generation: Generation,
        step: Step,
        files: &[SavedFile],
    ) -> Option<(&'static str, String)> {
        let record = self.judge.jobs.get_mut(job)?;
        let directory = record.directory.clone();
        let Some(running) = record.running.as_mut().filter(|running| running.generation == generation) else {
            return Some(("S3", format!("generation {generation} of {job} commits and is not at work")));
        };
        if running.committed.is_some() || step <= running.published {
            return Some(("S4", format!("step {step} is committed after {:?}", running.committed)));
        }
        let expected: Vec<_> =
            (0..running.ranks.len()).map(|rank| format!("model-g{generation}-r{rank:03}")).collect();
        let names: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
        running.committed = Some((step, files.to_vec()));
        if names != expected {
            return Some(("S7", format!("step {step} of generation {generation} is made of {names:?}")));
        }
        let truth = self.truth(&directory, step.0);
        let folder = self.folders.entry(directory).or_default();
        let fault = folder.fault_of(step, files, truth)?;
        Some(("S6", format!("step {step} of {job} is committed: {fault}")))
    }

    fn judge_published(&mut self, job: &str, checkpoint: &Published) -> Option<(&'static str, String)> {
        let step = checkpoint.step;
        let record = self.judge.jobs.get_mut(job)?;
        let directory = record.directory.clone();
        let Some(running) = record.running.as_mut() else {
            return Some(("S3", format!("step {step} of {job} is published and nothing is at work")));
        };
        if running.committed.take().is_none_or(|(committed, _)| committed != step) {
            return Some(("S6", format!("step {step} of {job} is published and was not committed")));
        }
        running.published = step;
        record.published = step;
        self.judge_folder(&directory);
        None
    }

    fn judge_ended(&mut self, job: &str, ending: JobEnding, reason: &str) -> Option<(&'static str, String)> {
        let (life, now_ms) = (self.coordinator.life, self.coordinator.now_ms());
        let record = self.judge.jobs.get_mut(job)?;
        if record.ended.replace(ending).is_some() {
            return Some(("S9", format!("{job} ended twice")));
        }
        let running = record.running.take();
        let lost = running.as_ref().is_some_and(|running| running.is_lost(life, now_ms));
        let own = running.as_ref().is_some_and(|running| running.own);
        let tired = record.since_new >= MAX_FAILED_ATTEMPTS && lost;
        let may = match ending {
            JobEnding::Failed => record.excused || own || tired || (lost && record.on_loss == OnLoss::Fail),
            JobEnding::Cancelled => record.cancelled,
            JobEnding::Done => {
                let (directory, steps) = (record.directory.clone(), record.steps);
                let truth = self.truth(&directory, steps);
                let folder = self.folders.entry(directory).or_default();
                folder.latest().is_some_and(|(step, _)| step.0 >= steps)
                    && folder.read(Step(steps), None) == Ok(truth)
            }
        };
        (!may).then(|| ("L1", format!("{job} ended ({ending:?}) without a cause: {reason}")))
    }

    /// What readers see in a run's folder: never less than what was published, and the truth.
    pub(crate) fn judge_folder(&mut self, directory: &str) {
        let of = self.judge.jobs.values().filter(|record| record.directory == directory);
        let published = of.map(|record| record.published).max().unwrap_or_default();
        if published == Step(0) {
            return;
        }
        let latest = self.folders.entry(directory.to_owned()).or_default().latest();
        let Some((step, _)) = latest.filter(|(step, _)| *step >= published) else {
            return self.broken("S6", format!("step {published} in {directory} was published and is gone"));
        };
        let truth = self.truth(directory, step.0);
        let found = self.folders.entry(directory.to_owned()).or_default().read(step, None);
        if found != Ok(truth) {
            self.broken("S6", format!("step {step} in {directory} holds {found:x?}, not {truth:x}"));
        }
    }
}
