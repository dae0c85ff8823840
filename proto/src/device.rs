//! The devices that this build computes on.

/// The device of this name, for `--device` of both programs.
///
/// # Errors
/// This build does not compute on it.
pub fn device(name: &str) -> Result<String, String> {
    match name {
        "cpu" => Ok(name.to_owned()),
        _ => Err("this build computes on the cpu only".to_owned()),
    }
}
