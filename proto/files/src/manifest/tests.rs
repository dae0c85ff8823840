use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::fixture::{header, slab, write};

#[test]
fn publishing_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(&dir.path().into(), "a", &[slab("w", &[4, 2], 0, 0, 2)]);
    let b = write(&dir.path().into(), "b", &[slab("w", &[4, 2], 0, 2, 2), slab("n", &[3], 0, 0, 3)]);
    let digest = publish(&dir.path().into(), &[a.clone(), b.clone()], header(7)).unwrap();
    let first = std::fs::read(dir.path().join(MANIFEST)).unwrap();
    assert_eq!(publish(&dir.path().into(), &[b, a], header(7)).unwrap(), digest);
    assert_eq!(std::fs::read(dir.path().join(MANIFEST)).unwrap(), first);
    assert_eq!(digest_bytes(&first), digest);

    let manifest = Manifest::read(&dir.path().into(), Some(&digest)).unwrap();
    assert_eq!((manifest.step, manifest.spec), (7, header(7).spec));
    let pieces: Vec<_> = manifest
        .tensors
        .iter()
        .flat_map(|t| t.pieces.iter().map(|p| format!("{} {} {}+{}", t.name, p.file, p.offset, p.len)))
        .collect();
    assert_eq!(pieces, ["n b 0+3", "w a 0+2", "w b 2+2"]);
    let error = Manifest::read(&dir.path().into(), Some("00")).unwrap_err();
    assert!(matches!(error, CheckpointError::Digest { .. }), "{error}");
}

#[test]
fn what_makes_up_no_checkpoint_is_not_published() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, cuts: &[(u8, u64, u64)]| {
        let slabs: Vec<_> =
            cuts.iter().map(|&(dim, offset, len)| slab("w", &[4, 2], dim, offset, len)).collect();
        write(&dir.path().into(), name, &slabs)
    };
    let (low, high, all) = (save("low", &[(0, 0, 2)]), save("high", &[(0, 2, 2)]), save("all", &[(0, 0, 4)]));
    let column = save("column", &[(1, 1, 1)]);
    let other = write(&dir.path().into(), "other", &[slab("w", &[4, 3], 0, 2, 2)]);
    let absent = SavedFile { name: "absent".into(), ..low.clone() };
    let short = SavedFile { bytes: low.bytes + 1, ..low.clone() };
    let outside = SavedFile { name: "../low".into(), ..low.clone() };
    let rows = [
        (vec![&low], "tensor `w`: a gap: 2..4 along dimension 0 is in no file"),
        (vec![&high], "tensor `w`: a gap: 0..2 along dimension 0 is in no file"),
        (vec![&low, &all], "tensor `w`: an overlap: 0..2 along dimension 0 is in more than one file"),
        (vec![&low, &column], "tensor `w`: an overlap: slabs along dimension"),
        (vec![&low, &low, &high], "is named twice"),
        (vec![&low, &other], "tensor `w` has shape [4, 2] in one file and [4, 3] in other"),
        (vec![&low, &absent], "absent"),
        (vec![&short, &high], "bytes where the checkpoint recorded"),
        (vec![&outside, &high], "`../low` can be no shard file"),
    ];
    for (files, expected) in rows {
        let files: Vec<SavedFile> = files.into_iter().cloned().collect();
        let error = publish(&dir.path().into(), &files, header(1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!dir.path().join(MANIFEST).exists());
    }
    publish(&dir.path().into(), &[low, high], header(1)).unwrap();
}

#[test]
fn fingerprints_say_what_differs() {
    let one = header(0).fingerprint.unwrap();
    assert!(one.differences(&one).is_empty());
    let other = Fingerprint {
        threads: 9,
        precision: "bf16".into(),
        gradient_groups: 0,
        tensor_shards: 4,
        ..one.clone()
    };
    assert_eq!(
        one.differences(&other),
        [
            "train.threads: the checkpoint has 1, this run 9",
            "train.precision: the checkpoint has fp32, this run bf16",
            "train.gradient_groups: the checkpoint has 2, this run one for each data rank (fast)",
            "train.tensor_shards: the checkpoint has none, this run 4",
        ]
    );
}

/// A manifest of a stranger whose job has another value at a place.
fn foreign(folder: &Path, place: &str, value: &Value) -> Result<Manifest, CheckpointError> {
    let Header { job, step, spec, fingerprint, data } = header(1);
    let (files, tensors) = (Vec::new(), Vec::new());
    let manifest = Manifest { format: FORMAT, job, step, spec, fingerprint, data, files, tensors };
    let mut json = serde_json::to_value(&manifest).unwrap();
    *json.pointer_mut(&format!("/spec/{place}")).unwrap() = value.clone();
    // In the order of a manifest's own text, where the format comes first.
    let Value::Object(mut rest) = json else { panic!("a manifest is a map") };
    rest.remove("format");
    let rest = serde_json::to_string_pretty(&rest).unwrap();
    let text = format!("{{\n  \"format\": {FORMAT},{}", rest.strip_prefix('{').unwrap());
    std::fs::write(folder.join(MANIFEST), seal(&text).unwrap()).unwrap();
    Manifest::read(&folder.into(), None)
}

#[test]
fn a_foreign_job_out_of_bounds_is_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    assert!(foreign(dir.path(), "name", &json!("other")).is_ok());
    let huge = json!(u32::MAX);
    let learned = json!({"learned": {"max": u32::MAX, "offset": u32::MAX}});
    let rows = [
        ("model/layers", &huge, "model.layers: found 4294967295; must be 1024 or less"),
        ("model/encoder_layers", &huge, "model.encoder_layers"),
        ("model/dim", &huge, "model.dim"),
        ("model/heads", &json!(0), "model.heads"),
        ("model/kv_heads", &json!(0), "model.kv_heads"),
        ("model/vocab", &huge, "model.vocab"),
        ("model/ffn", &huge, "model.ffn"),
        ("model/layer_groups", &json!(0), "model.layer_groups"),
        ("model/positions", &learned, "model.max_positions"),
        ("model/attention", &json!({"window": {"window": 0}}), "model.attention.window"),
        ("name", &json!("x".repeat(1 << 20)), "name: has 1048576 bytes"),
        ("train/steps", &json!(u64::MAX), "train.steps"),
        ("train/sequence", &huge, "train.sequence"),
        ("train/micro_batch_size", &huge, "train.micro_batch_size"),
        ("train/global_micro_batches", &huge, "train.global_micro_batches"),
        ("train/gradient_groups", &huge, "train.gradient_groups"),
        ("train/tensor_shards", &json!(3), "train.tensor_shards"),
        ("train/threads", &huge, "train.threads"),
        ("train/mask_rate", &json!(1.0), "train.mask_rate"),
        ("train/dropout", &json!(-1.0), "train.dropout"),
        ("train/recompute", &json!({"budget": {"bytes": u64::MAX}}), "train.recompute.budget"),
        ("train/optimizer/learning_rate", &json!(0.0), "train.learning_rate"),
        ("train/optimizer/beta1", &json!(1.5), "train.betas"),
        ("data", &json!({"synthetic": {"tokens": u64::MAX}}), "data.synthetic.tokens"),
        ("data", &json!({"text": {"files": vec!["/x"; 2000], "validation": 0.0}}), "names 2000 files"),
        ("layout/pipeline", &huge, "layout.pipeline"),
        ("layout/tensor", &json!(0), "layout.tensor"),
        ("layout/schedule", &json!({"interleaved": {"chunks": u32::MAX}}), "layout.chunks"),
        ("layout/data", &json!(3), "layout.data: found 3; must be 2 or less"),
        ("layout/tensor", &json!(3), "layout.tensor: found 3, which does not split 2 heads"),
        ("checkpoint/keep", &huge, "checkpoint.keep"),
    ];
    for (place, value, told) in rows {
        let start = Instant::now();
        let error = foreign(dir.path(), place, value).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(1), "{place}");
        assert!(error.is_damage(), "{place}");
        let error = error.to_string();
        assert!(error.contains(told) && error.contains("its job says"), "{place}: {error}");
    }
}
