//! Rules of what the coordinator says and does.

use coxswain_core::cluster::{Effect, Event, FormedRank, JobState, JobSummary, WorkerSummary};
use coxswain_core::plan;
use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{DesiredState, Fault, Phase, StepReport, WorkerStatus};

use super::{JUDGED_MS, LEASE_MS};
use crate::coordinator::at_work;
use crate::truth;
use crate::world::World;

/// How often the dear checks are made: once in so many events.
const SAMPLED: u64 = 64;
const SELDOM: u64 = 512;

/// What a rank was told to do.
pub(crate) struct SimPart {
    data_index: u32,
    tensor_index: u32,
    layers: Vec<u32>,
    micro_batches: Vec<u32>,
}

/// How things were before an event that may change nothing.
pub(crate) struct Before {
    jobs: Vec<JobSummary>,
    at_work: Vec<(String, Generation)>,
}

/// Whether an effect changes something that lasts.
fn lasts(effect: &Effect) -> bool {
    !matches!(effect, Effect::Notice(_) | Effect::Wake(_) | Effect::Refuse { .. })
}

impl World {
    /// The coordinator has begun a new life.
    pub(crate) fn judge_boot(&mut self) {
        self.judge.seen_ms.clear();
        self.judge.members.clear();
        self.judge.leaving.clear();
        self.judge.known = self.judge.formed.clone();
        for record in self.judge.jobs.values_mut() {
            if let Some(running) = &mut record.running {
                running.complained_ms = None;
                running.paused_ms = None;
                running.own = false;
            }
            // How often a job was interrupted is not in the journal.
            record.since_any = 0;
        }
        self.compare_with_journal();
    }

    /// A status is about to be handled.
    pub(crate) fn judge_status(&mut self, status: &WorkerStatus) {
        let (info, now_ms, life) = (&status.info, self.coordinator.now_ms(), self.coordinator.life);
        if self.judge.is_old(&info.id, info.incarnation) {
            return;
        }
        self.judge.known.insert(info.id.clone(), info.incarnation);
        self.judge.members.insert(info.id.clone(), info.incarnation);
        self.judge.seen_ms.insert((info.id.clone(), info.incarnation), now_ms);
        match status.leaving {
            Some(_) => self.judge.leaving.insert(info.id.clone(), info.incarnation),
            None => self.judge.leaving.remove(&info.id),
        };
        let newest = self.judge.newest_of(&info.id);
        let Some(running) = self.judge.running_of(&info.id) else { return };
        let seat = running.ranks.iter().find(|rank| rank.worker == info.id);
        let other = seat.is_some_and(|seat| seat.incarnation != info.incarnation);
        let of_generation = status.generation == running.generation;
        let forgot = running.life != life && status.phase == Phase::Idle;
        match &status.phase {
            Phase::Failed { fault, .. } if of_generation => {
                // Where a device never worked, another is not tried.
                running.own |= *fault == Fault::Own || (*fault == Fault::Device && newest == Some(0));
                running.complain(now_ms);
            }
            _ if other || forgot => running.complain(now_ms),
            _ => {}
        }
    }

    /// A stream of a process has ended, and the coordinator is about to count it as lost.
    pub(crate) fn judge_lost(&mut self, process: usize, connection: usize) {
        let info = self.processes[process].status.info.clone();
        let now_ms = self.coordinator.now_ms();
        let me = &self.processes[process];
        if let Some(other) = me.connection.filter(|other| *other != connection && me.alive) {
            let link = &self.network.connections[other];
            if link.life == self.coordinator.life && link.heard && link.spoken {
                self.broken("L4", format!("{} counts as lost, and speaks on a newer stream", info.id));
            }
        }
        if self.judge.members.get(&info.id) == Some(&info.incarnation) {
            self.judge.members.remove(&info.id);
            self.complain_of(&info.id, info.incarnation, now_ms);
        }
    }

    fn complain_of(&mut self, worker: &WorkerId, incarnation: u64, now_ms: u64) {
        if let Some(running) = self.judge.running_of(worker)
            && running.ranks.iter().any(|rank| rank.worker == *worker && rank.incarnation == incarnation)
            && !running.awaits(now_ms)
        {
            running.complain(now_ms);
        }
    }

    /// How things are, where what comes may change nothing: S8.
    pub(crate) fn judge_before(&mut self, now_ms: u64, event: &Event) -> Option<Before> {
        let Event::Seen { status } = event else { return None };
        let info = &status.info;
        let old = self.judge.is_old(&info.id, info.incarnation);
        let cluster = &self.coordinator.cluster;
        // What is due by its time happens whatever is said.
        if !old || cluster.next_deadline_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            return None;
        }
        Some(Before { jobs: cluster.jobs(), at_work: at_work(cluster) })
    }

    /// What follows from an event, before it is done.
    pub(crate) fn judge_effects(
        &mut self,
        now_ms: u64,
        event: &Event,
        effects: &[Effect],
        before: Option<Before>,
    ) {
        if let Event::Paused { .. } = event {
            self.judge.seen_ms.values_mut().for_each(|seen_ms| *seen_ms = now_ms);
            for record in self.judge.jobs.values_mut() {
                if let Some(running) = &mut record.running {
                    running.paused_ms = Some(now_ms);
                }
            }
        }
        if let Some(before) = before {
            let cluster = &self.coordinator.cluster;
            let same = before.jobs == cluster.jobs() && before.at_work == at_work(cluster);
            let refused = effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. }));
            if !same || !refused || effects.iter().any(lasts) {
                self.broken("S8", format!("a process that was replaced is not just refused: {effects:?}"));
            }
        }
        // Some for each worker and job, and one for each report of a full status.
        let most = 64 + 4 * self.slots.len() + 8 * self.judge.jobs.len() + 256;
        if effects.len() > most {
            self.broken("S12", format!("{} effects of one event", effects.len()));
        }
        for effect in effects {
            let Effect::Refuse { worker, incarnation, .. } = effect else { continue };
            if self.judge.members.get(worker) != Some(incarnation) {
                continue;
            }
            let seen_ms = self.judge.seen_ms.get(&(worker.clone(), *incarnation)).copied();
            if seen_ms.is_some_and(|seen_ms| now_ms < seen_ms + LEASE_MS) {
                self.broken(
                    "L4",
                    format!("{worker} is sent away at {now_ms} ms and spoke at {seen_ms:?} ms"),
                );
            }
            self.judge.members.remove(worker);
            self.complain_of(worker, *incarnation, now_ms);
        }
        let due = self.coordinator.cluster.next_deadline_ms();
        if *event == Event::Tick && due.is_some_and(|due_ms| due_ms <= now_ms) {
            self.broken("S12", format!("the timer of {due:?} ms is due again at once, at {now_ms} ms"));
        }
    }

    /// All that follows from an event is done.
    pub(crate) fn judge_after(&mut self, now_ms: u64, event: &Event, effects: &[Effect]) {
        self.judge_admission(event);
        let sampled = self.chance.checks.below(SAMPLED) == 0;
        if sampled || effects.iter().any(|effect| matches!(effect, Effect::Record(_))) {
            self.compare_with_journal();
        }
        if sampled {
            self.judge_times(now_ms);
            self.judge_again(now_ms, event);
        }
        // Draws happen whatever the entries are, so that a seed stays the same run.
        let seldom = self.chance.checks.below(SELDOM) == 0;
        if self.records_first(effects) || seldom {
            self.judge_replay();
        }
    }

    /// Whether an entry is the first of its kind in this run. What a restart makes of each kind is judged at least once,
    /// so that no kind depends on a crash at the right moment.
    fn records_first(&mut self, effects: &[Effect]) -> bool {
        let mut first = false;
        for effect in effects {
            if let Effect::Record(entry) = effect {
                first |= self.judge.replayed.insert(std::mem::discriminant(entry));
            }
        }
        first
    }

    /// A process is not taken in where a newer one of its name had a rank: the journal knows that one.
    fn judge_admission(&mut self, event: &Event) {
        let Event::Seen { status } = event else { return };
        let info = &status.info;
        if self.judge.formed.get(&info.id).is_none_or(|newest| *newest <= info.incarnation) {
            return;
        }
        let here =
            |worker: &WorkerSummary| worker.info.incarnation == info.incarnation && worker.info.id == info.id;
        if self.coordinator.cluster.workers().iter().any(here) {
            self.broken("S8", format!("an older process of {} is taken in", info.id));
        }
    }

    /// Who is silent is counted as lost in time, and what is complained of is judged in time.
    fn judge_times(&mut self, now_ms: u64) {
        // A coordinator that was stopped has its timer behind what waited.
        if self.now_us < self.coordinator.stalled_until_us + 2_000_000 {
            return;
        }
        for (worker, incarnation) in self.judge.members.clone() {
            let seen_ms = self.judge.seen_ms.get(&(worker.clone(), incarnation)).copied().unwrap_or(now_ms);
            if seen_ms + LEASE_MS + 50 < now_ms {
                self.broken(
                    "lease",
                    format!("{worker} was silent since {seen_ms} ms and is here at {now_ms} ms"),
                );
            }
        }
        let due = self.judge.jobs.iter().find_map(|(job, record)| {
            let running = record.running.as_ref()?;
            let since_ms = running.complained_ms.filter(|since_ms| since_ms + JUDGED_MS < now_ms)?;
            Some(format!("{job} cannot go on since {since_ms} ms, and does at {now_ms} ms"))
        });
        if let Some(text) = due {
            self.broken("L1", text);
        }
    }

    /// What is said twice changes nothing the second time: S9.
    fn judge_again(&mut self, now_ms: u64, event: &Event) {
        let due = self.coordinator.cluster.next_deadline_ms();
        if !matches!(event, Event::Seen { .. }) || due.is_some_and(|due_ms| due_ms <= now_ms) {
            return;
        }
        let mut again = self.coordinator.cluster.clone();
        let effects = again.handle(now_ms, event.clone());
        if effects.iter().any(lasts) || again.jobs() != self.coordinator.cluster.jobs() {
            self.broken("S9", format!("what was said twice had these effects the second time: {effects:?}"));
        }
    }

    /// What lives is what is on disk.
    pub(crate) fn compare_with_journal(&mut self) {
        let cluster = &self.coordinator.cluster;
        let mut at_work = at_work(cluster);
        let mut on_disk: Vec<_> = self
            .judge
            .jobs
            .iter()
            .filter_map(|(job, record)| Some((job.clone(), record.running.as_ref()?.generation)))
            .collect();
        at_work.sort();
        on_disk.sort();
        if at_work != on_disk {
            return self.broken("journal", format!("at work are {at_work:?}, and on disk {on_disk:?}"));
        }
        for summary in cluster.jobs() {
            let Some(record) = self.judge.jobs.get(&summary.job) else {
                return self.broken("journal", format!("{} is not on disk", summary.job));
            };
            let ended = match summary.state {
                JobState::Ended(ending) => Some(ending),
                _ => None,
            };
            let step = summary.checkpoint.as_ref().map_or(Step(0), |checkpoint| checkpoint.step);
            if ended != record.ended || step < record.published {
                let (state, published) = (summary.state, record.published);
                let text = format!(
                    "{} is {state:?} with step {step}, and on disk {:?} with {published}",
                    summary.job, record.ended
                );
                return self.broken("journal", text);
            }
        }
    }

    /// A step is about to be written to the metrics: S4, S5.
    pub(crate) fn judge_report(&mut self, job: &str, report: &StepReport) {
        let Some(record) = self.judge.jobs.get_mut(job) else { return };
        let directory = record.directory.clone();
        record.since_any = 0;
        if report.step > record.newest {
            record.newest = report.step;
            record.since_new = 0;
        }
        if record.running.is_none() || report.step > record.steps {
            return self
                .broken("S3", format!("step {} of {job} is told and nothing is at work", report.step));
        }
        let bits = (report.loss.to_bits(), report.grad_norm.to_bits());
        let (loss, norm) = truth::measured(self.truth(&directory, report.step));
        if bits != (loss.to_bits(), norm.to_bits()) {
            self.broken("S5", format!("step {} of {job} has other bits than the true ones", report.step));
        }
    }

    /// The newest step that the metrics of a job's folder have.
    pub(crate) fn last_written(&self, job: &str) -> Step {
        let record = self.judge.jobs.get(job);
        let folder = record.and_then(|record| self.folders.get(&record.directory));
        let last = folder.and_then(|folder| folder.metrics.keys().next_back().copied());
        Step(last.unwrap_or_default())
    }

    /// The report of a step is in the run's folder.
    pub(crate) fn judge_written(&mut self, job: &str, report: &StepReport) {
        let Some(record) = self.judge.jobs.get(job) else { return };
        let metrics = &mut self.folders.entry(record.directory.clone()).or_default().metrics;
        let bits = (report.loss.to_bits(), report.grad_norm.to_bits());
        let last = metrics.keys().next_back().copied().unwrap_or_default();
        // What was noted before a restart may be told again, and is noted once.
        if report.step <= last {
            return;
        }
        metrics.insert(report.step, bits);
        if report.step != last + 1 && !self.judge.jobs.get(job).is_some_and(|record| record.excused) {
            self.broken("S4", format!("step {} of {job} is told after step {last}", report.step));
        }
    }

    /// Old checkpoints are about to be let go.
    pub(crate) fn judge_prune(&mut self, job: &str, keep: u32) {
        let Some(record) = self.judge.jobs.get(job) else { return };
        let open = record.running.as_ref().is_some_and(|running| running.committed.is_some());
        if open || record.published == Step(0) || keep != record.keep {
            self.broken(
                "S6",
                format!("{job} lets go of all but {keep} checkpoints before the next is published"),
            );
        }
    }

    /// A rank cannot go on. Its own fault has to be one that was made.
    pub(crate) fn judge_fault(&mut self, process: usize, message: &str, fault: Fault) {
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        let excused = self.judge.jobs.get(&assignment.job).is_some_and(|record| record.excused);
        if fault == Fault::Own && !excused && self.at_work(&assignment.job, assignment.generation) {
            self.broken("S6", format!("rank {} cannot go on: {message}", assignment.rank.0));
        }
    }

    /// A desired state is about to be sent.
    pub(crate) fn judge_desired(&mut self, worker: &WorkerId, connection: usize, desired: &DesiredState) {
        let process = self.network.connections[connection].process;
        let asked = self.judge.asked.entry(process).or_default();
        if desired.generation < *asked {
            let asked = *asked;
            return self
                .broken("S1", format!("{worker} hears of generation {} after {asked}", desired.generation));
        }
        *asked = desired.generation;
        if desired.generation > self.judge.generation {
            return self
                .broken("S1", format!("{worker} hears of {}, which is not on disk", desired.generation));
        }
        let incarnation = self.processes[process].status.info.incarnation;
        if desired.leave.is_some() && !self.judge.wants_out(worker, incarnation) {
            return self.broken("L4", format!("{worker} is sent away for nothing"));
        }
        let Some(digest) = &desired.assignment_digest else { return };
        let running = self.judge.jobs.values().find(|record| {
            record.running.as_ref().is_some_and(|running| running.generation == desired.generation)
        });
        let Some((record, running)) = running.and_then(|record| Some((record, record.running.as_ref()?)))
        else {
            let generation = desired.generation;
            return self
                .broken("S3", format!("{worker} is asked to work for {generation}, which is not at work"));
        };
        let here = |rank: &FormedRank| {
            rank.worker == *worker && rank.incarnation == incarnation && rank.digest == *digest
        };
        let rank = running.ranks.iter().position(here);
        let lead = rank == Some(0);
        let metrics = self.folders.get(&record.directory).map(|folder| &folder.metrics);
        let told = metrics.and_then(|metrics| metrics.keys().next_back().copied()).unwrap_or_default();
        let committed = running.committed.as_ref().map(|(step, _)| *step);
        let decided = committed.unwrap_or(running.published);
        let publish = desired.publish.as_ref().map(|publish| (publish.step, publish.files.clone()));
        let fault = if rank.is_none() {
            Some(("S2", "the place of somebody else".to_owned()))
        } else if publish.is_some() && (publish != running.committed || !lead) {
            Some(("S6", format!("to publish {:?}, and {committed:?} is committed", publish.map(|p| p.0))))
        } else if desired.directive() != running.directive {
            Some(("S3", format!("{:?}, and {:?} is on disk", desired.directive(), running.directive)))
        } else if desired.leave.is_some() {
            Some(("L4", "that it shall leave its run".to_owned()))
        } else if desired.decided != decided {
            Some(("S6", format!("that step {} is decided, and {decided} is", desired.decided)))
        } else if desired.acknowledged.0 > told.max(running.from.0) && !record.excused {
            Some(("S4", format!("that step {} is recorded, and {told} is", desired.acknowledged)))
        } else {
            None
        };
        if let Some((rule, text)) = fault {
            self.broken(rule, format!("{worker} of generation {} hears {text}", desired.generation));
        }
    }

    /// A worker reads what it was sent: S10.
    pub(crate) fn check_assignment(&mut self, process: usize, digest: &str, assignment: &Assignment) {
        let worker = self.processes[process].status.info.id.clone();
        if assignment.worker != worker || plan::encode(assignment).1 != *digest {
            return self.broken("S2", format!("{worker} got the assignment of {}", assignment.worker));
        }
        let owned = assignment.owned_runs.start as usize..assignment.owned_runs.end as usize;
        let part = SimPart {
            data_index: assignment.data_index,
            tensor_index: assignment.tensor_index,
            layers: assignment.stages.iter().flat_map(|stage| stage.layers.clone()).collect(),
            micro_batches: assignment.runs[owned].iter().flat_map(Clone::clone).collect(),
        };
        let parts = self.judge.parts.entry(assignment.generation).or_default();
        parts.insert(assignment.rank.0, part);
        if parts.len() < assignment.world as usize {
            return;
        }
        let Some(parts) = self.judge.parts.remove(&assignment.generation) else { return };
        let spec = &assignment.spec;
        for data in 0..spec.layout.data {
            for tensor in 0..spec.layout.tensor {
                let here = |part: &&SimPart| part.data_index == data && part.tensor_index == tensor;
                let mut layers: Vec<_> = parts.values().filter(here).flat_map(|p| p.layers.clone()).collect();
                layers.sort_unstable();
                if layers != (0..spec.model.layers).collect::<Vec<_>>() {
                    self.broken(
                        "S10",
                        format!("generation {} has the layers {layers:?}", assignment.generation),
                    );
                }
            }
        }
        let mut firsts: Vec<_> = parts.values().filter(|part| part.tensor_index == 0).collect();
        firsts.sort_by_key(|part| part.data_index);
        firsts.dedup_by_key(|part| part.data_index);
        let micro_batches: Vec<_> = firsts.iter().flat_map(|part| part.micro_batches.clone()).collect();
        if micro_batches != (0..spec.train.global_micro_batches).collect::<Vec<_>>() {
            self.broken("S10", format!("generation {} takes {micro_batches:?}", assignment.generation));
        }
    }
}
