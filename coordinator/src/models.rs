//! `import` and `export`: models from other programs, and back to them. A model that comes in lies in a
//! folder like a run's, with a checkpoint of step 0; jobs start from it, and it writes and leaves again.
//!
//! - [`import`]: in, from any [`import::ForeignModel`]; [`export`]: out, as a Hugging Face folder.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Result, anyhow};

use crate::failure::Failure;

mod export;
mod import;

pub(crate) use export::{Export, export, form};
pub(crate) use import::{Import, import};

/// What an export needs to give back what was imported, below the folder of the import.
const KEPT: &str = "hf.json";

/// Refuses a folder that holds anything; says whether it was not there.
fn expect_room(folder: &Path) -> Result<bool, Failure> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Failure::Input(format!("--out {}: {error}", folder.display()))),
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => {
                Err(Failure::Input(format!("--out {} is not empty; name a new folder", folder.display())))
            }
        },
    }
}

/// Has `write` make a folder that was empty or not there, and removes one that it leaves half made.
fn into_room<T>(folder: &Path, write: impl FnOnce() -> Result<T>) -> Result<T, Failure> {
    let new = expect_room(folder)?;
    let done = write();
    if done.is_err() && new {
        // A folder that cannot be removed does no harm.
        let _ = fs::remove_dir_all(folder);
    }
    Ok(done?)
}

/// Runs what reads a tokenizer. The library that does so panics at some files, among them one that ends in its middle.
fn unpanicked<T>(folder: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let folder = folder.display();
        Err(anyhow!(
            "the tokenizer of {folder} cannot be read: it is damaged, or of a kind that is not supported"
        ))
    })
}
