//! Whether all ranks see the same folder.

use coxswain_comm::Links;
use coxswain_files::StoreFolder;
use coxswain_types::assignment::Assignment;

use crate::EngineError;
use crate::error::Doing;

/// The most bytes of a word: a number.
const MAX_WORD_BYTES: u64 = 32;

/// The lead rank leaves a word in the run's folder that every other rank must read there.
pub(super) fn expect_shared(run: &StoreFolder, links: &Links, a: &Assignment) -> Result<(), EngineError> {
    let name = format!(".shared-{}", a.generation);
    let file = |cause| EngineError::File { path: run.place(&name), cause };
    // The word need not be secret, only new: a file left by another run must not pass for it.
    let word = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64) & ((1 << 52) - 1);
    if links.rank() == 0 {
        run.put(&name, word.to_string().as_bytes()).map_err(file)?;
    }
    let own = if links.rank() == 0 { word as f64 } else { 0.0 };
    let agreed = links.close_sum(&[own]).doing(|| "agreeing on the run's folder".to_owned())?;
    let read = run.read(&name, MAX_WORD_BYTES).ok();
    let read = read.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse::<u64>().ok());
    let same = read == agreed.first().map(|&word| word as u64);
    // All hear of a failure, and the file is removed only after all have read it.
    let failed =
        links.close_sum(&[f64::from(u8::from(!same))]).doing(|| "agreeing on the run's folder".to_owned())?;
    if links.rank() == 0 {
        run.delete(&name).map_err(file)?;
    }
    if failed.first().is_some_and(|&ranks| ranks > 0.0) {
        return Err(EngineError::NotShared(run.path()));
    }
    Ok(())
}
