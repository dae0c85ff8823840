//! Rules of what is written down, checked when an entry is on disk.

use coxswain_core::cluster::{Ending, Entry, FormedRank};
use coxswain_types::ids::{Generation, Step};
use coxswain_types::job::OnLoss;
use coxswain_types::status::{Published, SavedFile};

use super::{JobRecord, MAX_SETBACKS, RETURN_MS, Running};
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
                    world: spec.layout.world(),
                    steps: spec.train.steps,
                    keep: spec.checkpoint.keep,
                    fails_on_loss: spec.recovery.on_loss == OnLoss::Fail,
                    running: None,
                    ended: None,
                    published: Step(0),
                    threads: None,
                    since_new: 0,
                    since_any: 0,
                    newest: 0,
                    excused: false,
                    cancelled: false,
                };
                let before = self.judge.jobs.insert(submission.job.clone(), record);
                before.map(|_| ("S9", format!("{} was accepted twice", submission.job)))
            }
            Entry::Formed { job, generation, ranks, threads, from } => {
                self.judge_formed(job, *generation, ranks, *threads, *from)
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
            let of = |process: &&crate::worker::Process| process.status.info.incarnation == rank.incarnation;
            self.processes.iter().find(of).map(|process| process.status.info.runtime.clone())
        };
        let mut runtimes: Vec<_> = ranks.iter().map(runtime).collect();
        runtimes.dedup();
        if runtimes.len() != 1 || runtimes[0].as_ref().is_none_or(String::is_empty) {
            return Some(("S8", format!("generation {generation} computes with {runtimes:?}")));
        }
        let life = self.coordinator.life;
        let healed = self.healed;
        let Some(record) = self.judge.jobs.get_mut(job) else {
            return Some(("S6", format!("{job} runs, and its submission is not on disk")));
        };
        if record.ended.is_some() || record.running.is_some() {
            return Some(("S3", format!("generation {generation} of {job}, which runs or is over")));
        }
        if ranks.len() != record.world as usize {
            return Some(("S2", format!("{} ranks for a layout of {}", ranks.len(), record.world)));
        }
        let (directory, known) = (record.directory.clone(), record.published);
        let before = record.threads.replace(threads);
        record.running = Some(Running {
            generation,
            ranks: ranks.to_vec(),
            from,
            committed: None,
            published: from,
            complained_ms: None,
            own: false,
            life,
        });
        if healed {
            *self.judge.formed_since.entry(job.to_owned()).or_default() += 1;
        }
        if from < known {
            return Some(("S13", format!("{job} goes on from step {from}, and {known} was published")));
        }
        let folder = self.folders.entry(directory.clone()).or_default();
        let threads_before = before.or((from > Step(0)).then(|| folder.threads(from)));
        if threads_before.is_some_and(|before| before != threads) {
            return Some(("S4", format!("{threads} threads, and {threads_before:?} before: other bits")));
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
        record.since_new += 1;
        record.since_any += 1;
        if record.since_any > MAX_SETBACKS {
            return Some((
                "setbacks",
                format!("{job} was interrupted {} times without a step", record.since_any),
            ));
        }
        let missing = running.life != life && now_ms >= RETURN_MS;
        if running.complained_ms.is_none() && !missing {
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

    fn judge_ended(&mut self, job: &str, ending: Ending, reason: &str) -> Option<(&'static str, String)> {
        let (life, now_ms) = (self.coordinator.life, self.coordinator.now_ms());
        let record = self.judge.jobs.get_mut(job)?;
        if record.ended.replace(ending).is_some() {
            return Some(("S9", format!("{job} ended twice")));
        }
        let running = record.running.take();
        let lost = running.as_ref().is_some_and(|running| {
            running.complained_ms.is_some() || (running.life != life && now_ms >= RETURN_MS)
        });
        let own = running.as_ref().is_some_and(|running| running.own);
        let tired = record.since_new >= MAX_SETBACKS && lost;
        let may = match ending {
            Ending::Failed => record.excused || own || tired || (lost && record.fails_on_loss),
            Ending::Cancelled => record.cancelled,
            Ending::Done => {
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
