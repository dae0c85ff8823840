//! A run as people are told of it: who is slow, who waits for whom, and who holds up all others.

use coxswain_types::ids::WorkerId;
use coxswain_types::status::{Pace, Phase};

use super::cause::Cause;
use super::entry::NoteKind;
use super::event::{Notice, Weight};
use super::hang::{self, RankLook, WaitChain};
use super::notice;
use super::pace::PaceFinding;
use super::run::{GenerationRun, RankSeat, SILENT_MS};
use crate::plan::KEEPS_UP;

/// Between two looks for a hang, which go over all ranks, while each rank's heartbeat may ask for one.
const HANG_LOOK_MS: u64 = 250;

/// The most that a rank can be slow by, in quarters: one that is slower has the least work as it is.
const MAX_QUARTERS: f64 = 400.0;

/// A rank that waited for less than this when a run was interrupted explains nothing.
pub(super) const TELLING_MS: u64 = 1000;

impl GenerationRun {
    /// Takes in how long a step took a rank.
    pub(super) fn pace(&mut self, now_ms: u64, rank: usize, pace: Option<&Pace>) -> Vec<PaceFinding> {
        pace.map_or(Vec::new(), |pace| self.paces.note(now_ms, rank, pace))
    }

    /// What is said of ranks that are slow now.
    pub(super) fn stragglers(&self) -> Vec<String> {
        let slow = |rank| self.paces.slow(rank).map(|factor| self.slow(rank, factor));
        (0..self.seats.len()).filter_map(slow).collect()
    }

    /// Of whom a finding is, and in how many percent of its peers' time it does the same, in steps that differ.
    pub(super) fn slow_percent(&self, finding: PaceFinding) -> (WorkerId, u32) {
        let (rank, quarters) = match finding {
            PaceFinding::Slow(rank, factor) => (rank, (4.0 * factor).round().min(MAX_QUARTERS)),
            PaceFinding::Recovered(rank) => (rank, 4.0),
        };
        (self.seats[rank].info.id.clone(), quarters as u32 * KEEPS_UP / 4)
    }

    /// How a rank keeps up, for people.
    pub(super) fn told_of(&self, rank: usize) -> String {
        match self.paces.slow(rank) {
            Some(factor) => self.slow(rank, factor),
            None => format!("{} keeps up with its peers again", self.describe(rank)),
        }
    }

    pub(super) fn is_slow(&self, rank: usize) -> bool {
        self.paces.slow(rank).is_some()
    }

    /// Whether a rank is slow now, as people are told it.
    pub(super) fn standing(&self, rank: usize) -> (NoteKind, Notice) {
        let slow = self.is_slow(rank);
        let kind = if slow { NoteKind::Straggler } else { NoteKind::Recovered };
        let weight = if slow { Weight::Warning } else { Weight::Info };
        let about = notice(weight, self.told_of(rank)).about_run(&self.job, self.generation);
        (kind, about.about_worker(&self.seats[rank].info.id))
    }

    pub(super) fn slow(&self, rank: usize, factor: f64) -> String {
        format!("{} is a straggler: it computes {factor:.1} times as long as its peers", self.describe(rank))
    }

    /// Its ranks as they were heard of.
    pub(super) fn looks(&self, now_ms: u64) -> Vec<RankLook<'_>> {
        let look = |seat| {
            let RankSeat { info, stage, heard_ms, activity, .. }: &RankSeat = seat;
            RankLook {
                name: format!("worker {} (stage {stage})", info.id),
                activity: activity.as_ref().map(|(activity, _)| activity),
                age_ms: activity.as_ref().map_or(0, |(_, at_ms)| now_ms.saturating_sub(*at_ms)),
                silent_ms: now_ms.saturating_sub(*heard_ms),
            }
        };
        self.seats.iter().map(look).collect()
    }

    /// How long the rank has waited that waits the longest, and for whom.
    pub(super) fn longest_wait(&self, now_ms: u64) -> Option<(u64, Option<WaitChain>)> {
        let looks = self.looks(now_ms);
        let (rank, for_ms) = hang::longest(&looks)?;
        Some((for_ms, hang::chain(&looks, rank)))
    }

    /// The cause with who waited for whom, if that may explain it.
    pub(super) fn with_wait(&self, now_ms: u64, mut cause: Cause) -> Cause {
        if let Some((for_ms, Some(chain))) = self.longest_wait(now_ms)
            && for_ms >= TELLING_MS
        {
            cause.text.push_str(&format!(" ({})", chain.text));
            cause.workers.extend(self.names(&chain));
        }
        cause
    }

    fn names(&self, chain: &WaitChain) -> Vec<WorkerId> {
        let seats = chain.ranks.iter().filter_map(|&rank| self.seats.get(rank));
        seats.map(|seat| seat.info.id.clone()).collect()
    }

    /// How long a rank may wait, as long as steps take here.
    pub(super) fn patience_ms(&self) -> u64 {
        let mut steps: Vec<_> = self.step_seconds.iter().copied().collect();
        steps.sort_by(f64::total_cmp);
        hang::patience_ms(steps.get(steps.len() / 2).copied())
    }

    /// Who holds up the run, the first time that a rank waits for too long in a step.
    pub(super) fn hang(&mut self, now_ms: u64) -> Option<String> {
        if self.hang_told == Some(self.reported) || now_ms < self.hang_looked_ms + HANG_LOOK_MS {
            return None;
        }
        self.hang_looked_ms = now_ms;
        if !self.seats.iter().all(|seat| seat.phase == Some(Phase::Running)) {
            return None;
        }
        let (for_ms, chain) = self.longest_wait(now_ms)?;
        if for_ms < self.patience_ms() {
            return None;
        }
        self.hang_told = Some(self.reported);
        chain.map(|chain| chain.text)
    }

    /// Who waits for whom, where the run cannot go on by itself: each rank has waited for long, no tensor moves, and it
    /// stays so.
    pub(super) fn stuck(&mut self, now_ms: u64) -> Option<Cause> {
        // Whatever is stuck hangs first.
        if self.hang_told != Some(self.reported) {
            return None;
        }
        let patience_ms = self.patience_ms();
        let rests = |seat: &RankSeat| {
            let heard =
                now_ms.saturating_sub(seat.heard_ms) < SILENT_MS && seat.phase == Some(Phase::Running);
            heard && seat.activity.as_ref().is_some_and(|(activity, _)| hang::rests(activity, patience_ms))
        };
        if !self.seats.iter().all(rests) {
            self.stuck_since_ms = None;
            return None;
        }
        let since_ms = *self.stuck_since_ms.get_or_insert(now_ms);
        if now_ms < since_ms + hang::STUCK_STAYS_MS {
            return None;
        }
        let (_, chain) = self.longest_wait(now_ms)?;
        let chain = chain.unwrap_or_default();
        let text = format!("every rank waits and no tensor moves: {}", chain.text);
        Some(Cause { text, workers: self.names(&chain) })
    }

    /// Why the run cannot go on: what became of a rank.
    pub(super) fn cause(&self, rank: usize, what: &str) -> Cause {
        let text = format!("{} {what}", self.describe(rank));
        Cause { text, workers: vec![self.seats[rank].info.id.clone()] }
    }

    pub(super) fn describe(&self, rank: usize) -> String {
        let RankSeat { info, stage, .. } = &self.seats[rank];
        format!("worker {} (rank {rank}, stage {stage}, pid {} on {})", info.id, info.pid, info.host)
    }
}
