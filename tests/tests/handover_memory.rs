//! A handover to another cut holds one state, not the old one and the new one: on bytes counted by the allocator,
//! which counts those of a process, so this is the only test here.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Barrier, Mutex};

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_comm::{DataPort, MemoryStore};
use coxswain_core::plan::Plan;
use coxswain_engine::{Control, Engine, EngineEvent, State};
use coxswain_files::{Digests, prepare};
use coxswain_native::memory;
use coxswain_tests::threads::plan_of;
use coxswain_tests::{Folder, JOB};
use coxswain_types::status::{Directive, StepReport};
use coxswain_types::{Assignment, Generation, Step};

/// When the generation of four ends, and when the job.
const BREAK: u64 = 2;
const STEPS: u64 = 4;
/// Which rank is lost then.
const LOST: usize = 1;

/// The losses of steps, as bits.
type Losses = BTreeMap<u64, u64>;

/// Trains up to a step.
struct Until<'a> {
    step: u64,
    losses: &'a Mutex<Losses>,
}

impl Control for Until<'_> {
    fn directive(&self) -> Directive {
        Directive { revision: 1, run_to: Step(self.step), ..Directive::NONE }
    }

    fn tell(&self, event: EngineEvent) {
        let report = |report: StepReport| {
            self.losses.lock().map(|mut losses| losses.insert(report.step, report.loss.to_bits())).ok();
        };
        match event {
            EngineEvent::Ready(_, reports) => reports.into_iter().for_each(report),
            EngineEvent::Reported(one) => report(one),
            EngineEvent::Linked(_) | EngineEvent::Stepped(_) | EngineEvent::Saved(_) => {}
        }
    }
}

/// The job on so many stages: matrices large enough that messages and activations do not matter.
fn plan(folder: &Folder, directory: &Path, stages: u32) -> Result<Plan> {
    let text = format!("text: {}", folder.path().join("text.txt").display());
    let sets = [
        ("model.layers", "12".to_owned()),
        ("model.dim", "128".to_owned()),
        ("model.ffn", "256".to_owned()),
        ("train.steps", STEPS.to_string()),
        ("train.validate_every", "0".to_owned()),
        // One buffer of gradients: the plan has no more than it needs.
        ("train.gradient_groups", "1".to_owned()),
        ("train.global_micro_batches", "4".to_owned()),
        ("layout.pipeline", stages.to_string()),
        ("recovery.peer_replica", "true".to_owned()),
    ];
    let sets: Vec<_> = sets.into_iter().map(|(path, value)| (path.to_owned(), value)).collect();
    let mut plan = plan_of(&JOB.replace("text: text.txt", &text), &sets)?;
    let data = prepare(&directory.into(), &plan.assignments[0].spec, None, &Digests::default(), &|_| Ok(()))?;
    for a in &mut plan.assignments {
        (a.directory, a.data) = (directory.to_string_lossy().into_owned(), data.clone());
        a.generation = Generation(u64::from(5 - stages));
    }
    Ok(plan)
}

/// Trains the job on four stages, loses one of them, and goes on with three. Returns the most bytes that tensors
/// took until the three had what they need.
fn live(four: &Plan, three: &Plan, losses: &Mutex<Losses>) -> Result<u64> {
    let stores = [MemoryStore::default(), MemoryStore::default()];
    let (all, left) = (Barrier::new(four.assignments.len()), Barrier::new(three.assignments.len()));
    let rank = |at: usize| -> Result<Option<u64>> {
        let first = train(&four.assignments[at], &stores[0], losses);
        all.wait();
        let mut held = Some(first?);
        if at == LOST {
            return Ok(None);
        }
        let a = &three.assignments[if at > LOST { at - 1 } else { at }];
        let control = Until { step: STEPS, losses };
        let engine = Engine::build(
            a.clone(),
            stores[1].clone(),
            &DataPort::local()?,
            ("test", tch::Device::Cpu),
            &control,
            &mut held,
        );
        left.wait();
        let peak = memory::peak_bytes();
        left.wait();
        engine?.run(&control)?;
        Ok(Some(peak))
    };
    let peaks = std::thread::scope(|scope| {
        let rank = &rank;
        let threads: Vec<_> = (0..four.assignments.len()).map(|at| scope.spawn(move || rank(at))).collect();
        let end = |thread: std::thread::ScopedJoinHandle<'_, Result<_>>| {
            thread.join().map_err(|_| anyhow!("a rank panicked"))?
        };
        threads.into_iter().map(end).collect::<Result<Vec<_>>>()
    })?;
    peaks.into_iter().flatten().max().context("three ranks went on")
}

/// Trains up to the break.
fn train(a: &Assignment, store: &MemoryStore, losses: &Mutex<Losses>) -> Result<State> {
    let control = Until { step: BREAK, losses };
    let mut engine = Engine::build(
        a.clone(),
        store.clone(),
        &DataPort::local()?,
        ("test", tch::Device::Cpu),
        &control,
        &mut None,
    )?;
    engine.run(&control)?;
    Ok(engine.leave())
}

#[test]
fn a_handover_to_another_cut_stays_within_the_plan() -> Result<()> {
    let folder = Folder::new()?;
    let (calm, lived) = (Mutex::new(Losses::new()), Mutex::new(Losses::new()));
    let alone = plan(&folder, &folder.path().join("calm"), 1)?;
    let control = Until { step: STEPS, losses: &calm };
    let mut engine = Engine::build(
        alone.assignments[0].clone(),
        MemoryStore::default(),
        &DataPort::local()?,
        ("test", tch::Device::Cpu),
        &control,
        &mut None,
    )?;
    engine.run(&control)?;
    drop(engine);
    let directory = folder.path().join("lived");
    let (four, three) = (plan(&folder, &directory, 4)?, plan(&folder, &directory, 3)?);
    let peak = live(&four, &three, &lived)?;
    let planned: u64 = three.memory().iter().map(|memory| memory.tensor_bytes()).sum();
    ensure!(peak <= planned, "a handover takes {peak} bytes where the plan has {planned}");
    let (calm, lived) = (calm.into_inner(), lived.into_inner());
    let (calm, lived) = calm.ok().zip(lived.ok()).context("a rank panicked")?;
    ensure!(calm.len() as u64 == STEPS && calm == lived, "{calm:?} is not {lived:?}");
    Ok(())
}
