//! Jobs that passed their checks: what may be done with each.

use std::path::Path;

use coxswain_core::plan::sketch;
use coxswain_core::spec::{JobText, look, resolved_yaml};
use coxswain_files::{Fingerprint, Header};
use coxswain_types::assignment::{PreparedData, TokenFile};
use coxswain_types::job::{JobSpec, Lengths};

/// A plan lists every rank; larger worlds take longer and show no more.
const WORLD_MAX: u32 = 16;

/// Layers times micro-batches times shards, of which plans have a row each.
const ROWS_MAX: u64 = 1 << 12;

/// A small job.
pub(crate) fn small() -> JobSpec {
    let text = "name: small\nmodel: {layers: 1, dim: 8, heads: 2, vocab: 300}\n\
                data: {synthetic: {tokens: 999}}\ntrain: {steps: 2, sequence: 8}\n";
    look(&JobText { source: "small", text, sets: &[], base: Path::new("/") }).expect("a small job")
}

/// The header of the manifest of a job's checkpoint.
pub(crate) fn header(spec: JobSpec) -> Header {
    let tokens = TokenFile { path: "t".to_owned(), tokens: 9, digest: "d".to_owned() };
    Header {
        job: "small-1".to_owned(),
        step: 1,
        spec,
        fingerprint: Some(Fingerprint {
            runtime: "cpu".to_owned(),
            threads: 1,
            dtype: "fp32".to_owned(),
            precision: "fp32".to_owned(),
            global_micro_batches: 1,
            micro_batch_size: 1,
            gradient_groups: 1,
            tensor_shards: 0,
        }),
        data: PreparedData::of_tokens(tokens),
    }
}

/// Plans a job, where that is quick.
pub(crate) fn plan(spec: &JobSpec) {
    let world = spec.layout.world();
    let shards = spec.train.shards(spec.layout.tensor);
    let rows = [spec.model.all_layers(), spec.train.global_micro_batches, shards].map(u64::from);
    if world <= WORLD_MAX && rows.iter().product::<u64>() <= ROWS_MAX {
        drop(sketch(spec, world));
    }
    let lengths = Lengths::of(&spec.model, &spec.train);
    assert!(lengths.window >= lengths.target.min(2), "{lengths:?}");
}

/// A job that its door let in reads back from its own text as itself.
pub(crate) fn reads_back(spec: &JobSpec) {
    let text = resolved_yaml(spec).expect("a job as text");
    let again = look(&JobText { source: "again", text: &text, sets: &[], base: Path::new("/") });
    match again {
        Ok(again) => assert_eq!(again, *spec, "{text}"),
        Err(error) => panic!("{error}\n{text}"),
    }
}
