//! The checkpoint that a job's weights start from, and the tokenizer beside it.

use std::path::Path;

use coxswain_types::JobSpec;
use coxswain_types::assignment::{PreparedData, Weights};
use coxswain_types::params::{Place, parameter_table};

use super::{PrepareError, TOKENIZER};
use crate::atomic::digest_bytes;
use crate::checkpoint::Checkpoint;
use crate::digests::Digests;
use crate::folders::locate;
use crate::store::StoreFolder;
use crate::tokenizer::Tokenizer;

/// What a job starts from.
pub(super) struct Start {
    pub(super) weights: Weights,
    /// `None` where its tokens were synthetic.
    pub(super) tokenizer: Option<Tokenizer>,
    /// What was said of its tokens.
    pub(super) data: PreparedData,
}

impl Start {
    /// What the job starts from, read and checked; `None` where weights come from the seed.
    pub(super) fn of(spec: &JobSpec, digests: &Digests) -> Result<Option<Start>, PrepareError> {
        let Some(path) = spec.train.start_from.as_deref() else { return Ok(None) };
        let failed = |what: String| PrepareError::Start(what);
        let (run, folder) = locate(Path::new(path)).map_err(|e| failed(e.to_string()))?.ok_or_else(|| {
            failed(format!(
                "{path} has no checkpoint; name a run's folder (what `up --out` was given) or one that `coxswain \
                 import` made"
            ))
        })?;
        let checkpoint = Checkpoint::open(&folder, None).map_err(|e| failed(e.to_string()))?;
        checkpoint.verify_by(|folder, name| digests.of(folder, name)).map_err(|e| failed(e.to_string()))?;
        fits(spec, &checkpoint, path)?;
        let digest = checkpoint.digest().to_owned();
        let data = checkpoint.manifest().data.clone();
        let tokenizer = match &data.tokenizer_digest {
            None => None,
            Some(wanted) => Some(tokenizer(&run, wanted, spec)?),
        };
        let folder = folder.path().into_os_string().into_string();
        let folder = folder.map_err(|path| failed(format!("{} is not a UTF-8 path", path.display())))?;
        Ok(Some(Start { weights: Weights { folder, digest }, tokenizer, data }))
    }
}

/// Whether the checkpoint has every parameter of the job's model in its shape, but for what a new head
/// brings.
fn fits(spec: &JobSpec, checkpoint: &Checkpoint, path: &str) -> Result<(), PrepareError> {
    for parameter in parameter_table(&spec.model) {
        let born = parameter.places.iter().all(|place| *place == Place::Head);
        match checkpoint.shape(&parameter.name) {
            Ok(found) if found == parameter.shape => {}
            Ok(found) => {
                let what = format!(
                    "{path} has {} with the shape {found:?}, and the job's model wants {:?}; set the job's model \
                     to what the checkpoint's manifest says",
                    parameter.name, parameter.shape
                );
                return Err(PrepareError::Start(what));
            }
            Err(_) if born => {}
            Err(_) => {
                let what = format!(
                    "{path} has no {}, which the job's model needs; set the job's model to what the checkpoint's \
                     manifest says",
                    parameter.name
                );
                return Err(PrepareError::Start(what));
            }
        }
    }
    Ok(())
}

fn tokenizer(run: &StoreFolder, wanted: &str, spec: &JobSpec) -> Result<Tokenizer, PrepareError> {
    let path = run.place(TOKENIZER);
    let tokenizer = Tokenizer::load(run, TOKENIZER)?;
    if digest_bytes(&tokenizer.to_bytes()) != wanted {
        let what = format!("{} is not the tokenizer of the checkpoint beside it", path.display());
        return Err(PrepareError::Start(what));
    }
    let within = tokenizer.expect_within(spec.model.vocab);
    within.map_err(|e| PrepareError::Start(format!("{}: {e}", path.display())))?;
    Ok(tokenizer)
}
