//! The story of a job, for people: where it is and why, what each rank does, who waits for whom, and what
//! interrupted it so far. The words for what the queue decides are here too.

use std::fmt::{self, Write as _};

use coxswain_types::status::Phase;

use super::Cluster;
use super::hang::{self, RankLook};
use super::job::{Job, Needs};
use super::job_event::begun_text;
use super::placement::{Rebalance, Shortage, Whereabouts};
use super::queue::Waiting;
use super::run::GenerationRun;
use super::summary::{JobEnding, JobState, Numbers, duration};
use crate::plan::{Fit, counted};

impl Cluster {
    /// The story of a job, which has been at work for so long; `None` if it is not known.
    pub fn explain(&self, id: &str, elapsed_s: Option<u64>) -> Option<String> {
        let job = self.job(id)?;
        let mut text = headline(job, elapsed_s);
        // Writing to a String cannot fail.
        if let Some(run) = self.runs.iter().find(|run| run.job == id) {
            let _ = write!(text, "\n{}", self.ranks(run));
            for slow in run.stragglers() {
                let _ = writeln!(text, "{slow}");
            }
            if let Some(chain) = run.longest_wait(self.now_ms).and_then(|(_, chain)| chain) {
                let _ = writeln!(text, "{}", chain.text);
            }
        }
        if !job.interruptions.is_empty() {
            let _ = writeln!(text, "\ninterruptions, the newest last:");
        }
        for (generation, step, cause) in &job.interruptions {
            let _ = writeln!(text, "  generation {generation}, step {step}: {cause}");
        }
        Some(text)
    }

    /// A line for each rank.
    fn ranks(&self, run: &GenerationRun) -> String {
        let mut text = String::new();
        for (rank, look) in run.looks(self.now_ms).iter().enumerate() {
            let seat = &run.seats[rank];
            let host = format!("pid {} on {}", seat.info.pid, seat.info.host);
            let _ = writeln!(
                text,
                "rank {rank}  stage {}  worker {} ({host})  step {}  {}",
                seat.stage,
                seat.info.id,
                seat.step,
                doing(seat.phase.as_ref(), look)
            );
        }
        text
    }
}

fn headline(job: &Job, elapsed_s: Option<u64>) -> String {
    let summary = job.summary();
    let state = match summary.state {
        JobState::Queued => "queued",
        JobState::Preparing => "preparing",
        JobState::Gathering => "gathering workers",
        JobState::Running => "running",
        JobState::Ended(JobEnding::Done) => "done",
        JobState::Ended(JobEnding::Failed) => "failed",
        JobState::Ended(JobEnding::Cancelled) => "cancelled",
    };
    let mut text = format!("{} is {state}: {}\n", summary.job, summary.reason);
    let checkpoint = match &summary.checkpoint {
        Some(checkpoint) => format!("the newest checkpoint is of step {}", checkpoint.step),
        None => "there is no checkpoint yet".to_owned(),
    };
    let _ = writeln!(
        text,
        "step {} of {}, priority {}; {checkpoint}, in {}",
        summary.step, summary.steps, summary.priority, summary.directory
    );
    let numbers = summary.numbers.map(|numbers| {
        let validation = numbers.validation.map(|loss| format!(" (validation {loss:.4})"));
        let Numbers { loss, tokens_per_second, .. } = numbers;
        let validation = validation.unwrap_or_default();
        format!("loss {loss:.4}{validation}, {tokens_per_second:.0} {}s/s", summary.unit)
    });
    let elapsed = elapsed_s.map(|seconds| format!("{} so far", duration(seconds as f64)));
    let left = summary.left_seconds().map(|seconds| format!("{} left", duration(seconds)));
    let parts: Vec<_> = [numbers, elapsed, left].into_iter().flatten().collect();
    if !parts.is_empty() {
        let _ = writeln!(text, "{}", parts.join(", "));
    }
    if let Some((begun, again)) = job.begun.filter(|_| job.interruption.is_some()) {
        let _ = writeln!(text, "{}", begun_text(begun, again));
    }
    text
}

fn doing(phase: Option<&Phase>, look: &RankLook<'_>) -> String {
    let what = match (phase, look.activity) {
        (None, _) => "has not taken its assignment".to_owned(),
        (Some(Phase::Preparing), None) => "joins its groups and loads its part".to_owned(),
        (Some(Phase::Done), _) => "is done".to_owned(),
        (Some(Phase::Failed { message, .. }), _) => format!("failed: {message}"),
        (Some(_), None) => "runs".to_owned(),
        (Some(_), Some(activity)) => {
            let waits = activity.waits_for.map_or(String::new(), |rank| format!(", waiting for rank {rank}"));
            format!("at {} for {}{waits}", activity.doing, hang::seconds(look.for_ms()))
        }
    };
    if look.is_silent() { format!("{what}; silent for {}", hang::seconds(look.silent_ms)) } else { what }
}

/// Why a run stops that can grow by so many workers.
pub(super) fn growth_reason(more: usize, fit: &Fit) -> String {
    let size = if fit.reason.is_empty() { "all of its layout" } else { &fit.reason };
    let workers = if more == 1 { "worker is" } else { "workers are" };
    format!("{more} more {workers} here, enough for {size}")
}

/// Why a run stops whose work shall be divided anew.
pub(super) fn rebalance_reason(run: &GenerationRun, rebalance: &Rebalance) -> String {
    let ranks = rebalance.ranks.iter().map(|eased| {
        let told = run.told_of(eased.rank);
        match &eased.spare {
            Some(spare) => format!("{told}, and {spare} waits and can take its place"),
            None => told,
        }
    });
    let ranks: Vec<_> = ranks.collect();
    format!("{}; the slowest rank would be done {:.1} times as fast", ranks.join(", "), rebalance.gain)
}

impl fmt::Display for Waiting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Behind(ready) => write!(f, "waits behind {ready}"),
            Waiting::ForTokens(other) => write!(f, "waits until the tokens of {other} are ready"),
            Waiting::ForPlan(other) => write!(f, "waits until the work of {other} is divided"),
            Waiting::ForWorkers { shortage, since, first } => {
                write!(f, "{shortage}")?;
                if let Some(cause) = since {
                    write!(f, ", since {cause}")?;
                }
                first.map_or(Ok(()), |first| write!(f, "; {first} waits too and is served first"))
            }
        }
    }
}

impl fmt::Display for Shortage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortage::Parted { world, parted } => write!(
                f,
                "waiting for {world} workers that reach each other: the network between {} and {} does not \
                 answer, and they are tried again in {} s",
                parted.one,
                parted.other,
                parted.left_ms.div_ceil(1000)
            ),
            Shortage::Mixed { world, groups } => {
                let groups: Vec<_> =
                    groups.iter().map(|(count, compute)| format!("{count} with {compute}")).collect();
                write!(
                    f,
                    "waiting for {world} workers that compute alike: idle are {}; ranks of one generation must \
                     have the same kind of device and the same libtorch",
                    groups.join("; ")
                )
            }
            Shortage::Missing { world, open, needs, elsewhere } => {
                let workers = counted(*world as u64, "worker", "workers");
                write!(f, "waiting for {} of {workers}", world - open)?;
                match needs {
                    Some(Needs::Began(compute)) => write!(f, " with {compute}, which it began with")?,
                    Some(Needs::Checkpoint(runtime)) => {
                        write!(f, " with {runtime}, which its checkpoint was made with")?;
                    }
                    None => {}
                }
                let mut places: Vec<_> =
                    elsewhere.iter().map(|(place, count)| (place.to_string(), count)).collect();
                places.sort();
                let places: Vec<_> = places.iter().map(|(place, count)| format!("{count} {place}")).collect();
                if places.is_empty() { Ok(()) } else { write!(f, " (here: {})", places.join(", ")) }
            }
        }
    }
}

impl fmt::Display for Whereabouts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whereabouts::AtWork(job) => write!(f, "at work for {job}"),
            Whereabouts::Bound => write!(f, "bound to other jobs"),
            Whereabouts::Idle(compute) => write!(f, "idle with {compute}"),
            Whereabouts::KeptFor(job) => write!(f, "kept for {job}"),
            Whereabouts::Leaving => write!(f, "leaving"),
            Whereabouts::Unknown => write!(f, "with an unknown libtorch"),
            Whereabouts::Busy => write!(f, "not idle yet"),
        }
    }
}
