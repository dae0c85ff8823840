//! The job in each layout. All of it is checked and planned before the first run starts.

use std::fs;

use coxswain_core::certificate::{
    Candidate, LayoutName, ONE, ThreadCount, choose_reference, run_sets, threads,
};
use coxswain_core::plan::sketch;
use coxswain_types::JobSpec;

use super::{Verify, called};
use crate::failure::Failure;
use crate::local::{self, JobInput};

/// Where the kernel says how much memory is free, and the bound of this process's own control group.
const MEMINFO: &str = "/proc/meminfo";
const GROUP_MAX: &str = "/sys/fs/cgroup/memory.max";

/// The job in a layout.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// The layout's name.
    pub(super) name: String,
    /// All changes to the job file, those of the user first.
    pub(super) sets: Vec<String>,
    /// The job with them.
    pub(super) spec: JobSpec,
    /// What its workers need together, in bytes, as the plan estimates it.
    pub(super) needed: u64,
    /// The model's parameters.
    pub(super) parameters: u64,
}

/// What is run.
#[derive(Debug)]
pub(super) struct Cases {
    pub(super) reference: Case,
    /// Why it is that one, where it is not one process by default.
    pub(super) reference_reason: Option<String>,
    /// What is compared with it.
    pub(super) layouts: Vec<Case>,
    pub(super) threads: ThreadCount,
}

impl Cases {
    pub(super) fn prepare(args: &Verify) -> Result<Cases, Failure> {
        let input = local::read_job(&args.job)?;
        let job = input.spec()?;
        let common = run_sets(&job, args.steps);
        let layouts = args.layouts.iter().map(|name| Case::read(&input, name, &common));
        let layouts = layouts.collect::<Result<Vec<_>, _>>()?;
        for (i, case) in layouts.iter().enumerate() {
            if layouts[..i].iter().any(|other| other.name == case.name) {
                return Err(Failure::Input(format!("--layouts: `{}` is given twice", case.name)));
            }
        }
        let available = if args.device == "cpu" { available_memory() } else { None };
        let (reference, reference_reason) = match &args.reference {
            Some(name) => (Case::read(&input, name, &common)?, Some("chosen by --reference".to_owned())),
            None => default_reference(Case::read(&input, ONE, &common)?, &layouts, available)?,
        };
        let mut cases = Cases { reference, reference_reason, layouts, threads: threads(None, 1, 1) };
        if cases.reference_reason.is_some() {
            cases.layouts.retain(|case| case.name != cases.reference.name);
        }
        if cases.layouts.is_empty() {
            let name = &cases.reference.name;
            let message =
                format!("--layouts: {name} is the reference itself; give another layout to compare with it");
            return Err(Failure::Input(message));
        }
        cases.refuse_too_large(available, args.reference.is_some())?;
        cases.set_threads(&job);
        Ok(cases)
    }

    /// A machine that runs out of memory ends whatever process it likes.
    fn refuse_too_large(&self, available: Option<u64>, reference_is_chosen: bool) -> Result<(), Failure> {
        let mut all = self.layouts.iter().chain((!reference_is_chosen).then_some(&self.reference));
        match all.find(|case| !case.candidate().fits(available)) {
            None => Ok(()),
            Some(case) => Err(Failure::Input(format!(
                "--layouts: {}: its workers need about {} MiB together, and this machine has {} MiB available; leave it \
                 out, or make train.micro_batch_size smaller",
                called(&case.name),
                case.needed >> 20,
                available.unwrap_or(0) >> 20,
            ))),
        }
    }

    fn set_threads(&mut self, job: &JobSpec) {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let all = || self.layouts.iter().chain([&self.reference]);
        let most = all().map(|case| case.spec.layout.world()).max().unwrap_or(1);
        self.threads = threads(job.train.threads, u32::try_from(cores).unwrap_or(1), most);
        let number = self.threads.number;
        for case in self.layouts.iter_mut().chain([&mut self.reference]) {
            case.sets.push(format!("train.threads={number}"));
            case.spec.train.threads = Some(number);
        }
    }
}

impl Case {
    fn read(input: &JobInput, name: &str, common: &[String]) -> Result<Case, Failure> {
        let layout = LayoutName::parse(name).map_err(|error| Failure::Input(error.to_string()))?;
        let refuse = |why: String| Failure::Input(format!("{}: {why}", called(name)));
        let sets = [input.sets.as_slice(), &layout.sets, common].concat();
        let spec = crate::job::parse(&input.text, &input.source, &input.base, &sets);
        let spec = spec.map_err(|refusal| refuse(refusal.to_string()))?;
        let plan = sketch(&spec, spec.layout.world()).map_err(|error| refuse(error.to_string()))?;
        let needed = plan.memory().iter().map(|memory| *memory.resident_bytes().end()).sum();
        Ok(Case { name: layout.name, sets, spec, needed, parameters: plan.parameters() })
    }

    fn candidate(&self) -> Candidate {
        Candidate { name: self.name.clone(), workers: self.spec.layout.world(), needed: self.needed }
    }
}

fn default_reference(
    one: Case,
    layouts: &[Case],
    available: Option<u64>,
) -> Result<(Case, Option<String>), Failure> {
    let given: Vec<_> = layouts.iter().map(Case::candidate).collect();
    let (name, reason) = choose_reference(&one.candidate(), &given, available)
        .map_err(|error| Failure::Input(error.to_string()))?;
    let chosen = layouts.iter().find(|case| reason.is_some() && case.name == name);
    Ok((chosen.cloned().unwrap_or(one), reason))
}

/// Bytes that processes may still take; `None` where the system does not say.
pub(crate) fn available_memory() -> Option<u64> {
    let free = fs::read_to_string(MEMINFO).ok().and_then(|text| free_bytes(&text));
    let group = fs::read_to_string(GROUP_MAX).ok().and_then(|text| text.trim().parse().ok());
    [free, group].into_iter().flatten().min()
}

fn free_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       32768000 kB\nMemFree:  1 kB\nMemAvailable:   16384 kB\nBuffers: 2 kB\n";
        assert_eq!(free_bytes(text), Some(16_384 << 10));
        for none in ["", "MemFree: 1 kB\n", "MemAvailable: many kB\n", "MemAvailable: 5\n"] {
            assert_eq!(free_bytes(none), None, "{none}");
        }
    }
}
