//! What a status means for the run of the worker that sent it: one of a few cases, told apart by [`classify`], and
//! what follows from each.

use coxswain_types::ids::{Step, WorkerId};
use coxswain_types::status::{Fault, Phase, WorkerStatus};

use super::event::{Effect, Weight};
use super::job::Job;
use super::run::GenerationRun;
use super::{Cluster, notice};

/// What a worker with a rank says, as the coordinator has to act on it. Texts are the worker's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    /// Another process took the name, or this one lost its assignment.
    Restarted,
    /// It belongs to another generation still.
    Elsewhere {
        /// Whether it has work there.
        busy: bool,
    },
    /// It is in this generation, and has another assignment or none.
    Unassigned,
    /// The checkpoint that it should start from is damaged.
    Damaged(&'a str),
    /// It was asked to stop before its place was taken.
    Leaving(&'a str),
    /// Its device failed, which worked before: another may do better.
    Broke(&'a str),
    /// It works, or failed in a way that is judged once its peers have been heard.
    AtWork,
}

/// Tells the cases apart. `has_worked` says whether the job ever took a step: where it never did, another device would
/// most likely fail as well.
pub(super) fn classify<'a>(
    run: &GenerationRun,
    rank: usize,
    status: &'a WorkerStatus,
    has_worked: impl FnOnce() -> bool,
) -> Heard<'a> {
    if !run.seats[rank].may_be(status) {
        return Heard::Restarted;
    }
    if status.generation != run.generation {
        return Heard::Elsewhere { busy: status.phase != Phase::Idle };
    }
    match &status.phase {
        Phase::Failed { message, fault: Fault::Checkpoint } => Heard::Damaged(message),
        Phase::Failed { message, fault: Fault::Leaving } => Heard::Leaving(message),
        Phase::Failed { message, fault: Fault::Device }
            if (status.step > Step(0) || has_worked()) && !planted!(BrokenDeviceEndsJob) =>
        {
            Heard::Broke(message)
        }
        Phase::Failed { .. } => Heard::AtWork,
        _ if !run.seats[rank].is_named_by(run.generation, status) => Heard::Unassigned,
        _ => Heard::AtWork,
    }
}

impl Cluster {
    /// Acts on what a status means for the run of its worker.
    pub(super) fn observe(&mut self, now_ms: u64, status: &WorkerStatus, out: &mut Vec<Effect>) {
        let worker = &status.info.id;
        let placed = |run: &GenerationRun| run.rank_of(worker);
        let Some((index, rank)) =
            self.runs.iter().enumerate().find_map(|(index, run)| Some((index, placed(run)?)))
        else {
            return self.observe_unplaced(now_ms, status, out);
        };
        let run = &self.runs[index];
        let (id, generation) = (run.job.clone(), run.generation);
        let heard = classify(run, rank, status, || self.job(&id).is_some_and(Job::has_worked));
        // The message with the assignment may have been lost; it is sent again until it is named.
        if heard != Heard::Restarted && !run.seats[rank].is_named_by(generation, status) {
            out.push(Effect::Wake(worker.clone()));
        }
        let cause = |what: &str| run.cause(rank, what);
        match heard {
            Heard::Restarted => self.interrupt(&id, cause("was started again"), out),
            Heard::Elsewhere { busy } => {
                if busy {
                    self.tell_stale(index, rank, status, out);
                }
            }
            Heard::Unassigned => {}
            Heard::Damaged(message) => self.doubt(&id, cause(&format!("cannot go on: {message}")), out),
            Heard::Leaving(message) => self.interrupt(&id, cause(&format!("leaves: {message}")), out),
            Heard::Broke(message) => {
                let cause = cause(&format!("broke: {message}"));
                if let Some(job) = self.job_mut(&id) {
                    job.broke.insert(worker.clone());
                }
                self.interrupt(&id, cause, out);
            }
            Heard::AtWork => self.take_in(now_ms, index, rank, status, out),
        }
    }

    /// Tells a worker without a rank again what is wanted of it, where it does otherwise.
    fn observe_unplaced(&mut self, now_ms: u64, status: &WorkerStatus, out: &mut Vec<Effect>) {
        let worker = &status.info.id;
        if self.wants_out(worker).is_some() {
            out.push(Effect::Wake(worker.clone()));
        } else {
            let deaf = status.assignment_digest.is_some() || self.dismissed.is_some();
            self.remind(now_ms, deaf, worker, out);
        }
    }

    /// Tells people, once, that a rank still works in another generation.
    fn tell_stale(&mut self, index: usize, rank: usize, status: &WorkerStatus, out: &mut Vec<Effect>) {
        let run = &mut self.runs[index];
        let worker = &status.info.id;
        if std::mem::replace(&mut run.seats[rank].stale, true) {
            return;
        }
        let text = format!(
            "worker {worker} speaks of generation {}, but {} is at work: ignored",
            status.generation, run.generation
        );
        let about = notice(Weight::Warning, text).about_run(&run.job, run.generation);
        out.push(Effect::Notice(about.about_worker(worker)));
    }

    /// Takes in what a rank says of its work: its reports, its checkpoints, and how fast it is.
    fn take_in(
        &mut self,
        now_ms: u64,
        index: usize,
        rank: usize,
        status: &WorkerStatus,
        out: &mut Vec<Effect>,
    ) {
        let worker = &status.info.id;
        let run = &mut self.runs[index];
        let reports = run.observe(now_ms, rank, status);
        let found = run.pace(now_ms, rank, status.pace.as_ref());
        let slow: Vec<_> = found.iter().map(|finding| run.slow_percent(*finding)).collect();
        let looked = found.iter().map(|finding| finding.rank()).chain([rank]);
        let looked: Vec<_> = looked.map(|rank| (rank, run.is_slow(rank))).collect();
        let published = status.published.clone().filter(|p| rank == 0 && run.saving.publish(p));
        let (job, deaf) = (run.job.clone(), run.is_deaf(rank, status));
        if let Some(begun) = status.begun.filter(|_| rank == 0) {
            self.begun(&job, begun, out);
        }
        if let Some(job) = self.job_mut(&job) {
            slow.into_iter().for_each(|(worker, percent)| job.found(worker, percent));
        }
        for (rank, slow) in looked {
            self.tell_pace(&job, rank, slow, out);
        }
        for report in reports {
            self.reported(&job, report, out);
        }
        match published {
            Some(published) => {
                self.published(&job, published, out);
                self.revisions.grow();
                out.push(Effect::Wake(worker.clone()));
            }
            None => self.remind(now_ms, deaf, worker, out),
        }
    }

    /// Tells people whether a rank is slow, where that is news.
    fn tell_pace(&mut self, job: &str, rank: usize, slow: bool, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms;
        let Some(run) = self.runs.iter().find(|run| run.job == job) else { return };
        let worker = &run.seats[rank].info.id;
        let job = self.jobs.iter_mut().rev().find(|of| of.id() == job);
        if job.is_some_and(|job| job.tells_slow(now_ms, worker, slow)) {
            let (kind, about) = run.standing(rank);
            self.note(kind, about, out);
        }
    }

    /// Tells a worker again what is wanted of it, if it shows that it has not heard: any message may be lost.
    fn remind(&mut self, now_ms: u64, deaf: bool, worker: &WorkerId, out: &mut Vec<Effect>) {
        if deaf && self.members.remind(now_ms, worker) {
            out.push(Effect::Wake(worker.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::ids::{Generation, Rank, WorkerId};
    use coxswain_types::status::WorkerInfo;

    use super::super::run::RankSeat;
    use super::*;

    fn info(incarnation: u64) -> WorkerInfo {
        WorkerInfo {
            id: WorkerId("w0".to_owned()),
            incarnation,
            host: "h".to_owned(),
            pid: 1,
            cores: 1,
            device: "cpu".to_owned(),
            runtime: "r".to_owned(),
            serves: None,
        }
    }

    /// Generation 3 with one rank, whose assignment this coordinator has only if it gave it.
    fn run(given: bool) -> GenerationRun {
        let seat = RankSeat {
            info: info(7),
            stage: 0,
            slow_percent: 100,
            digest: "d".to_owned(),
            assignment: given.then(|| "{}".to_owned()),
            phase: None,
            step: Step(0),
            heard_ms: 0,
            activity: None,
            pace: None,
            stale: false,
        };
        GenerationRun::new("demo-1".to_owned(), Generation(3), vec![seat], Step(10), Step(0), 0)
    }

    #[test]
    fn every_status_is_one_of_a_few_cases() {
        let failed = |fault| Phase::Failed { message: "oh".to_owned(), fault };
        let device = || failed(Fault::Device);
        let path = || failed(Fault::Path { peer: Rank(1) });
        // Incarnation, generation, whether it names the assignment, phase, step, whether the job has worked.
        let rows = [
            (7, 3, true, Phase::Running, 4, true, Heard::AtWork),
            (7, 3, true, Phase::Done, 10, true, Heard::AtWork),
            (8, 3, true, Phase::Running, 4, true, Heard::Restarted),
            (8, 0, false, Phase::Idle, 0, false, Heard::Restarted),
            (7, 2, false, Phase::Idle, 0, false, Heard::Elsewhere { busy: false }),
            (7, 2, true, Phase::Running, 4, false, Heard::Elsewhere { busy: true }),
            (7, 2, true, failed(Fault::Checkpoint), 4, false, Heard::Elsewhere { busy: true }),
            (7, 3, false, Phase::Idle, 0, false, Heard::Unassigned),
            (7, 3, false, Phase::Preparing, 0, false, Heard::Unassigned),
            (7, 3, false, failed(Fault::Own), 0, false, Heard::AtWork),
            (7, 3, true, failed(Fault::Own), 0, true, Heard::AtWork),
            (7, 3, true, failed(Fault::Peer), 4, true, Heard::AtWork),
            (7, 3, true, path(), 4, true, Heard::AtWork),
            (7, 3, true, failed(Fault::Checkpoint), 0, false, Heard::Damaged("oh")),
            (7, 3, false, failed(Fault::Leaving), 0, false, Heard::Leaving("oh")),
            (7, 3, true, device(), 0, false, Heard::AtWork),
            (7, 3, true, device(), 1, false, Heard::Broke("oh")),
            (7, 3, true, device(), 0, true, Heard::Broke("oh")),
        ];
        for (incarnation, generation, named, phase, step, has_worked, expected) in rows {
            let status = WorkerStatus {
                assignment_digest: Some(if named { "d" } else { "other" }.to_owned()),
                phase,
                step: Step(step),
                ..WorkerStatus::idle(info(incarnation), Generation(generation))
            };
            assert_eq!(classify(&run(true), 0, &status, || has_worked), expected, "{status:?}");
        }
    }

    #[test]
    fn an_idle_worker_cannot_be_given_again_what_an_earlier_coordinator_gave_it() {
        let idle = WorkerStatus::idle(info(7), Generation(3));
        assert_eq!(classify(&run(false), 0, &idle, || true), Heard::Restarted);
        assert_eq!(classify(&run(true), 0, &idle, || true), Heard::Unassigned);
    }
}
