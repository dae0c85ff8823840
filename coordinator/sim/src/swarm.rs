//! What a seed decides before anything happens: the cluster, its jobs, and which faults it meets how often.

use crate::faults::{Families, FaultFamily};
use crate::random::Random;

/// Streams of chance, one for each purpose.
pub(crate) mod stream {
    pub(crate) const SWARM: u64 = 1;
    pub(crate) const CHAOS: u64 = 2;
    pub(crate) const NETWORK: u64 = 3;
    pub(crate) const WORKERS: u64 = 4;
    pub(crate) const CLIENTS: u64 = 5;
    pub(crate) const COORDINATOR: u64 = 6;
    pub(crate) const CHECKS: u64 = 7;
}

/// The most workers of a cluster.
pub const MAX_WORKERS: u64 = 64;

/// A run of the simulation: the seed, and what is taken away from what it would do. Shrinking takes away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimCase {
    /// The seed.
    pub seed: u64,
    /// Families that stay away.
    pub without: Families,
    /// At most so many workers.
    pub workers: Option<u64>,
    /// At most so many jobs.
    pub jobs: Option<u64>,
    /// The safety phase ends after so many events.
    pub events: Option<u64>,
    /// Incidents, by their number, that do not happen.
    pub skip: Vec<u64>,
}

impl SimCase {
    /// A seed with all that it does.
    pub fn of(seed: u64) -> SimCase {
        SimCase { seed, ..SimCase::default() }
    }

    /// The command that repeats it.
    pub fn command(&self) -> String {
        let mut command = format!("cargo xtask sim --seed {}", self.seed);
        let mut add = |key: &str, value: String| command.push_str(&format!(" --{key} {value}"));
        let names: Vec<_> = self.without.list().into_iter().map(FaultFamily::name).collect();
        if !names.is_empty() {
            add("without", names.join(","));
        }
        for (key, value) in [("workers", self.workers), ("jobs", self.jobs), ("events", self.events)] {
            if let Some(value) = value {
                add(key, value.to_string());
            }
        }
        if !self.skip.is_empty() {
            add("skip", self.skip.iter().map(u64::to_string).collect::<Vec<_>>().join(","));
        }
        command
    }
}

/// A job as its user writes it.
#[derive(Clone, Debug)]
pub(crate) struct JobPlan {
    /// The run's folder.
    pub(crate) directory: String,
    /// The job file.
    pub(crate) text: String,
    /// When it is submitted.
    pub(crate) at_us: u64,
    /// How long a step takes.
    pub(crate) step_us: u64,
    /// What a step is summed from.
    pub(crate) micro_batches: u32,
    /// Steps in all.
    pub(crate) steps: u64,
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    pub(crate) workers: u64,
    /// Workers beyond those, which have another libtorch or come from elsewhere.
    pub(crate) liars: u64,
    pub(crate) hosts: u64,
    pub(crate) jobs: Vec<JobPlan>,
    pub(crate) on: Families,
    /// The safety phase ends after so many events.
    pub(crate) events: u64,
    /// Mean time between two incidents.
    pub(crate) incident_us: u64,
    /// How long incidents last at most.
    pub(crate) longest_us: u64,
    /// Times in a million that a message meets a fault of each kind that messages meet.
    pub(crate) message_faults: u64,
    /// Ordinary delay of a message at most.
    pub(crate) delay_us: u64,
    /// How long a worker that ended stays away at most.
    pub(crate) restart_us: u64,
    /// How long the coordinator stays away at most.
    pub(crate) reboot_us: u64,
    /// How long a worker that was asked to stop waits for the end of a step.
    pub(crate) grace_us: u64,
    /// How long workers go on without a coordinator.
    pub(crate) coordinator_timeout_us: u64,
    /// How far clocks go wrong, in millionths.
    pub(crate) drift: u64,
    /// Whether ranks lose each other as soon as they have met, each time.
    pub(crate) cursed: bool,
}

impl Swarm {
    pub(crate) fn of(case: &SimCase) -> Swarm {
        let mut random = Random::new(case.seed, stream::SWARM);
        // Most clusters are small: they have room for more history in as many events.
        let workers = match random.below(10) {
            0..=3 => random.between(1, 4),
            4..=7 => random.between(3, 9),
            8 => random.between(8, 24),
            _ => random.between(16, MAX_WORKERS),
        };
        let workers = workers.min(case.workers.unwrap_or(u64::MAX)).max(1);
        let jobs = [1, 1, 1, 2, 2, 3, 4, 8][random.below(8) as usize];
        let jobs = jobs.min(case.jobs.unwrap_or(u64::MAX)).max(1);
        // One seed in twenty is calm: whatever is interrupted then is interrupted without a cause.
        let share = random.pick(&[0, 2, 4, 4, 6, 6, 8]);
        let calm = random.below(20) == 0;
        let mut on = Families::default();
        for family in FaultFamily::ALL {
            if random.below(10) < share && !calm {
                on = on.with(family);
            }
        }
        let second = 1_000_000;
        let mut swarm = Swarm {
            workers,
            liars: random.below(3),
            hosts: random.between(1, workers),
            jobs: Vec::new(),
            on: on.without(case.without),
            events: case.events.unwrap_or(1600 + random.below(2400)),
            incident_us: random.pick(&[second / 2, 2 * second, 5 * second, 20 * second]),
            longest_us: random.pick(&[second, 4 * second, 12 * second, 40 * second]),
            message_faults: random.pick(&[500, 5_000, 30_000, 100_000]),
            delay_us: random.pick(&[300, 2_000, 40_000]),
            restart_us: random.pick(&[second / 2, 3 * second, 15 * second]),
            reboot_us: random.pick(&[second / 2, 5 * second, 90 * second]),
            grace_us: random.pick(&[second, 10 * second, 60 * second]),
            coordinator_timeout_us: random.pick(&[0, 60 * second, 60 * second, 60 * second]),
            drift: random.pick(&[100, 5_000, 30_000]),
            cursed: random.below(8) == 0,
        };
        swarm.jobs = (0..jobs).map(|number| job(&mut random, number, workers)).collect();
        swarm
    }
}

fn job(random: &mut Random, number: u64, workers: u64) -> JobPlan {
    let second = 1_000_000;
    let micro_batches = random.pick(&[2u64, 4, 4, 8]);
    // Clusters of many workers have jobs of many now and then; most jobs leave spares.
    let most = if random.below(4) == 0 { workers } else { workers.min(6) };
    let pipeline = random.between(1, most.min(4));
    let data = random.between(1, (most / pipeline).min(micro_batches));
    let tensor = if most / (pipeline * data) >= 2 { random.pick(&[1, 1, 2]) } else { 1 };
    let (steps, every) = (random.between(4, 60), random.pick(&[0, 1, 3, 5, 10]));
    let keep = random.between(1, 3);
    let on_loss = random.pick(&["wait", "wait", "shrink", "shrink", "fail"]);
    let priority = random.pick(&[0, 0, 0, 5, -5]);
    // Another draw would make other jobs of all seeds.
    let rebalance = steps % 2 == 0;
    let minutes = u64::from(steps % 3 == 0);
    let zero = if data > 1 { random.below(2) } else { 0 };
    let text = format!(
        "name: job\nmodel: {{layers: 4, dim: 8, heads: 2, vocab: 32}}\ndata: {{synthetic: {{tokens: 4096}}}}\n\
         train: {{steps: {steps}, sequence: 8, global_micro_batches: {micro_batches}, gradient_groups: {micro_batches}, \
         tensor_shards: 2}}\nlayout: {{pipeline: {pipeline}, data: {data}, tensor: {tensor}, zero: {zero}}}\n\
         checkpoint: {{every: {every}, every_minutes: {minutes}, keep: {keep}}}\nrecovery: {{on_loss: {on_loss}, rebalance: {rebalance}}}\n\
         priority: {priority}\n"
    );
    JobPlan {
        directory: format!("/runs/{number}"),
        text,
        at_us: random.below(20 * second),
        step_us: random.pick(&[second / 20, second / 4, second, 3 * second]),
        micro_batches: micro_batches as u32,
        steps,
    }
}

/// The job that is submitted once all is healed: whatever happened before, it has to be done.
pub(crate) fn probe(workers: u64) -> JobPlan {
    let data = workers.min(2);
    let text = format!(
        "name: probe\nmodel: {{layers: 4, dim: 8, heads: 2, vocab: 32}}\ndata: {{synthetic: {{tokens: 4096}}}}\n\
         train: {{steps: 10, sequence: 8, global_micro_batches: 2, gradient_groups: 2, tensor_shards: 2}}\n\
         layout: {{data: {data}}}\ncheckpoint: {{every: 4, keep: 1}}\n"
    );
    let directory = "/runs/probe".to_owned();
    JobPlan { directory, text, at_us: 0, step_us: 100_000, micro_batches: 2, steps: 10 }
}
