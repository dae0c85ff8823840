//! The devices that are planned for: known ones by name, or those of a cluster file.

use std::path::{Path, PathBuf};

use clap::Args;
use coxswain_core::code::ErrorCode;
use coxswain_core::hardware::devices::{self, KnownDevice};
use coxswain_core::hardware::{HostGroup, Machines};
use coxswain_core::spec::{self, OpenJob, bytes};

use crate::failure::Failure;
use crate::local::read_text;
use crate::refusal::JobRefusal;
use crate::verify::available_memory;

/// What is planned for.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct MachineArgs {
    /// Plan for devices of this kind, such as a100-80gb, h100-80gb, h200 or cpu; a wrong name lists them.
    #[arg(long, value_name = "KIND", conflicts_with = "cluster")]
    device: Option<String>,
    /// Plan for the machines of this file (docs/planning.md).
    #[arg(long, value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// The memory of each device, such as 24GiB, in place of what it has.
    #[arg(long, value_name = "BYTES", value_parser = read_bytes)]
    memory: Option<u64>,
}

fn read_bytes(text: &str) -> Result<u64, String> {
    let must = "must be a whole number of bytes, or one with KiB, MiB, GiB or TiB such as 24GiB";
    bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| must.to_owned())
}

impl MachineArgs {
    /// Whether anything is said about machines.
    pub(crate) fn are_given(&self) -> bool {
        self.device.is_some() || self.cluster.is_some() || self.memory.is_some()
    }

    /// The machines for so many workers, or for as many as the job's layout has.
    pub(crate) fn cluster(&self, workers: Option<u32>, job: &OpenJob) -> Result<Machines, Failure> {
        let mut cluster = match &self.cluster {
            Some(path) => read_cluster(path)?,
            None => {
                let known = self.known()?;
                let workers = workers.unwrap_or_else(|| {
                    if job.auto.is_some() { known.on_host.unwrap_or(1) } else { job.spec.layout.world() }
                });
                Machines::of(known, workers)
            }
        };
        if let Some(memory) = self.memory {
            for HostGroup { device, .. } in &mut cluster.hosts {
                device.memory = memory;
            }
        }
        if let Some(workers) = workers.filter(|workers| *workers > cluster.devices()) {
            let message = format!(
                "--workers {workers}: the cluster has {} devices ({}); give fewer, or add hosts to its file",
                cluster.devices(),
                cluster.words()
            );
            return Err(JobRefusal::new(ErrorCode::WorkersWrong, message).into());
        }
        Ok(cluster)
    }

    fn known(&self) -> Result<&'static KnownDevice, Failure> {
        let Some(name) = &self.device else {
            // The kind whose memory is nearest; without any, the one that `up` has.
            let nearest = |memory: u64| {
                let kinds = devices::KNOWN.iter().filter(|known| known.on_host.is_some());
                kinds.min_by_key(|known| known.device().memory.abs_diff(memory))
            };
            let known = self.memory.map_or_else(|| devices::find("cpu"), nearest);
            return known.ok_or_else(|| Failure::Input("--device is missing".to_owned()));
        };
        let refuse = || {
            JobRefusal::new(ErrorCode::ClusterUnknown, format!("--device: {}", spec::unknown_device(name)))
        };
        Ok(devices::find(name).ok_or_else(refuse)?)
    }
}

/// The cores of this machine as devices, which share its free memory.
pub(crate) fn this_machine(workers: Option<u32>) -> Machines {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let workers = workers.unwrap_or(cores).max(1);
    let mut cluster = Machines::of(&devices::CPU, workers);
    for HostGroup { device, .. } in &mut cluster.hosts {
        if let Some(free) = available_memory() {
            device.memory = free / u64::from(workers);
        }
        // Workers that share cores take turns.
        let share = f64::from(cores.min(workers)) / f64::from(workers);
        let peak = &mut device.peak;
        for rate in [&mut peak.fp32, &mut peak.bf16, &mut peak.fp16] {
            *rate *= share;
        }
    }
    cluster
}

/// The machines of a file.
pub(crate) fn read_cluster(path: &Path) -> Result<Machines, Failure> {
    let source = path.display().to_string();
    let text = read_text(path).map_err(|why| Failure::Input(format!("the cluster file {source} {why}")))?;
    Ok(spec::cluster(&source, &text).map_err(JobRefusal::from)?)
}
