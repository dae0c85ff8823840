//! The folders of runs, which coordinator and workers share: shard files, manifests, metrics. They behave
//! as `proto/files` does: a manifest appears whole, and what was never published is invisible.

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::SavedFile;

use crate::random::{digest, digest_text};

/// A rank's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SimShard {
    state: u64,
    digest: String,
}

/// What readers see of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SimManifest {
    files: Vec<SavedFile>,
    threads: u32,
    runtime: String,
    digest: String,
}

#[derive(Clone, Debug, Default)]
struct SimCheckpoint {
    shards: BTreeMap<String, SimShard>,
    manifest: Option<SimManifest>,
}

/// The folder of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimFolder {
    checkpoints: BTreeMap<u64, SimCheckpoint>,
    /// The bits of loss and gradient norm by step, as the metrics file has them.
    pub(crate) metrics: BTreeMap<u64, (u64, u64)>,
}

/// The bytes of a shard file; all that matters is that both sides say the same.
const SHARD_BYTES: u64 = 64;

impl SimFolder {
    /// A rank writes its part of a checkpoint.
    pub(crate) fn write(&mut self, step: Step, generation: Generation, rank: u32, state: u64) -> SavedFile {
        let name = format!("model-g{generation}-r{rank:03}");
        let digest = format!("{:016x}", digest(&[state, step.0, generation.0, rank.into()]));
        let shard = SimShard { state, digest: digest.clone() };
        self.checkpoints.entry(step.0).or_default().shards.insert(name.clone(), shard);
        SavedFile { name, bytes: SHARD_BYTES, digest }
    }

    /// Publishes a checkpoint of `world` ranks.
    pub(crate) fn publish(
        &mut self,
        step: Step,
        files: &[SavedFile],
        world: u32,
        (threads, runtime): (u32, String),
    ) -> Result<String, String> {
        let checkpoint = self.checkpoints.entry(step.0).or_default();
        if let Some(missing) = files.iter().find(|file| !checkpoint.shards.contains_key(&file.name)) {
            return Err(format!("{} of step {step} is not there", missing.name));
        }
        if files.len() != world as usize {
            return Err(format!(
                "{} files of {world} leave a gap in the tensors of step {step}",
                files.len()
            ));
        }
        let mut files = files.to_vec();
        files.sort_by(|one, other| one.name.cmp(&other.name));
        let parts = files.iter().flat_map(|file| [digest_text(&file.name), digest_text(&file.digest)]);
        let digest = format!("{:016x}", digest(&parts.collect::<Vec<_>>()));
        checkpoint.manifest = Some(SimManifest { files, threads, runtime, digest: digest.clone() });
        Ok(digest)
    }

    /// The step and digest of the newest checkpoint that readers see.
    pub(crate) fn latest(&self) -> Option<(Step, String)> {
        let published = |(step, checkpoint): (&u64, &SimCheckpoint)| {
            Some((Step(*step), checkpoint.manifest.as_ref()?.digest.clone()))
        };
        self.checkpoints.iter().rev().find_map(published)
    }

    /// The threads and the runtime that a checkpoint was made with.
    pub(crate) fn made(&self, step: Step) -> (u32, String) {
        let manifest = self.checkpoints.get(&step.0).and_then(|checkpoint| checkpoint.manifest.as_ref());
        manifest.map_or((0, String::new()), |manifest| (manifest.threads, manifest.runtime.clone()))
    }

    /// The state that a checkpoint holds, if it can be read and is whole.
    pub(crate) fn read(&self, step: Step, expected: Option<&str>) -> Result<u64, String> {
        let no = |what: &str| Err(format!("the checkpoint of step {step} {what}"));
        let Some(checkpoint) = self.checkpoints.get(&step.0) else { return no("is not there") };
        let Some(manifest) = &checkpoint.manifest else { return no("has no manifest") };
        if expected.is_some_and(|expected| expected != manifest.digest) {
            return no("has another manifest than was expected");
        }
        let mut states = Vec::new();
        for file in &manifest.files {
            match checkpoint.shards.get(&file.name) {
                Some(shard) if shard.digest == file.digest => states.push(shard.state),
                Some(_) => return no("has a file that was written over"),
                None => return no("has lost a file"),
            }
        }
        states.dedup();
        match states.as_slice() {
            [state] => Ok(*state),
            _ => no("is a mixture of several states"),
        }
    }

    /// What is wrong with files that were committed for a step; they have to hold `state`.
    pub(crate) fn fault_of(&self, step: Step, files: &[SavedFile], state: u64) -> Option<String> {
        let Some(checkpoint) = self.checkpoints.get(&step.0) else {
            return Some("nothing is there".to_owned());
        };
        files.iter().find_map(|file| match checkpoint.shards.get(&file.name) {
            Some(shard) if shard.digest == file.digest && shard.state == state => None,
            Some(_) => Some(format!("{} holds something else", file.name)),
            None => Some(format!("{} is not there", file.name)),
        })
    }

    /// The steps that readers see.
    pub(crate) fn published(&self) -> Vec<u64> {
        let seen = self.checkpoints.iter().filter(|(_, checkpoint)| checkpoint.manifest.is_some());
        seen.map(|(step, _)| *step).collect()
    }

    /// Lets go of old checkpoints, as `coxswain_files::prune` does.
    pub(crate) fn prune(&mut self, newest: Step, keep: u32) {
        let mut published = self.published();
        published.retain(|step| *step <= newest.0);
        let Some(&newest) = published.last() else { return };
        let kept = published[published.len().saturating_sub(keep.max(1) as usize)..].to_vec();
        self.checkpoints.retain(|step, _| *step >= newest || kept.contains(step));
    }

    /// Opens the metrics of a run that goes on from a step: later ones are taken again.
    pub(crate) fn rewind_metrics(&mut self, from: Step) {
        self.metrics.split_off(&(from.0 + 1));
    }
}
