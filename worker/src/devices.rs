//! `--devices`: which workers one machine gets, one for each device. The list is read and expanded here; starting them is
//! for [`crate::supervise`].

use std::fmt;
use std::str::FromStr;

/// The most workers of processors that one list may ask for.
const MAX_CPUS: u32 = 1024;

/// A list as it was given, such as `all` or `cuda:0,cuda:1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceList(Vec<DeviceChoice>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceChoice {
    /// Every GPU, or the processor where there is none.
    All,
    /// This many workers on the processor.
    Cpus(u32),
    /// Every GPU.
    Gpus,
    /// This GPU.
    Gpu(u32),
}

/// A list of devices that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DevicesError {
    #[error(
        "`{0}` is not a device; must be all, cpu, cpu:N for N workers on the processor, cuda for every GPU, or cuda:N \
         for GPU N, with commas between several"
    )]
    Unknown(String),
    #[error("cpu:{0}: must be 1 to {MAX_CPUS}")]
    Cpus(u32),
    #[error(
        "cuda: this machine shows no GPU (no /dev/nvidia0, and CUDA_VISIBLE_DEVICES names none); `coxswain doctor` looks \
         at the driver"
    )]
    NoGpu,
}

impl FromStr for DeviceList {
    type Err = DevicesError;

    fn from_str(text: &str) -> Result<DeviceList, DevicesError> {
        let choices: Vec<DeviceChoice> =
            text.split(',').map(|part| choice(part.trim())).collect::<Result<_, _>>()?;
        // Beside `all` nothing is left to name.
        if choices.len() > 1 && choices.contains(&DeviceChoice::All) {
            return Err(DevicesError::Unknown(text.to_owned()));
        }
        Ok(DeviceList(choices))
    }
}

impl fmt::Display for DeviceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, choice) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match choice {
                DeviceChoice::All => write!(f, "{comma}all")?,
                DeviceChoice::Cpus(count) => write!(f, "{comma}cpu:{count}")?,
                DeviceChoice::Gpus => write!(f, "{comma}cuda")?,
                DeviceChoice::Gpu(gpu) => write!(f, "{comma}cuda:{gpu}")?,
            }
        }
        Ok(())
    }
}

fn choice(text: &str) -> Result<DeviceChoice, DevicesError> {
    let unknown = || DevicesError::Unknown(text.to_owned());
    let number = |text: &str| text.parse::<u32>().map_err(|_| unknown());
    match text.split_once(':') {
        None => match text {
            "all" => Ok(DeviceChoice::All),
            "cpu" => Ok(DeviceChoice::Cpus(1)),
            "cuda" => Ok(DeviceChoice::Gpus),
            _ => Err(unknown()),
        },
        Some(("cpu", count)) => match number(count)? {
            count @ 1..=MAX_CPUS => Ok(DeviceChoice::Cpus(count)),
            count => Err(DevicesError::Cpus(count)),
        },
        Some(("cuda", gpu)) => Ok(DeviceChoice::Gpu(number(gpu)?)),
        Some(_) => Err(unknown()),
    }
}

impl DeviceList {
    /// The `--device` of each worker, on a machine with this many GPUs.
    ///
    /// # Errors
    /// All GPUs are asked for, and the machine has none.
    pub(crate) fn expand(&self, gpus: u32) -> Result<Vec<String>, DevicesError> {
        let every = || (0..gpus).map(|gpu| format!("cuda:{gpu}"));
        let mut devices = Vec::new();
        for choice in &self.0 {
            match *choice {
                DeviceChoice::All if gpus == 0 => devices.push("cpu".to_owned()),
                DeviceChoice::Gpus if gpus == 0 => return Err(DevicesError::NoGpu),
                DeviceChoice::All | DeviceChoice::Gpus => devices.extend(every()),
                DeviceChoice::Cpus(count) => devices.extend((0..count).map(|_| "cpu".to_owned())),
                DeviceChoice::Gpu(gpu) => devices.push(format!("cuda:{gpu}")),
            }
        }
        Ok(devices)
    }
}

/// How many GPUs processes of this machine see: those that CUDA_VISIBLE_DEVICES leaves, else those that have a device
/// file.
pub(crate) fn gpus() -> u32 {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let files = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    gpus_of(visible.as_deref(), files.map(|file| file.file_name().to_string_lossy().into_owned()))
}

fn gpus_of(visible: Option<&str>, files: impl Iterator<Item = String>) -> u32 {
    if let Some(visible) = visible {
        return visible.split(',').filter(|name| !name.trim().is_empty()).count() as u32;
    }
    let is_gpu = |name: &String| {
        name.strip_prefix("nvidia")
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    files.filter(is_gpu).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gives_each_worker_its_device() {
        // The list, the GPUs of the machine, the devices.
        for (list, gpus, devices) in [
            ("all", 0, "cpu"),
            ("all", 2, "cuda:0 cuda:1"),
            ("cpu", 2, "cpu"),
            ("cpu:3", 0, "cpu cpu cpu"),
            ("cuda", 3, "cuda:0 cuda:1 cuda:2"),
            ("cuda:1, cuda:3", 4, "cuda:1 cuda:3"),
            ("cuda:0,cuda:0", 1, "cuda:0 cuda:0"),
            ("cuda,cpu:2", 1, "cuda:0 cpu cpu"),
        ] {
            let expanded = list.parse::<DeviceList>().unwrap().expand(gpus).unwrap();
            assert_eq!(expanded.join(" "), devices, "{list} of {gpus}");
        }
        assert_eq!("cuda".parse::<DeviceList>().unwrap().expand(0), Err(DevicesError::NoGpu));
        for bad in ["", "gpu", "cpu:", "cpu:x", "cuda:-1", "cuda:0,", "all,cpu", "emulated:0"] {
            assert!(matches!(bad.parse::<DeviceList>(), Err(DevicesError::Unknown(_))), "{bad}");
        }
        for bad in [0, 1025] {
            assert_eq!(format!("cpu:{bad}").parse::<DeviceList>(), Err(DevicesError::Cpus(bad)));
        }
    }

    #[test]
    fn gpus_are_those_that_are_visible_or_have_a_file() {
        let files = ["null", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia"];
        let of = |visible| gpus_of(visible, files.iter().map(|file| (*file).to_owned()));
        assert_eq!([of(None), of(Some("4,5,6")), of(Some("GPU-1a")), of(Some(""))], [2, 3, 1, 0]);
    }
}
