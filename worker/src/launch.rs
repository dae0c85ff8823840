//! What launchers say in the environment, as options of this program: torchrun and its kin, Kubeflow Trainer,
//! LeaderWorkerSet, Indexed Jobs of Kubernetes, and Slurm. What a user says by an option or a COXSWAIN variable goes
//! first. Everything here is a function of the environment; [`explain`] shows what came of it.

use std::fmt::Write;

use coxswain_proto::device::DeviceName;

use crate::args::Work;

/// The port of a coordinator whose launcher names none.
const PORT: &str = "7070";

/// Variables that count processes. A worker need not know how many there are: the coordinator gathers them.
const COUNTS: [&str; 8] = [
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "PET_NNODES",
    "LWS_GROUP_SIZE",
    "SLURM_NTASKS",
    "SLURM_NNODES",
    "SKYPILOT_NUM_NODES",
    "OMPI_COMM_WORLD_SIZE",
];

/// Looks up a variable; empty ones count as unset.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// An option that the environment decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LaunchHint {
    value: String,
    /// The variables that say so.
    because: &'static str,
}

/// What the environment decides, where the user has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaunchHints {
    coordinator: Option<LaunchHint>,
    name: Option<LaunchHint>,
    /// The GPU of this process among those of its machine.
    local_rank: Option<LaunchHint>,
    devices: Option<LaunchHint>,
    /// Variables that were seen and decide nothing, each with its value.
    unused: Vec<(&'static str, String)>,
}

/// What the environment says, on a machine with this many GPUs.
pub(crate) fn hints(env: Environment<'_>, gpus: u32) -> LaunchHints {
    let unused = COUNTS.iter().filter_map(|name| Some((*name, env(name)?)));
    LaunchHints {
        coordinator: coordinator(env),
        name: name(env),
        local_rank: local_rank(env, gpus),
        devices: devices(env, gpus),
        unused: unused.collect(),
    }
}

fn hint(value: impl Into<String>, because: &'static str) -> Option<LaunchHint> {
    Some(LaunchHint { value: value.into(), because })
}

fn coordinator(env: Environment<'_>) -> Option<LaunchHint> {
    let at = |host: String, port: Option<String>| {
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        format!("{host}:{}", port.unwrap_or_else(|| PORT.to_owned()))
    };
    if let Some(host) = env("MASTER_ADDR") {
        return hint(at(host, env("MASTER_PORT")), "MASTER_ADDR, MASTER_PORT");
    }
    if let Some(host) = env("PET_MASTER_ADDR") {
        return hint(at(host, env("PET_MASTER_PORT")), "PET_MASTER_ADDR, PET_MASTER_PORT");
    }
    if let Some(host) = env("LWS_LEADER_ADDRESS") {
        return hint(at(host, None), "LWS_LEADER_ADDRESS");
    }
    let nodes = env("SLURM_JOB_NODELIST")?;
    hint(at(first_host(&nodes)?, None), "the first of SLURM_JOB_NODELIST")
}

/// The first host of a compact list, such as `n1` of `n[1-3,7],login`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.chars();
    while let Some(c) = rest.next() {
        match c {
            ',' => break,
            '[' => {
                let inside: String = rest.by_ref().take_while(|c| *c != ']').collect();
                host.push_str(inside.split([',', '-']).next()?);
            }
            c => host.push(c),
        }
    }
    (!host.is_empty()).then_some(host)
}

/// A name that a process keeps when it is started again.
fn name(env: Environment<'_>) -> Option<LaunchHint> {
    if let Some(rank) = env("RANK") {
        return match env("TORCHELASTIC_RUN_ID").filter(|run| run != "none") {
            Some(run) => hint(format!("{run}-{rank}"), "TORCHELASTIC_RUN_ID, RANK"),
            None => hint(format!("rank-{rank}"), "RANK"),
        };
    }
    if let Some(rank) = env("PET_NODE_RANK") {
        return hint(format!("node-{rank}"), "PET_NODE_RANK");
    }
    if let Some(index) = env("LWS_WORKER_INDEX") {
        // The pod's name holds the set, its group and the index in it.
        return match env("HOSTNAME") {
            Some(host) => hint(host, "HOSTNAME, since LWS_WORKER_INDEX is set"),
            None => hint(format!("worker-{index}"), "LWS_WORKER_INDEX"),
        };
    }
    if let Some(index) = env("JOB_COMPLETION_INDEX") {
        // Kubernetes calls the host JOB-INDEX.
        return match env("HOSTNAME").filter(|host| host.ends_with(&format!("-{index}"))) {
            Some(host) => hint(host, "HOSTNAME, since JOB_COMPLETION_INDEX is set"),
            None => hint(format!("index-{index}"), "JOB_COMPLETION_INDEX"),
        };
    }
    let task = env("SLURM_PROCID")?;
    match env("SLURM_JOB_ID") {
        Some(job) => hint(format!("slurm-{job}-{task}"), "SLURM_JOB_ID, SLURM_PROCID"),
        None => hint(format!("slurm-{task}"), "SLURM_PROCID"),
    }
}

fn local_rank(env: Environment<'_>, gpus: u32) -> Option<LaunchHint> {
    for name in ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"] {
        if let Some(rank) = env(name).and_then(|rank| rank.parse::<u32>().ok()) {
            // A launcher that gives each process its own GPU leaves it one to see.
            let gpu = if gpus == 1 { 0 } else { rank };
            return hint(gpu.to_string(), name);
        }
    }
    None
}

/// How many processes this one stands for: a launcher that starts one a machine says how many devices that is.
fn devices(env: Environment<'_>, gpus: u32) -> Option<LaunchHint> {
    let count = env("PET_NPROC_PER_NODE")?;
    let list = match count.as_str() {
        "auto" => "all".to_owned(),
        "gpu" => "cuda".to_owned(),
        "cpu" => "cpu".to_owned(),
        number => {
            let number: u32 = number.parse().ok().filter(|number| *number > 0)?;
            if gpus == 0 {
                format!("cpu:{number}")
            } else {
                (0..number).map(|gpu| format!("cuda:{gpu}")).collect::<Vec<_>>().join(",")
            }
        }
    };
    hint(list, "PET_NPROC_PER_NODE")
}

impl LaunchHints {
    /// Fills in what the user has not said; `said` tells of an option whether they have.
    pub(crate) fn apply(&self, work: &mut Work, said: &dyn Fn(&str) -> bool) {
        if let Some(hint) = self.coordinator.as_ref().filter(|_| !said("coordinator")) {
            work.coordinator.clone_from(&hint.value);
        }
        if let Some(hint) = self.name.as_ref().filter(|_| !said("name")) {
            work.name = Some(hint.value.clone());
        }
        if let Some(hint) = self.devices.as_ref().filter(|_| !said("device") && !said("devices")) {
            work.devices = hint.value.parse().ok();
        }
        if let Some(hint) = self.local_rank.as_ref().filter(|_| takes_local_rank(&work.device)) {
            work.device = format!("cuda:{}", hint.value);
        }
    }
}

/// Whether this is `cuda`, without a number.
fn takes_local_rank(device: &str) -> bool {
    DeviceName::parse(device) == Ok(DeviceName::Cuda(None))
}

/// Which option has which value, and why. `before` are the options without the environment, `after` with it.
pub(crate) fn explain(
    hints: &LaunchHints,
    before: &Work,
    after: &Work,
    said: &dyn Fn(&str) -> Option<&'static str>,
) -> String {
    let because = |option: &str, hint: Option<&LaunchHint>| match (said(option), hint) {
        (Some(how), _) => how.to_owned(),
        (None, Some(hint)) => hint.because.to_owned(),
        (None, None) => "the default".to_owned(),
    };
    let local_rank = hints.local_rank.as_ref().filter(|_| takes_local_rank(&before.device));
    let mut rows = vec![
        ("--coordinator", after.coordinator.clone(), because("coordinator", hints.coordinator.as_ref())),
        (
            "--name",
            after.name.clone().unwrap_or_else(|| "HOST-PID".to_owned()),
            because("name", hints.name.as_ref()),
        ),
    ];
    match &after.devices {
        Some(devices) => {
            rows.push(("--devices", devices.to_string(), because("devices", hints.devices.as_ref())))
        }
        None => {
            let mut why = because("device", None);
            if let Some(hint) = local_rank {
                let _ = write!(why, ", {}", hint.because);
            }
            rows.push(("--device", after.device.clone(), why));
        }
    }
    let width = rows.iter().map(|(_, value, _)| value.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (option, value, why) in rows {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{option:<13}  {value:<width$}  {why}");
    }
    for (name, value) in &hints.unused {
        let _ = writeln!(text, "{name}={value} is not needed: the coordinator gathers its workers");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Args;

    /// What `env --explain` prints, columns apart, for `VARIABLE=VALUE` words and options of the user.
    fn explained(variables: &str, options: &str, gpus: u32) -> String {
        let env = |name: &str| {
            let mut found = variables.split_whitespace().filter_map(|word| word.split_once('='));
            found.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
        };
        let words = ["coxswain-worker"].into_iter().chain(options.split_whitespace());
        let before = Args::parse_from(words).work;
        let mut after =
            Args::parse_from(["coxswain-worker"].into_iter().chain(options.split_whitespace())).work;
        let said = |option: &str| options.contains(&format!("--{option} "));
        let found = hints(&env, gpus);
        found.apply(&mut after, &said);
        let text = explain(&found, &before, &after, &|option: &str| said(option).then_some("an option"));
        let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        rows.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_launcher_is_understood_and_the_user_goes_first() {
        for (variables, options, gpus, expected) in [
            (
                "",
                "",
                0,
                "--coordinator 127.0.0.1:7070 the default\n--name HOST-PID the default\n--device cpu the default",
            ),
            (
                "MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 RANK=3 LOCAL_RANK=1 WORLD_SIZE=8",
                "--device cuda ",
                2,
                "--coordinator 10.0.0.1:29500 MASTER_ADDR, MASTER_PORT\n--name rank-3 RANK\n\
                 --device cuda:1 an option, LOCAL_RANK\n\
                 WORLD_SIZE=8 is not needed: the coordinator gathers its workers",
            ),
            (
                "MASTER_ADDR=::1 RANK=0 TORCHELASTIC_RUN_ID=exp SLURM_PROCID=5",
                "",
                0,
                "--coordinator [::1]:7070 MASTER_ADDR, MASTER_PORT\n--name exp-0 TORCHELASTIC_RUN_ID, RANK\n\
                 --device cpu the default",
            ),
            (
                "PET_MASTER_ADDR=job-node-0-0.job PET_MASTER_PORT=29400 PET_NODE_RANK=1 PET_NPROC_PER_NODE=2",
                "",
                0,
                "--coordinator job-node-0-0.job:29400 PET_MASTER_ADDR, PET_MASTER_PORT\n--name node-1 PET_NODE_RANK\n\
                 --devices cpu:2 PET_NPROC_PER_NODE",
            ),
            (
                "PET_NPROC_PER_NODE=2 RANK=7",
                "--name mine --coordinator a:1 ",
                2,
                "--coordinator a:1 an option\n--name mine an option\n--devices cuda:0,cuda:1 PET_NPROC_PER_NODE",
            ),
            (
                "LWS_LEADER_ADDRESS=set-0.set.train LWS_WORKER_INDEX=2 HOSTNAME=set-0-2",
                "",
                0,
                "--coordinator set-0.set.train:7070 LWS_LEADER_ADDRESS\n\
                 --name set-0-2 HOSTNAME, since LWS_WORKER_INDEX is set\n--device cpu the default",
            ),
            (
                "JOB_COMPLETION_INDEX=2 HOSTNAME=coxswain-worker-2",
                "",
                0,
                "--coordinator 127.0.0.1:7070 the default\n\
                 --name coxswain-worker-2 HOSTNAME, since JOB_COMPLETION_INDEX is set\n--device cpu the default",
            ),
            (
                "SLURM_JOB_NODELIST=gpu[07-09,12],login SLURM_JOB_ID=42 SLURM_PROCID=1 SLURM_LOCALID=3",
                "--device cuda ",
                1,
                "--coordinator gpu07:7070 the first of SLURM_JOB_NODELIST\n\
                 --name slurm-42-1 SLURM_JOB_ID, SLURM_PROCID\n--device cuda:0 an option, SLURM_LOCALID",
            ),
            (
                "LOCAL_RANK=1",
                "--device cuda:5 ",
                8,
                "--coordinator 127.0.0.1:7070 the default\n--name HOST-PID the default\n--device cuda:5 an option",
            ),
        ] {
            assert_eq!(explained(variables, options, gpus), expected, "{variables} {options}");
        }
    }

    #[test]
    fn the_first_of_a_compact_list_is_a_host() {
        for (list, host) in [
            ("n1", Some("n1")),
            ("n[1-3]", Some("n1")),
            ("n[001,007-9],m", Some("n001")),
            ("rack[1-2]node[3-4]-ib,x", Some("rack1node3-ib")),
            ("a,b", Some("a")),
            ("", None),
        ] {
            assert_eq!(first_host(list).as_deref(), host, "{list}");
        }
    }
}
