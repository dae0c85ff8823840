//! Any manifest that a stranger wrote and sealed is one whose job can be looked at, or is refused.

use coxswain_core::spec::resolved_yaml;
use coxswain_files::atomic::digest_bytes;
use coxswain_files::manifest::{FORMAT, MANIFEST};
use coxswain_files::{Checkpoint, Manifest, hf};
use coxswain_types::framing::Framing;
use coxswain_types::job::Layout;
use coxswain_types::params::{Parameter, parameter_table};

use crate::{folder, jobs};

/// Reads what follows the format and the checksum of a manifest, and does what `export` and `generate` do before
/// they read a tensor.
pub fn run(bytes: &[u8]) {
    let seal = format!("{{\n  \"format\": {FORMAT},\n  \"checksum\": \"{}\",\n", digest_bytes(bytes));
    let sealed = [seal.as_bytes(), bytes].concat();
    let Ok(manifest) = folder::with(&[(MANIFEST, &sealed)], |folder| {
        let opened = Checkpoint::open(&folder.into(), None);
        drop(opened.map(|checkpoint| (checkpoint.verify(), checkpoint.expect_model())));
        Manifest::read(&folder.into(), None)
    }) else {
        return;
    };
    let mut spec = manifest.spec;
    let numbers: u128 = parameter_table(&spec.model).iter().map(Parameter::elements).map(u128::from).sum();
    assert!(numbers <= u128::from(u64::MAX), "{numbers} numbers");
    drop(resolved_yaml(&spec).expect("a job as text"));
    drop(hf::form(&spec.model, None, Some(&manifest.data.framing)));
    drop(Framing::own(&spec.model, &spec.train, 0));
    drop(manifest.data.framing.whole(&[1, 2, 3], manifest.data.framing.longest));
    jobs::plan(&spec);
    // As a model that writes is split.
    (spec.layout, spec.actions) = (Layout::ONE, Vec::new());
    (spec.train.micro_batch_size, spec.train.global_micro_batches, spec.train.gradient_groups) = (1, 1, 1);
    jobs::plan(&spec);
}
