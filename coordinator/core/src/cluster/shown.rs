//! A job's newest generation as pages show it: who has which rank, what each does, and whom it waits for.

use coxswain_types::JobSpec;
use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::Phase;
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::hang::RankLook;
use super::job::Job;
use super::run::{GenerationRun, RankSeat};
use super::watch::TELLING_MS;
use crate::plan::GridPlace;

/// What a rank is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankState {
    /// It has not taken its assignment yet.
    Starting,
    /// It joins its peers and loads its part.
    Preparing,
    /// It computes.
    Working,
    /// It waits for another rank.
    Waiting,
    /// It has said nothing for longer than it should.
    Silent,
    /// It has taken its last step.
    Done,
    /// It said that it cannot go on.
    Failed,
    /// Its worker is gone.
    Lost,
    /// Its generation has ended, and its worker is here.
    Free,
}

/// A rank of the newest generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankShown {
    /// Which rank.
    pub rank: u32,
    /// Where it stands in the grid.
    #[serde(flatten)]
    pub place: GridPlace,
    /// Its worker.
    pub worker: String,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// In one word.
    pub state: RankState,
    /// What it does, or what it said last.
    pub doing: String,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// The rank that it waits for.
    pub waits_for: Option<u32>,
    /// Steps that it has applied.
    pub step: u64,
    /// How long it computed in its newest step, in microseconds.
    pub busy_us: Option<u64>,
    /// The most bytes that its tensors took at once.
    pub peak_tensor_bytes: Option<u64>,
    /// How many times as long as its peers it computes, where it is a straggler.
    pub slow: Option<f64>,
}

/// A generation and what is known of its ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationShown {
    /// The job in the layout that it has here.
    pub spec: JobSpec,
    /// Which formation it is.
    pub generation: Generation,
    /// Whether it is at work; else it has ended, and no newer one has formed.
    pub at_work: bool,
    /// How long its newest step took, in seconds.
    pub step_seconds: Option<f64>,
    /// How slow its ranks were taken to be when work was divided, in percent of their peers' time.
    pub slow_percent: Vec<u32>,
    /// By rank.
    pub ranks: Vec<RankShown>,
    /// Who waits for whom the longest, in words.
    pub waiting: Option<String>,
}

impl Cluster {
    /// A job's newest generation; `None` where there was none, or the job is not known.
    pub fn generation_shown(&self, id: &str) -> Option<GenerationShown> {
        let job = self.job(id)?;
        let spec = job.spec_at_work();
        let shown = match self.runs.iter().find(|run| run.job == id) {
            Some(run) => self.at_work(run, spec),
            None => self.ended(job, spec),
        };
        (!shown.ranks.is_empty()).then_some(shown)
    }

    fn at_work(&self, run: &GenerationRun, spec: JobSpec) -> GenerationShown {
        let looks = run.looks(self.now_ms);
        let ranks = run.seats.iter().zip(&looks).enumerate();
        let ranks = ranks.map(|(rank, (seat, look))| {
            let here = self.members.get(&seat.info.id);
            let here = here.filter(|member| member.status.info.incarnation == seat.info.incarnation);
            let waits_for = look.activity.and_then(|activity| activity.waits_for).map(|peer| peer.0);
            let state = match here {
                Some(_) => state(seat, look, waits_for),
                None if run.is_orphaned() => RankState::Starting,
                None => RankState::Lost,
            };
            let rank_number = u32::try_from(rank).unwrap_or(u32::MAX);
            RankShown {
                rank: rank_number,
                place: GridPlace::of(&spec.layout, rank_number),
                worker: seat.info.id.0.clone(),
                host: seat.info.host.clone(),
                pid: seat.info.pid,
                state,
                doing: doing(seat, look),
                for_ms: if look.is_silent() { look.silent_ms } else { look.for_ms() },
                waits_for: waits_for.filter(|_| state == RankState::Waiting),
                step: seat.step.0,
                busy_us: seat.pace.map(|pace| pace.busy_us),
                peak_tensor_bytes: here.map(|member| member.status.peak_tensor_bytes),
                slow: run.paces.slow(rank),
            }
        });
        GenerationShown {
            generation: run.generation,
            at_work: true,
            step_seconds: run.step_seconds.back().copied(),
            slow_percent: run.seats.iter().map(|seat| seat.slow_percent).collect(),
            ranks: ranks.collect(),
            waiting: waiting(run, self.now_ms),
            spec,
        }
    }

    /// A generation that has ended, with who of it is still here.
    fn ended(&self, job: &Job, spec: JobSpec) -> GenerationShown {
        let done = job.state.is_over() && job.step >= Step(job.submission.spec.train.steps);
        let ranks = job.formed.iter().zip(0_u32..).map(|(formed, rank)| {
            let here = self.members.get(&formed.worker);
            let here = here.filter(|member| member.status.info.incarnation == formed.incarnation);
            let (state, text) = match (done, here) {
                (true, _) => (RankState::Done, "has taken its last step"),
                (false, Some(_)) => (RankState::Free, "is here; its generation has ended"),
                (false, None) => (RankState::Lost, "is not here any more"),
            };
            RankShown {
                rank,
                place: GridPlace::of(&spec.layout, rank),
                worker: formed.worker.0.clone(),
                host: formed.host.clone(),
                pid: formed.pid,
                state,
                doing: text.to_owned(),
                for_ms: 0,
                waits_for: None,
                step: job.step.0,
                busy_us: None,
                peak_tensor_bytes: here.map(|member| member.status.peak_tensor_bytes),
                slow: None,
            }
        });
        GenerationShown {
            generation: job.generation,
            at_work: false,
            step_seconds: None,
            slow_percent: job.formed.iter().map(|formed| formed.slow_percent).collect(),
            ranks: ranks.collect(),
            waiting: None,
            spec,
        }
    }
}

/// Who waits for whom, where that lasts: ranks of a step that goes well wait for each other many times.
fn waiting(run: &GenerationRun, now_ms: u64) -> Option<String> {
    let (for_ms, chain) = run.longest_wait(now_ms)?;
    chain.filter(|_| for_ms >= TELLING_MS).map(|chain| chain.text)
}

fn state(seat: &RankSeat, look: &RankLook<'_>, waits_for: Option<u32>) -> RankState {
    match &seat.phase {
        Some(Phase::Failed { .. }) => RankState::Failed,
        Some(Phase::Done) => RankState::Done,
        None | Some(Phase::Idle) => RankState::Starting,
        Some(_) if look.is_silent() => RankState::Silent,
        Some(Phase::Preparing) => RankState::Preparing,
        Some(Phase::Running) if waits_for.is_some() => RankState::Waiting,
        Some(Phase::Running) => RankState::Working,
    }
}

fn doing(seat: &RankSeat, look: &RankLook<'_>) -> String {
    match (&seat.phase, look.activity) {
        (None | Some(Phase::Idle), _) => "has not taken its assignment".to_owned(),
        (Some(Phase::Failed { message, .. }), _) => message.clone(),
        (Some(Phase::Done), _) => "has taken its last step".to_owned(),
        (Some(Phase::Preparing | Phase::Running), Some(activity)) => activity.doing.to_string(),
        (Some(Phase::Preparing), None) => "joins its groups and loads its part".to_owned(),
        (Some(Phase::Running), None) => "runs".to_owned(),
    }
}
