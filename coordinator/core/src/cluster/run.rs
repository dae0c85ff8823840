//! One generation at work: what its ranks have said, and why it ended if it did.
//!
//! When one worker dies, its peers fail within milliseconds, and their complaints may arrive before
//! the news of the death. The cause that people are told is the first worker that was lost; a
//! complaint is believed only when no rank turns out to be lost within [`GRACE_MS`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coxswain_types::JobSpec;
use coxswain_types::activity::Activity;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{Fault, Pace, Phase, Publish, StepReport, WorkerInfo, WorkerStatus};

use super::apart::Pair;
use super::cause::Cause;
use super::checkpoints::Saving;
use super::entry::FormedRank;
use super::job::Job;
use super::member::{LEASE_MS, MemberTable};
use super::pace::Paces;
use super::revision::RunDirective;
use crate::plan::shares;

/// How long after the first complaint the cause is named. A closed connection is noticed within a
/// second even on a busy machine.
pub const GRACE_MS: u64 = 1500;

/// How long after its start a coordinator waits for the workers of a generation that was at work when
/// an earlier one ended. They look for it twice a second.
pub const RETURN_MS: u64 = 10_000;

/// A worker that has missed its heartbeat of a second for this long when the grace is over may be
/// the dead one: its lease is waited for.
pub(super) const SILENT_MS: u64 = 1500;

/// Of how many of the newest steps the median is taken.
const MEDIAN_STEPS: usize = 15;

/// A worker in its place.
#[derive(Clone, Debug)]
pub(super) struct RankSeat {
    /// Who it is.
    pub(super) info: WorkerInfo,
    /// Its place along the pipeline axis.
    pub(super) stage: u32,
    /// How slow it was taken to be when work was divided, in percent of its peers' time.
    pub(super) slow_percent: u32,
    /// The digest of its assignment.
    pub(super) digest: String,
    /// Its assignment, as JSON; `None` where an earlier coordinator gave it.
    pub(super) assignment: Option<String>,
    /// How far it has come; `None` before it took the assignment.
    pub(super) phase: Option<Phase>,
    /// Steps that it has applied.
    pub(super) step: Step,
    /// When it was heard of in this generation.
    pub(super) heard_ms: u64,
    /// The newest that it said of what it does, and when.
    pub(super) activity: Option<(Activity, u64)>,
    /// How long its newest step took it.
    pub(super) pace: Option<Pace>,
    /// Whether people have been told that it speaks of an older generation.
    pub(super) stale: bool,
}

impl RankSeat {
    /// Whether the process that says this can be in this place: it has its assignment, or can get it.
    pub(super) fn may_be(&self, status: &WorkerStatus) -> bool {
        let lost = self.assignment.is_none() && status.phase == Phase::Idle;
        let (formed, here) = (self.info.incarnation, status.info.incarnation);
        (formed == here || planted!(ReplacedKeepsSeat) && formed < here) && !lost
    }

    /// Whether the worker says that it has this place's assignment in this generation.
    pub(super) fn is_named_by(&self, generation: Generation, status: &WorkerStatus) -> bool {
        status.generation == generation && status.assignment_digest.as_ref() == Some(&self.digest)
    }

    /// As the journal has it.
    pub(super) fn formed(&self) -> FormedRank {
        FormedRank {
            worker: self.info.id.clone(),
            incarnation: self.info.incarnation,
            digest: self.digest.clone(),
            stage: self.stage,
            host: self.info.host.clone(),
            pid: self.info.pid,
            cores: self.info.cores,
            slow_percent: self.slow_percent,
        }
    }

    fn of_formed(formed: &FormedRank) -> RankSeat {
        let info = WorkerInfo {
            id: formed.worker.clone(),
            incarnation: formed.incarnation,
            host: formed.host.clone(),
            pid: formed.pid,
            cores: formed.cores,
            device: String::new(),
            runtime: String::new(),
            serves: None,
        };
        let (stage, digest) = (formed.stage, formed.digest.clone());
        RankSeat {
            info,
            stage,
            slow_percent: formed.slow_percent,
            digest,
            assignment: None,
            phase: None,
            step: Step(0),
            heard_ms: 0,
            activity: None,
            pace: None,
            stale: false,
        }
    }
}

/// A generation at work.
#[derive(Clone, Debug)]
pub(super) struct GenerationRun {
    /// The job's id.
    pub(super) job: String,
    /// Which formation this is.
    pub(super) generation: Generation,
    /// The workers, by rank.
    pub(super) seats: Vec<RankSeat>,
    /// Their ranks by name.
    ranks: BTreeMap<WorkerId, usize>,
    /// Steps in all.
    pub(super) steps: Step,
    /// When it was formed.
    pub(super) formed_ms: u64,
    /// What is wanted of it.
    pub(super) directive: RunDirective,
    /// The newest step that the lead reported.
    pub(super) reported: Step,
    /// The newest step whose report is in the run's folder, as far as is known.
    written: Step,
    /// The newest step whose report would survive a crash of the machine.
    synced: Step,
    /// The newest step for which a sync was requested.
    sync_asked: Step,
    /// The checkpoints.
    pub(super) saving: Saving,
    /// How long the newest steps took, in seconds.
    pub(super) step_seconds: VecDeque<f64>,
    /// How long they took each rank.
    pub(super) paces: Paces,
    /// The step in which people were told of a hang.
    pub(super) hang_told: Option<Step>,
    /// When it was last looked for one.
    pub(super) hang_looked_ms: u64,
    /// Since when every rank waits and no tensor moves.
    pub(super) stuck_since_ms: Option<u64>,
    /// What is complained of.
    failure: Option<Complaint>,
    /// Ranks between which the network does not answer.
    apart: BTreeSet<Pair>,
    /// Until when its workers have time to report back, and after what.
    back: Option<(u64, After)>,
}

/// After what workers have to report back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// The coordinator was started again.
    Restart,
    /// The coordinator did not run for a while.
    Pause,
}

/// What comes next for the newest checkpoint.
pub(super) enum Commit<'a> {
    /// It waits for ranks, for reports, or for a sync.
    Wait,
    /// The reports up to this step have to be synced.
    Sync(Step),
    /// It is committed and can be published.
    Publish(&'a Publish),
}

/// Why a rank says that it cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    /// When the first rank complained.
    since_ms: u64,
    /// Who says what.
    pub(super) cause: Cause,
    /// Whether the cause lies outside the rank, so that another attempt may succeed.
    pub(super) of_peer: bool,
}

impl GenerationRun {
    /// A generation that starts from the checkpoint of step `from` (0: from none).
    pub(super) fn new(
        job: String,
        generation: Generation,
        seats: Vec<RankSeat>,
        steps: Step,
        from: Step,
        revision: u64,
    ) -> GenerationRun {
        let saving = Saving::new(seats.len(), from);
        let ranks = seats.iter().enumerate().map(|(rank, seat)| (seat.info.id.clone(), rank)).collect();
        GenerationRun {
            job,
            generation,
            seats,
            ranks,
            steps,
            formed_ms: 0,
            directive: RunDirective { revision, ..RunDirective::default() },
            step_seconds: VecDeque::new(),
            paces: Paces::default(),
            hang_told: None,
            stuck_since_ms: None,
            hang_looked_ms: 0,
            reported: from,
            written: from,
            synced: from,
            sync_asked: from,
            saving,
            failure: None,
            apart: BTreeSet::new(),
            back: None,
        }
    }

    /// The generation of a job that an earlier coordinator formed. This one's clock starts at zero.
    pub(super) fn orphaned(job: &Job) -> GenerationRun {
        let seats = job.formed.iter().map(RankSeat::of_formed).collect();
        let mut run =
            GenerationRun::new(job.id().to_owned(), job.generation, seats, job.steps(), job.step, 0);
        run.directive = job.directive.clone();
        run.saving.decided(job.committed.clone());
        run.back = Some((RETURN_MS, After::Restart));
        run.share(&job.spec_at_work(), job.threads);
        run
    }

    /// Whether its workers have to report back, after a restart or a pause of the coordinator.
    pub(super) fn is_orphaned(&self) -> bool {
        self.back.is_some()
    }

    /// Whether the coordinator paused a moment ago, so that a closed connection does not count as a loss.
    pub(super) fn awaits_after_pause(&self) -> bool {
        matches!(self.back, Some((_, After::Pause)))
    }

    /// Gives its workers time to report back after a pause of the coordinator. Repeated pauses do not extend it.
    pub(super) fn wait_after_pause(&mut self, now_ms: u64) {
        self.seats.iter_mut().for_each(|seat| seat.phase = None);
        self.back.get_or_insert((now_ms + RETURN_MS, After::Pause));
    }

    /// A worker that has not come back, once the time for it is over.
    pub(super) fn missing(&mut self, now_ms: u64) -> Option<Cause> {
        let (until_ms, after) = self.back?;
        let missing = self.seats.iter().position(|seat| seat.phase.is_none());
        // After a pause, a worker's last status may arrive before the news that its old connection closed.
        if missing.is_none() && (after == After::Restart || until_ms <= now_ms) {
            self.back = None;
        }
        let rank = missing.filter(|_| until_ms <= now_ms && !planted!(ReturnWaitsForever))?;
        let after = match after {
            After::Restart => "was started again",
            After::Pause => "had paused",
        };
        let seconds = RETURN_MS / 1000;
        Some(self.cause(rank, &format!("did not come back within {seconds} s after the coordinator {after}")))
    }

    /// The rank of a worker, whichever process goes by its name.
    pub(super) fn rank_of(&self, worker: &WorkerId) -> Option<usize> {
        self.ranks.get(worker).copied()
    }

    /// Takes in what the worker of `rank` says of this generation. Returns the reports that are new.
    pub(super) fn observe(&mut self, now_ms: u64, rank: usize, status: &WorkerStatus) -> Vec<StepReport> {
        if let Phase::Failed { message, fault } = &status.phase {
            let cause = self.cause(rank, &format!("failed: {message}"));
            self.complain(now_ms, cause, matches!(fault, Fault::Peer | Fault::Path { .. }));
            if let Fault::Path { peer } = fault {
                self.parted(rank, peer.index());
            }
        }
        let first = self.seats[rank].phase.replace(status.phase.clone()).is_none();
        let seat = &mut self.seats[rank];
        (seat.step, seat.heard_ms) = (status.step, now_ms);
        if let Some(activity) = &status.activity {
            seat.activity = Some((activity.clone(), now_ms));
        }
        seat.pace = status.pace.or(seat.pace);
        if let Some(saved) = &status.saved {
            self.saving.wrote(rank, saved);
        }
        if rank != 0 {
            return Vec::new();
        }
        if first {
            // What the lead does not report any more, an earlier coordinator has recorded.
            let open =
                status.reports.first().map_or(status.step, |report| Step(report.step.saturating_sub(1)));
            self.reported = self.reported.max(open);
            self.written = self.written.max(open);
        }
        let mut fresh = Vec::new();
        for report in &status.reports {
            if report.step > self.reported.0 {
                self.reported = Step(report.step);
                self.step_seconds.push_back(report.step_seconds);
                if self.step_seconds.len() > MEDIAN_STEPS {
                    self.step_seconds.pop_front();
                }
                fresh.push(report.clone());
            }
        }
        fresh
    }

    /// The lead may forget reports up to this step: they are written. The folder may hold later ones, of steps that
    /// the previous generation took and this one has yet to repeat.
    pub(super) fn acknowledged(&self) -> Step {
        if planted!(AcknowledgedAhead) { self.reported } else { self.reported.min(self.written) }
    }

    /// Takes in that reports up to `step` are written; returns whether the lead may forget more than before.
    pub(super) fn wrote(&mut self, step: Step, synced: bool) -> bool {
        let before = self.acknowledged();
        self.written = self.written.max(step);
        if synced {
            self.synced = self.synced.max(step);
        }
        self.acknowledged() > before
    }

    /// The next action for a checkpoint that all ranks have written. Its steps are never taken again, so it is
    /// committed only once their reports are synced.
    pub(super) fn commit(&mut self) -> Result<Commit<'_>, String> {
        match self.saving.complete() {
            Some(step) if self.synced >= step || planted!(CheckpointBeforeMetrics) => {
                Ok(self.saving.commit()?.map_or(Commit::Wait, Commit::Publish))
            }
            Some(step) if self.reported >= step && self.sync_asked < step => {
                self.sync_asked = self.reported;
                Ok(Commit::Sync(self.reported))
            }
            Some(_) | None => Ok(Commit::Wait),
        }
    }

    /// Whether the worker of `rank` shows that it has not heard what is wanted of it now.
    pub(super) fn is_deaf(&self, rank: usize, status: &WorkerStatus) -> bool {
        let decided = self.saving.newest_decided();
        let saved = status.saved.as_ref().is_some_and(|saved| saved.step <= decided);
        let reports = status.reports.first().is_some_and(|report| report.step <= self.acknowledged().0);
        let done = status.published.as_ref().map(|published| published.step);
        let publish = self.saving.publishing().is_some_and(|publish| done < Some(publish.step));
        // All ranks have to know of a stop or a save before it counts, and not one says whether it does.
        let wanted = self.directive.stop.is_some() || self.directive.save_after > decided;
        let goes_on = wanted && status.phase == Phase::Running;
        saved || goes_on || (rank == 0 && (reports || publish))
    }

    /// The first complaint stands, unless a later rank says that the fault is its own: then the first
    /// one was of that rank's silence.
    fn complain(&mut self, now_ms: u64, cause: Cause, of_peer: bool) {
        let since_ms = self.failure.as_ref().map_or(now_ms, |first| first.since_ms);
        let cause = if of_peer { self.with_wait(now_ms, cause) } else { cause };
        if self.failure.as_ref().is_none_or(|first| first.of_peer && !of_peer) {
            self.failure = Some(Complaint { since_ms, cause, of_peer });
        }
    }

    /// The network between two ranks does not answer.
    fn parted(&mut self, rank: usize, peer: usize) {
        let id = |rank: usize| self.seats.get(rank).map(|seat| seat.info.id.clone());
        if let (Some(one), Some(other)) = (id(rank), id(peer))
            && one != other
        {
            self.apart.insert(Pair::of(one, other));
        }
    }

    /// The cause to name now that the worker of `rank` is lost; `None` if it had complained before,
    /// since then its end explains nothing.
    pub(super) fn lost(&self, now_ms: u64, rank: usize, why: &str) -> Option<Cause> {
        let failed = matches!(self.seats[rank].phase, Some(Phase::Failed { .. }));
        (!failed).then(|| self.with_wait(now_ms, self.cause(rank, &format!("was lost: {why}"))))
    }

    /// When this generation will be judged, if nothing happens before.
    pub(super) fn deadline_ms(&self, members: &MemberTable) -> Option<u64> {
        self.verdict_ms(members).into_iter().chain(self.back.map(|(until_ms, _)| until_ms)).min()
    }

    /// When the first complaint will be believed.
    fn verdict_ms(&self, members: &MemberTable) -> Option<u64> {
        let grace_ms = self.failure.as_ref()?.since_ms + GRACE_MS;
        let running = self.seats.iter().filter(|seat| !matches!(seat.phase, Some(Phase::Failed { .. })));
        let seen = running.filter_map(|seat| members.get(&seat.info.id)).map(|member| member.seen_ms);
        let silent = seen.filter(|seen_ms| seen_ms + SILENT_MS <= grace_ms).min();
        Some(silent.map_or(grace_ms, |seen_ms| grace_ms.max(seen_ms + LEASE_MS)))
    }

    /// Workers between which the network does not answer.
    pub(super) fn apart(&self) -> impl Iterator<Item = Pair> {
        self.apart.iter().cloned()
    }

    /// The first complaint, once it is to be believed.
    pub(super) fn verdict(&self, now_ms: u64, members: &MemberTable) -> Option<Complaint> {
        let due = self.verdict_ms(members)? <= now_ms;
        self.failure.clone().filter(|_| due && !planted!(ComplaintNeverJudged))
    }

    /// Whether every rank has its assignment, and so what was wanted of it first.
    pub(super) fn is_taken(&self) -> bool {
        self.seats.iter().all(|seat| seat.phase.is_some())
    }

    /// The step after which every rank is done, once its checkpoint can be read and every report is recorded.
    pub(super) fn done_at(&self) -> Option<Step> {
        let step = self.acknowledged();
        let done = self.seats.iter().all(|seat| seat.phase == Some(Phase::Done) && seat.step == step);
        (done && (self.saving.published() == step || planted!(DoneTooEarly))).then_some(step)
    }

    /// The work of its ranks is that of this job, in the layout that it has here, each with so many threads.
    pub(super) fn share(&mut self, spec: &JobSpec, threads: Option<u32>) {
        let stages = self.seats.iter().map(|seat| seat.stage).collect();
        let slow: Vec<_> = self.seats.iter().map(|seat| seat.slow_percent).collect();
        self.paces = Paces::new(stages, shares(spec, &slow), &slow);
        if self.is_overcommitted(threads.unwrap_or(1)) {
            self.paces.ignore();
        }
    }

    /// Whether all ranks are on one machine that has fewer cores than they have threads: how long a rank is busy there
    /// says when it had a core, and nothing of how fast it is.
    fn is_overcommitted(&self, threads: u32) -> bool {
        let Some(RankSeat { info: first, .. }) = self.seats.first() else { return false };
        let together = self.seats.iter().all(|seat| seat.info.host == first.host);
        let wanted = u64::from(threads) * self.seats.len() as u64;
        together && first.cores > 0 && u64::from(first.cores) < wanted
    }
}
