//! A generation that breaks anywhere in a step is followed by one that goes on from what its ranks hold in
//! memory, to the same bits. Ranks are threads of this process, over real sockets, so that a test can choose
//! the moment; losses of real processes are those of `recovery`.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_comm::{DataPort, Links, MemoryStore};
use coxswain_engine::{Control, Engine, EngineError, EngineEvent, State};
use coxswain_files::{Digests, prepare};
use coxswain_tests::Folder;
use coxswain_tests::threads::assignments_of;
use coxswain_types::Generation;
use coxswain_types::activity::{EnginePhase, EngineWork};
use coxswain_types::assignment::Assignment;
use coxswain_types::schedule::Kind;
use coxswain_types::status::Directive;
use tch::Tensor;

const STEPS: u64 = 12;
/// The step in which a generation breaks.
const BREAKS: u64 = 5;
/// What a rank does when it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// An action of this kind.
    In(Kind),
    /// A phase outside its actions.
    At(EnginePhase),
    /// It has taken a step, and has not said so yet.
    Taken,
}

impl Lost {
    fn is(self, work: EngineWork) -> bool {
        match (self, work) {
            (Lost::In(kind), EngineWork::Action(action)) => action.kind == kind,
            (Lost::At(phase), EngineWork::Phase(now)) => phase == now,
            _ => false,
        }
    }
}

const FORWARD: Lost = Lost::In(Kind::Forward);
const BACKWARD: Lost = Lost::In(Kind::Backward);
const CLOSING: Lost = Lost::At(EnginePhase::ClosingStep);
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// When a generation breaks.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This rank is gone, with all that it holds, when it does this in step [`BREAKS`] or later.
    Gone { rank: usize, doing: Lost },
    /// All vote on step [`BREAKS`], and this rank hears no more of it.
    Unheard { rank: usize },
}

/// What the ranks of one generation tell.
#[derive(Default)]
struct Told {
    links: Mutex<Vec<Links>>,
    /// Survivors that did not find the network broken: their workers would take their own devices for broken.
    deceived: Mutex<Vec<String>>,
    started: Mutex<BTreeMap<usize, u64>>,
    /// The loss and the norm of each step, as bits.
    steps: Mutex<BTreeMap<u64, (u64, u64)>>,
    struck: AtomicBool,
    over: AtomicBool,
}

struct Watch {
    rank: usize,
    moment: Option<Moment>,
    told: Arc<Told>,
    step: Mutex<u64>,
}

impl Told {
    fn abort(&self, rank: usize) {
        let links = self.links.lock().unwrap();
        links.iter().filter(|links| links.rank() as usize == rank).for_each(Links::abort);
    }

    fn abort_all(&self) {
        self.links.lock().unwrap().iter().for_each(Links::abort);
    }

    /// The rank is gone. The others find that out by themselves, from peer to peer.
    fn strike(self: &Arc<Self>, rank: usize) {
        self.struck.store(true, Ordering::Relaxed);
        self.abort(rank);
        let told = Arc::clone(self);
        std::thread::spawn(move || {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end && !told.links.lock().unwrap().is_empty() {
                std::thread::sleep(Duration::from_millis(10));
            }
            told.abort_all();
        });
    }

    /// The engine of a rank has ended with `error`, and with it, as with its process, its end of the network.
    fn left(&self, rank: usize, error: Option<&EngineError>) {
        let mut links = self.links.lock().unwrap();
        let (own, others): (Vec<_>, Vec<_>) =
            links.drain(..).partition(|links| links.rank() as usize == rank);
        *links = others;
        if let Some(error) = error.filter(|_| !own.iter().any(Links::is_broken)) {
            self.deceived.lock().unwrap().push(format!("rank {rank}: {error}"));
        }
    }
}

impl Control for Watch {
    fn directive(&self) -> Directive {
        let voting = *self.step.lock().unwrap() + 1;
        if let (Some(Moment::Unheard { rank }), BREAKS) = (self.moment, voting) {
            if rank == self.rank {
                let told = Arc::clone(&self.told);
                std::thread::spawn(move || {
                    // Its vote is on its way, and the answer is not.
                    std::thread::sleep(Duration::from_millis(20));
                    told.abort(rank);
                    told.struck.store(true, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(300));
                    told.abort_all();
                });
            } else if self.rank != 0 {
                // The lead rank has the other votes meanwhile.
                std::thread::sleep(Duration::from_millis(120));
            }
        }
        Directive { revision: 1, ..Directive::NONE }
    }

    fn tell(&self, event: EngineEvent) {
        match event {
            EngineEvent::Linked(links) => {
                self.told.links.lock().unwrap().push(links.clone());
                if let Some(Moment::Gone { rank, doing }) = self.moment
                    && rank == self.rank
                {
                    strike(links, doing, Arc::clone(&self.told));
                }
            }
            EngineEvent::Ready(begun, reports) => {
                *self.step.lock().unwrap() = begun.step.0;
                self.told.started.lock().unwrap().insert(self.rank, begun.step.0);
                reports.into_iter().for_each(|report| self.tell(EngineEvent::Reported(report)));
            }
            EngineEvent::Stepped(pace) => {
                *self.step.lock().unwrap() = pace.step.0;
                if let Some(Moment::Gone { rank, doing: Lost::Taken }) = self.moment
                    && (rank, BREAKS) == (self.rank, pace.step.0)
                {
                    self.told.strike(rank);
                }
            }
            EngineEvent::Reported(report) => {
                let bits = (report.loss.to_bits(), report.grad_norm.to_bits());
                let before = self.told.steps.lock().unwrap().insert(report.step, bits);
                assert!(before.is_none_or(|before| before == bits), "step {} has other bits", report.step);
            }
            EngineEvent::Saved(_) => {}
        }
    }
}

/// Aborts the links of a rank when it does this.
fn strike(links: Links, doing: Lost, told: Arc<Told>) {
    std::thread::spawn(move || {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && !told.over.load(Ordering::Relaxed) {
            let now = links.doing();
            if now.step >= BREAKS && doing.is(now.what) {
                told.strike(links.rank() as usize);
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    });
}

/// What all ranks have in the end: the bits of loss and norm of each step, and of each slice.
#[derive(Debug, Default, PartialEq)]
struct End {
    steps: BTreeMap<u64, (u64, u64)>,
    slices: BTreeMap<(String, u64), u64>,
}

/// Runs a generation for each of `moments` that breaks it, and one to the end. Returns what that left, and
/// the step that each generation started after.
fn live(assignments: &[Assignment], moments: &[Moment]) -> Result<(End, Vec<u64>)> {
    let world = assignments.len();
    let generations: Vec<_> = (0..=moments.len())
        .map(|index| (moments.get(index).copied(), Arc::new(Told::default()), MemoryStore::default()))
        .collect();
    let barrier = Barrier::new(world);
    let rank = |assignment: &Assignment| -> Result<BTreeMap<(String, u64), u64>> {
        let at = assignment.rank.index();
        let mut remains: Option<State> = None;
        let port = DataPort::local()?;
        for (index, (moment, told, store)) in generations.iter().enumerate() {
            let watch = Watch { rank: at, moment: *moment, told: Arc::clone(told), step: Mutex::new(0) };
            let a = Assignment { generation: Generation(index as u64 + 1), ..assignment.clone() };
            let built =
                Engine::build(a, store.clone(), &port, ("test", tch::Device::Cpu), &watch, &mut remains);
            let result: Result<(), EngineError> = built.and_then(|mut engine| {
                let result = engine.run(&watch);
                remains = Some(engine.leave());
                result
            });
            if let Some(Moment::Gone { rank, .. }) = moment {
                told.left(at, result.as_ref().err().filter(|_| *rank != at));
            }
            told.over.store(true, Ordering::Relaxed);
            barrier.wait();
            // The next generation begins without what is left of this one.
            told.links.lock().unwrap().clear();
            if let Some(Moment::Gone { rank, .. }) = moment
                && *rank == at
            {
                remains = None;
            }
            if moment.is_none() {
                result.map_err(|error| anyhow!("rank {at}: {error}"))?;
            }
        }
        slices(remains.as_ref().context("an engine leaves a state")?)
    };
    let slices: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = assignments.iter().map(|a| scope.spawn(|| rank(a))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a rank panicked"))?)
            .collect::<Result<_>>()
    })?;
    let mut end = End::default();
    for (moment, told, _) in &generations {
        let deceived = told.deceived.lock().unwrap();
        ensure!(deceived.is_empty(), "{moment:?}: not by the network: {deceived:?}");
        end.steps.extend(told.steps.lock().unwrap().clone());
    }
    for (slice, bits) in slices.into_iter().flatten() {
        let other = end.slices.insert(slice.clone(), bits);
        ensure!(other.is_none_or(|other| other == bits), "two ranks hold other bits of {slice:?}");
    }
    let starts = generations.iter().map(|(_, told, _)| {
        let started = told.started.lock().unwrap();
        started.values().copied().max().unwrap_or(0)
    });
    let mut starts: Vec<u64> = starts.collect();
    // A busy machine may break a generation before its moment comes; what follows it then tells nothing.
    for (index, (moment, told, _)) in generations.iter().enumerate() {
        if moment.is_some() && !told.struck.load(Ordering::Relaxed) {
            starts[index + 1] = STEPS;
        }
    }
    Ok((end, starts))
}

/// As [`live`], again until all moments have come.
fn broken(assignments: &[Assignment], moments: &[Moment]) -> Result<(End, Vec<u64>)> {
    for _ in 0..5 {
        let (end, starts) = live(assignments, moments)?;
        if !starts.contains(&STEPS) {
            return Ok((end, starts));
        }
    }
    Err(anyhow!("{moments:?} did not come in five tries"))
}

/// A digest of the weights of each slice on a rank.
fn slices(state: &State) -> Result<BTreeMap<(String, u64), u64>> {
    let digest = |x: &Tensor| -> Result<u64> {
        let values = Vec::<f32>::try_from(&x.f_contiguous()?.f_flatten(0, -1)?)?;
        Ok(values.iter().fold(0, |sum: u64, value| {
            sum.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(value.to_bits()) + 1)
        }))
    };
    let params = state.parameters.iter().filter(|param| param.home);
    params.map(|param| Ok(((param.row.name.clone(), param.row.offset), digest(&param.weight)?))).collect()
}

/// The assignments of the small job with these changes, with its tokens in `directory`.
fn assignments(folder: &Folder, directory: &Path, sets: &[(&str, &str)]) -> Result<Vec<Assignment>> {
    let text = coxswain_tests::JOB
        .replace("text: text.txt", &format!("text: {}", folder.path().join("text.txt").display()));
    let steps = STEPS.to_string();
    let fixed = [("train.steps", steps.as_str()), ("train.validate_every", "5"), ("checkpoint.every", "5")];
    let sets: Vec<_> =
        fixed.iter().chain(sets).map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    let mut assignments = assignments_of(&text, &sets)?;
    let first = assignments.first().context("the plan has ranks")?;
    let data = prepare(&directory.into(), &first.spec, None, &Digests::default(), &|_| Ok(()))?;
    for a in &mut assignments {
        a.directory = directory.to_string_lossy().into_owned();
        a.data = data.clone();
    }
    Ok(assignments)
}

/// Phases of a step, by what a rank does in them.
const PHASES: [Lost; 7] = [
    FORWARD,
    BACKWARD,
    Lost::At(EnginePhase::AddingGradients),
    CLOSING,
    Lost::Taken,
    Lost::At(EnginePhase::WritingCheckpoint),
    Lost::At(EnginePhase::Evaluating),
];

/// A layout: its name, the phases in which a rank is lost, and what it changes in the job.
type Row<'a> = (&'a str, &'a [Lost], &'a [(&'a str, &'a str)]);

/// After which step survivors go on at least. The lead rank may have taken one that it had not yet told
/// anybody of.
fn least(gone: usize) -> u64 {
    if gone == 0 { BREAKS - 2 } else { BREAKS - 1 }
}

#[test]
fn a_rank_that_is_gone_in_any_phase_costs_no_bit_and_no_step() -> Result<()> {
    let folder = Folder::new()?;
    let layouts: [Row<'_>; 5] = [
        ("dp2 pp2", &PHASES, &[("layout.data", "2"), ("layout.pipeline", "2")]),
        ("pp3, peer replicas", &PHASES, &[("layout.pipeline", "3"), ("recovery.peer_replica", "true")]),
        ("tp2, peer replicas", &PHASES, &[("layout.tensor", "2"), ("recovery.peer_replica", "true")]),
        (
            "dp2 ZeRO-1, peer replicas",
            &PHASES[2..],
            &[("layout.data", "2"), ("layout.zero", "1"), ("recovery.peer_replica", "true")],
        ),
        (
            "pp2 muon, peer replicas",
            &[BACKWARD, CLOSING, Lost::Taken],
            &[("layout.pipeline", "2"), ("train.optimizer", "muon"), ("recovery.peer_replica", "true")],
        ),
    ];
    let mut struck = 0;
    for (name, phases, sets) in layouts {
        let directory = folder.path().join(name.replace([' ', ','], "-"));
        let assignments = assignments(&folder, &directory, sets)?;
        let (calm, _) = live(&assignments, &[])?;
        ensure!(calm.steps.len() as u64 == STEPS, "{} steps", calm.steps.len());
        for (at, doing) in phases.iter().copied().enumerate() {
            let rank = at % assignments.len();
            let (end, starts) = live(&assignments, &[Moment::Gone { rank, doing }])?;
            struck += u32::from(starts[1] < STEPS);
            ensure!(end == calm, "{name}: rank {rank} gone in {doing:?} changes bits");
            ensure!(
                starts[1] >= least(rank),
                "{name}: rank {rank} gone in {doing:?} costs steps: {starts:?}"
            );
        }
    }
    // Some phases are too short in some layouts to be met.
    ensure!(struck >= 20, "only {struck} generations were broken");
    Ok(())
}

#[test]
fn who_has_voted_takes_the_step_that_another_has_taken() -> Result<()> {
    let folder = Folder::new()?;
    for (name, sets) in [
        ("pp3", vec![("layout.pipeline", "3")]),
        ("dp3 ZeRO-1", vec![("layout.data", "3"), ("layout.zero", "1")]),
    ] {
        let assignments = assignments(&folder, &folder.path().join(name.replace(' ', "-")), &sets)?;
        let (calm, _) = live(&assignments, &[])?;
        for rank in [1, 2] {
            let mut seen = Vec::new();
            while !seen.contains(&vec![0, BREAKS]) {
                // On a busy machine another rank may not have heard of the step either.
                ensure!(seen.len() < 5, "{name}: rank {rank} left behind: started after {seen:?}");
                let (end, starts) = broken(&assignments, &[Moment::Unheard { rank }])?;
                ensure!(end == calm, "{name}: rank {rank} left behind changes bits");
                seen.push(starts);
            }
        }
    }
    Ok(())
}

#[test]
fn losses_that_follow_each_other_cost_no_bit() -> Result<()> {
    let folder = Folder::new()?;
    let sets = [("layout.pipeline", "3"), ("recovery.peer_replica", "true")];
    let assignments = assignments(&folder, &folder.path().join("run"), &sets)?;
    let (calm, _) = live(&assignments, &[])?;
    // Neighbours, one after the other: the second holds what the first has got back.
    let gone = |rank, doing| Moment::Gone { rank, doing };
    let (end, starts) =
        broken(&assignments, &[gone(0, FORWARD), gone(1, BACKWARD), gone(2, CLOSING), gone(1, FORWARD)])?;
    ensure!(end == calm, "bits differ");
    let least = [0, 1, 2, 1].map(least);
    ensure!(starts[1..].iter().zip(least).all(|(start, least)| *start >= least), "{starts:?}");
    Ok(())
}

#[test]
fn what_no_rank_holds_is_not_made_up() -> Result<()> {
    let folder = Folder::new()?;
    let sets = [("layout.pipeline", "2")];
    let assignments = assignments(&folder, &folder.path().join("run"), &sets)?;
    let (calm, _) = live(&assignments, &[])?;
    let (end, starts) = broken(&assignments, &[Moment::Gone { rank: 1, doing: BACKWARD }])?;
    ensure!(end == calm, "bits differ");
    ensure!(starts == [0, 0], "no rank had a copy of the lost stage: {starts:?}");
    Ok(())
}
