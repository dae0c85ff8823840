//! What an import leaves in its folder beside a job: a checkpoint of step 0, and a tokenizer.

use std::path::Path;

use anyhow::{Context, Result};
use coxswain_files::atomic::digest_bytes;
use coxswain_files::folders::{model_file, step_folder};
use coxswain_files::prepare::TOKENIZER;
use coxswain_files::{Header, ShardTensor, StoreFolder, Tokenizer, publish, write_shard};
use coxswain_types::assignment::{PreparedData, TokenFile};
use coxswain_types::params::{Parameter, parameter_table};
use coxswain_types::status::SavedFile;
use coxswain_types::{Generation, JobSpec, Rank};

use super::ForeignModel;

/// The most bytes of a file of an imported checkpoint, unless one tensor is larger.
const MAX_SHARD_BYTES: u64 = 1 << 30;

/// Writes the model below `out`, as the checkpoint of step 0 of a job that is `spec`.
pub(super) fn write(out: &Path, source: &dyn ForeignModel, spec: JobSpec, data: PreparedData) -> Result<()> {
    let folder = step_folder(&out.into(), 0);
    let files = shards(&folder, source)?;
    // No run computed it, so its bits depend on none.
    let header = Header { job: "imported".to_owned(), step: 0, spec, fingerprint: None, data };
    publish(&folder, &files, header)?;
    Ok(())
}

/// Copies the tokenizer, and says what is known of its tokens.
pub(super) fn tokens(out: &Path, source: &dyn ForeignModel) -> Result<PreparedData> {
    let nothing = TokenFile { path: String::new(), tokens: 0, digest: String::new() };
    let mut data = PreparedData::of_tokens(nothing);
    let Some(bytes) = source.tokenizer()? else {
        data.framing = source.framing(None)?;
        return Ok(data);
    };
    let tokenizer = Tokenizer::of_any(&bytes)?;
    tokenizer.expect_within(source.model().vocab)?;
    data.framing = source.framing(Some(&tokenizer))?;
    let run = StoreFolder::from(out);
    run.put(TOKENIZER, &bytes).with_context(|| format!("writing {}", run.place(TOKENIZER).display()))?;
    data.tokenizer_digest = Some(digest_bytes(&bytes));
    Ok(data)
}

/// Writes all parameters, in files of some size.
fn shards(folder: &StoreFolder, source: &dyn ForeignModel) -> Result<Vec<SavedFile>> {
    let table = parameter_table(source.model());
    let (mut groups, mut room): (Vec<Vec<&Parameter>>, u64) = (Vec::new(), 0);
    for parameter in &table {
        let bytes = 4 * parameter.elements();
        if groups.is_empty() || bytes > room {
            groups.push(Vec::new());
            room = MAX_SHARD_BYTES;
        }
        room = room.saturating_sub(bytes);
        if let Some(group) = groups.last_mut() {
            group.push(parameter);
        }
    }
    let write = |(at, group): (usize, &Vec<&Parameter>)| {
        let whole = |parameter: &&Parameter| ShardTensor {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            dim: 0,
            offset: 0,
            len: parameter.shape[0],
        };
        let tensors: Vec<_> = group.iter().map(whole).collect();
        let name = model_file(Generation(0), Rank(at as u32));
        write_shard(folder, &name, &tensors, |index, slab| -> Result<()> {
            Ok(slab.write(&bytes(source, group[index])?)?)
        })
    };
    groups.iter().enumerate().map(write).collect()
}

/// A whole parameter, as the bytes of f32s.
fn bytes(source: &dyn ForeignModel, parameter: &Parameter) -> Result<Vec<u8>> {
    Ok(source.read(parameter)?.iter().flat_map(|x| x.to_le_bytes()).collect())
}
