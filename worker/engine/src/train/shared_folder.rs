//! Whether all ranks see the same folder.

use std::path::Path;

use coxswain_comm::Links;
use coxswain_files::atomic::write_atomic;
use coxswain_types::assignment::Assignment;

use crate::EngineError;
use crate::error::Doing;

/// The lead rank leaves a word in the run's folder that every other rank must read there.
pub(super) fn expect_shared(directory: &Path, links: &Links, a: &Assignment) -> Result<(), EngineError> {
    let path = directory.join(format!(".shared-{}", a.generation));
    let file = |cause| EngineError::File { path: path.clone(), cause };
    // The word need not be secret, only new: a file left by another run must not pass for it.
    let word = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64) & ((1 << 52) - 1);
    if links.rank() == 0 {
        write_atomic(&path, word.to_string().as_bytes()).map_err(file)?;
    }
    let own = if links.rank() == 0 { word as f64 } else { 0.0 };
    let agreed = links.close_sum(&[own]).doing(|| "agreeing on the run's folder".to_owned())?;
    let read = std::fs::read_to_string(&path).ok().and_then(|text| text.parse::<u64>().ok());
    let same = read == agreed.first().map(|&word| word as u64);
    // All hear of a failure, and the file is removed only after all have read it.
    let failed =
        links.close_sum(&[f64::from(u8::from(!same))]).doing(|| "agreeing on the run's folder".to_owned())?;
    if links.rank() == 0 {
        std::fs::remove_file(&path).map_err(file)?;
    }
    if failed.first().is_some_and(|&ranks| ranks > 0.0) {
        return Err(EngineError::NotShared(directory.to_owned()));
    }
    Ok(())
}
