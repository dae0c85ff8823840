//! The devices that workers compute on, by the names that `--device` of both programs takes.

/// A device of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// A GPU of NVIDIA's, by its number; without one, each worker's own.
    Cuda(Option<u32>),
    /// What stands in for a GPU in tests.
    Emulated,
}

impl DeviceName {
    /// The device of this name.
    ///
    /// # Errors
    /// No device has it.
    pub fn parse(name: &str) -> Result<DeviceName, String> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(DeviceName::Cpu),
            None if name == "cuda" => Ok(DeviceName::Cuda(None)),
            Some(("cuda", number)) => match number.parse() {
                Ok(number) => Ok(DeviceName::Cuda(Some(number))),
                Err(_) => Err(format!("\"{number}\" is not a GPU number; the first GPU is cuda:0")),
            },
            Some(("emulated", "0")) => Ok(DeviceName::Emulated),
            _ => Err("unknown device; must be cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// The device of this name, as a program's argument.
///
/// # Errors
/// No device has it.
pub fn device(name: &str) -> Result<String, String> {
    DeviceName::parse(name).map(|_| name.to_owned())
}

/// The device of the `index`-th of several workers that a program starts: of GPUs each has its own.
pub fn device_of(name: &str, index: u32) -> String {
    match DeviceName::parse(name) {
        Ok(DeviceName::Cuda(None)) => format!("cuda:{index}"),
        _ => name.to_owned(),
    }
}
