//! Every family in and out, from the configurations and names that its own library writes.

use coxswain_types::framing::Framing;
use coxswain_types::model::{Activation, Architecture, Attention, Biases, Head, Positions};
use proptest::prelude::*;
use serde_json::json;
use std::fs;

use super::store::Planned;
use super::*;

mod published;
mod said;

/// A configuration, and the shapes of tensors.
type Listed = (Map<String, Value>, BTreeMap<String, Vec<u64>>);

/// Names, shapes and configurations of small models, as `tests/parity/families.py` listed them.
fn families() -> BTreeMap<String, Listed> {
    serde_json::from_str(include_str!("families.json")).unwrap()
}

fn number(name: &str, at: usize) -> f32 {
    let key = name.bytes().fold(7_u64, |key, byte| coxswain_types::hash::mix(key ^ u64::from(byte)));
    (coxswain_types::hash::mix(key ^ at as u64) % 20_001) as f32 / 1e4 - 1.0
}

/// Writes a family's model of random numbers, in the type, into files of so many bytes.
fn written(folder: &Path, name: &str, dtype: &str, file_bytes: u64) -> (Map<String, Value>, Vec<Planned>) {
    let (config, tensors) = families().remove(name).unwrap();
    fs::write(folder.join(CONFIG), serde_json::to_vec(&config).unwrap()).unwrap();
    let planned: Vec<Planned> = tensors
        .into_iter()
        .map(|(name, shape)| Planned { name, shape, dtype: Some(dtype.to_owned()) })
        .collect();
    store::write(folder, &planned, file_bytes, |name| {
        let count = planned.iter().find(|of| of.name == name).unwrap().shape.iter().product::<u64>();
        let zero = name == "final_logits_bias";
        Ok((0..count as usize).map(|at| if zero { 0.0 } else { number(name, at) }).collect())
    })
    .unwrap();
    (config, planned)
}

/// Writes a model that was opened again.
fn export_again(opened: &HfModel, folder: &Path, file_bytes: u64) {
    let mut read = |name: &str, dim, offset, len| opened.read(name, dim, offset, len);
    let framing = Framing::default();
    let (model, kept) = (opened.model(), Some(opened.kept()));
    let said = Said { model, framing: &framing, tokenizer: None, class_names: &[], trained: None, kept };
    export(folder, &said, file_bytes, &mut read).unwrap();
}

fn whole(store: &TensorStore, planned: &Planned) -> Vec<u32> {
    let (rows, cols) = (planned.shape[0], planned.shape.get(1).copied().unwrap_or(1));
    let values = store.read(&planned.name, MatrixBlock { rows: (0, rows), cols: (0, cols) }).unwrap();
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_family_comes_back_bit_for_bit() {
    for (name, _) in families() {
        for (dtype, file_bytes) in [("F32", u64::MAX), ("BF16", 4096), ("F16", u64::MAX)] {
            let dir = tempfile::tempdir().unwrap();
            let (config, planned) = written(dir.path(), &name, dtype, file_bytes);
            let opened = HfModel::open(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            let again = tempfile::tempdir().unwrap();
            export_again(&opened, again.path(), file_bytes);
            let (before, after) =
                (TensorStore::open(dir.path()).unwrap(), TensorStore::open(again.path()).unwrap());
            for tensor in planned.iter().filter(|tensor| !opened.kept().unused.contains(&tensor.name)) {
                assert_eq!(after.dtype(&tensor.name).as_deref(), Some(dtype), "{name}: {}", tensor.name);
                assert!(whole(&before, tensor) == whole(&after, tensor), "{name}: {}", tensor.name);
            }
            assert!(after.names().all(|of| before.shape(of).is_some()), "{name}");
            let text = fs::read(again.path().join(CONFIG)).unwrap();
            let found: Map<String, Value> = serde_json::from_slice(&text).unwrap();
            assert!(config.keys().all(|key| found.contains_key(key)), "{name}: {found:?}");
            let reopened = HfModel::open(again.path()).unwrap();
            assert_eq!(reopened.model(), opened.model());
        }
    }
}

#[test]
fn slabs_are_parts_of_the_whole_and_nothing_else_is_read() {
    for (name, _) in families() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), &name, "F32", u64::MAX);
        let opened = HfModel::open(dir.path()).unwrap();
        for parameter in parameter_table(opened.model()) {
            let whole = opened.read(&parameter.name, 0, 0, parameter.shape[0]).unwrap();
            let cols = parameter.shape.get(1).copied().unwrap_or(1) as usize;
            for (dim, size) in (0..).zip(&parameter.shape) {
                let (offset, len) = (size / 3, size - size / 3 - size / 4);
                let slab = opened.read(&parameter.name, dim, offset, len).unwrap();
                let inside = |at: &usize| {
                    let along = [at / cols, at % cols][usize::from(dim)] as u64;
                    (offset..offset + len).contains(&along)
                };
                let wanted: Vec<f32> = (0..whole.len()).filter(inside).map(|at| whole[at]).collect();
                assert_eq!(slab, wanted, "{name}: {} along {dim}", parameter.name);
            }
            assert!(opened.read(&parameter.name, 0, 1, parameter.shape[0]).is_err());
        }
    }
}

/// Without what was kept, a model of ours finds the family that can say it.
#[test]
fn models_find_their_family() {
    for (name, (config, _)) in families() {
        let (_, model) = config::read(&config).unwrap();
        let (family, written) =
            config::write(&model, None, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (_, again) = config::read(&written).unwrap();
        assert_eq!(again, model, "{name} as {family:?}");
    }
    let (mut config, _) = families().remove("big_bird").unwrap();
    config.insert("attention_type".to_owned(), json!("block_sparse"));
    config.insert("num_random_blocks".to_owned(), json!(2));
    let (_, model) = config::read(&config).unwrap();
    assert_eq!(model.attention, Attention::BigBird { block: 64, window: 3, global: 1, last: 1, random: 2 });
    let (_, written) = config::write(&model, None, &[]).unwrap();
    assert_eq!(config::read(&written).unwrap().1, model);
    let wider = ModelSpec {
        attention: Attention::BigBird { block: 64, window: 5, global: 1, last: 1, random: 2 },
        ..model
    };
    let refused = config::write(&wider, None, &[]).unwrap_err().to_string();
    assert!(refused.contains("differs in attention"), "{refused}");
    let odd = ModelSpec { logit_scale: 0.5, ..ModelSpec::llama(2, 16, 4, 2, 24, 60) };
    let error = config::write(&odd, None, &[]).unwrap_err().to_string();
    assert!(error.contains("the nearest, llama, differs in logit_scale (0.5)"), "{error}");
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    let quantized = json!({"quant_method": "gptq", "bits": 4});
    let rows: [(&str, &str, Value, &str); 46] = [
        (
            "llama",
            "original_max_position_embeddings",
            json!(64),
            "`original_max_position_embeddings` is 64; must be 32 for this program",
        ),
        ("llama", "quantization_config", quantized, "import the weights before their quantization"),
        (
            "llama",
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "must be \"full_attention\" for each of 2 layers",
        ),
        (
            "llama",
            "rope_scaling",
            json!({"type": "dynamic", "factor": 2.0}),
            "`type` is \"dynamic\"; must be",
        ),
        ("llama", "partial_rotary_factor", json!(0.5), "`partial_rotary_factor` is 0.5; must be 1 for"),
        ("llama", "architectures", json!(["LlamaModel"]), "an output head: LlamaModel has none"),
        ("bert", "architectures", json!(["BertLMHeadModel"]), "must be one of BertForMaskedLM, BertModel"),
        ("bert", "hidden_act", Value::Null, "`hidden_act` is null; must be a word"),
        (
            "bert",
            "hidden_act",
            json!("quick_gelu"),
            "must be gelu, gelu_new, gelu_pytorch_tanh, relu or silu",
        ),
        ("roberta", "pad_token_id", Value::Null, "`pad_token_id` is null; must be a count"),
        ("roberta", "max_position_embeddings", json!(2), "must be above 2, the rows before the first"),
        ("bert, classes", "problem_type", json!("regression"), "must be \"single_label_classification\""),
        ("bert, classes", "problem_type", json!("multi_label_classification"), "must be \"single_label"),
        ("bert, classes", "id2label", json!({"0": "score"}), "must be two classes or more for this program"),
        ("longformer", "attention_window", json!([4, 4, 4]), "or a list of it for each"),
        ("longformer", "attention_window", json!([4, "x"]), "or a list of it for each"),
        ("t5", "dense_act_fn", json!("silu"), "`dense_act_fn` is \"silu\"; must be \"relu\""),
        (
            "big_bird",
            "architectures",
            json!(["BigBirdForSequenceClassification"]),
            "must be one of BigBirdForM",
        ),
        ("llama", "model_type", json!("gemma"), "`model_type` is \"gemma\"; must be one of llama, mistral"),
        ("llama", "hidden_act", json!("gelu"), "`hidden_act` is \"gelu\"; must be \"silu\""),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "dynamic"}),
            "`rope_type` is \"dynamic\"; must be default",
        ),
        ("llama", "hidden_size", Value::Null, "`hidden_size` is null; must be a count"),
        ("llama", "num_key_value_heads", json!(3), "model.kv_heads: found 3; must divide model.heads (4)"),
        (
            "llama",
            "num_hidden_layers",
            json!(u32::MAX),
            "`num_hidden_layers`: found 4294967295; must be 1024 or less",
        ),
        (
            "albert",
            "num_hidden_layers",
            json!(u32::MAX),
            "`num_hidden_layers`: found 4294967295; must be 1024",
        ),
        (
            "albert",
            "num_hidden_groups",
            json!(u32::MAX),
            "`num_hidden_groups`: found 4294967295; must be 1024",
        ),
        ("albert", "embedding_size", json!(1 << 17), "`embedding_size`: found 131072; must be 65536"),
        ("bart", "max_position_embeddings", json!(u32::MAX), "`max_position_embeddings`: found 4294967295"),
        ("bart", "encoder_layers", json!(1 << 20), "`encoder_layers`: found 1048576; must be 1024"),
        ("t5", "relative_attention_num_buckets", json!(u32::MAX), "`relative_attention_num_buckets`: found"),
        ("t5", "d_kv", json!(u64::MAX), "`d_kv`: found 18446744073709551615; must be 65536 or less"),
        ("gpt2", "n_inner", json!(u32::MAX), "`n_inner`: found 4294967295; must be 262144 or less"),
        ("bert", "type_vocab_size", json!(u32::MAX), "`type_vocab_size`: found 4294967295; must be 1024"),
        ("bert", "vocab_size", json!(u32::MAX), "`vocab_size`: found 4294967295; must be 1048576 or less"),
        ("llama", "num_attention_heads", json!(0), "`num_attention_heads`: found 0; must be 1 or more"),
        ("roberta", "pad_token_id", json!(5000), "must be above 5001"),
        ("longformer", "attention_window", json!(1_u64 << 32), "model.attention.window: found 2147483648"),
        ("llama", "rms_norm_eps", json!(2.0), "model.norm_eps: found 2.0"),
        (
            "llama",
            "architectures",
            json!(["LlamaForTokenClassification"]),
            "must be one of LlamaForCausalLM, LlamaModel",
        ),
        ("qwen2", "use_sliding_window", json!(true), "`use_sliding_window` is true; must be false"),
        ("qwen3", "use_sliding_window", json!(true), "`use_sliding_window` is true; must be false"),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), "must be false"),
        ("bert", "position_embedding_type", json!("relative_key"), "must be \"absolute\""),
        ("longformer", "attention_window", json!([4, 8]), "must be one even number for all layers"),
        ("big_bird", "attention_type", json!("sparse"), "must be block_sparse or original_full"),
        ("bart", "encoder_ffn_dim", json!(32), "`encoder_ffn_dim` is 32; must be 24"),
    ];
    for (family, key, value, told) in rows {
        let (mut config, _) = families().remove(family).unwrap();
        config.insert(key.to_owned(), value);
        let error = config::read(&config).unwrap_err().to_string();
        assert!(error.contains(told), "{family} {key}: {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_told() {
    let change = |change: &dyn Fn(&mut Vec<Planned>)| {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut planned) = written(dir.path(), "gpt2", "F32", u64::MAX);
        change(&mut planned);
        let values = |name: &str| {
            let count = planned.iter().find(|of| of.name == name).unwrap().shape.iter().product::<u64>();
            Ok(vec![1.0; count as usize])
        };
        store::write(dir.path(), &planned, u64::MAX, values).unwrap();
        HfModel::open(dir.path()).err().map(|error| error.to_string())
    };
    let extra = |name: &str, shape: &[u64]| Planned { name: name.into(), shape: shape.into(), dtype: None };
    assert_eq!(change(&|_| {}), None);
    let missing = change(&|planned| drop(planned.remove(0))).unwrap();
    assert!(
        missing.contains("`transformer.h.0.attn.c_attn.bias` is not there; config.json says [48]"),
        "{missing}"
    );
    let longer = change(&|planned| planned[0].shape = vec![49]).unwrap();
    assert!(longer.contains("has shape [49]; config.json says [48]"), "{longer}");
    let more = change(&|planned| planned.push(extra("transformer.extra.weight", &[3]))).unwrap();
    assert!(more.contains("`transformer.extra.weight` is there, and this program knows no use"), "{more}");
    assert_eq!(change(&|planned| planned.push(extra("lm_head.weight", &[60, 16]))), None);
    let untied = change(&|planned| planned.push(extra("lm_head.weight", &[60, 15]))).unwrap();
    assert!(untied.contains("is not the same as the tensor that config.json ties it to"), "{untied}");
}

/// What a configuration says that has nothing but its type, and what keys are that change no number.
#[test]
fn a_key_that_is_left_out_has_its_class_s_default() {
    let read = |config: Value| config::read(config.as_object().unwrap()).unwrap().1;
    let of = |name: &str| read(json!({"model_type": name}));
    let mistral = of("mistral");
    assert_eq!((mistral.kv_heads, mistral.attention), (8, Attention::Window { window: 4096 }));
    let null = read(json!({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null}));
    assert_eq!((null.kv_heads, null.attention), (32, Attention::Full));
    let qwen3 = of("qwen3");
    assert_eq!((qwen3.norm.qk_norm, qwen3.head_dim, qwen3.biases), (true, 128, Biases::default()));
    assert!(!of("qwen2").norm.qk_norm);
    assert_eq!((of("qwen2").kv_heads, of("llama").ffn, of("llama").norm.eps), (32, 11008, 1e-6));
    assert_eq!(
        of("longformer").attention,
        Attention::Longformer { window: 256, global: 1, projections: true }
    );
    let bigbird = Attention::BigBird { block: 64, window: 3, global: 1, last: 1, random: 3 };
    assert_eq!((of("big_bird").attention, of("big_bird").activation), (bigbird, Activation::GeluTanh));
    assert_eq!(
        (of("bert").activation, of("bert").embedding.types, of("bert").norm.eps),
        (Activation::Gelu, 2, 1e-12)
    );
    assert_eq!(of("roberta").positions, Positions::Learned { max: 510, offset: 2 });
    assert_eq!((of("albert").layer_groups, of("albert").embedding.dim, of("albert").heads), (1, 128, 64));
    assert_eq!((of("t5").encoder_layers, of("t5").layers, of("t5").tied_embeddings), (6, 6, true));
    assert_eq!(of("t5").logit_scale, 512_f64.powf(-0.5));
    assert_eq!((of("bart").dim, of("bart").tied_embeddings), (1024, true));
    assert_eq!((of("gpt2").ffn, of("gpt2").activation), (3072, Activation::GeluTanh));
}

#[test]
fn every_key_of_a_class_is_followed_or_refused_or_changes_no_number() {
    // Training, text, and how the library computes.
    let quiet = |family: &str, key: &str| {
        let ends = ["dropout", "dropout_prob", "dropout_rate", "_pdrop", "layerdrop", "use_cache"];
        let begins = ["initializer_", "init_std", "summary_", "classifier_dropout", "forced_", "onnx_export"];
        let token = key.ends_with("_token_id") && (key, family) != ("pad_token_id", "roberta");
        let rotates =
            matches!(family, "llama" | "mistral" | "qwen2" | "qwen3") && key == "max_position_embeddings";
        let windows = family.starts_with("qwen") && ["sliding_window", "max_window_layers"].contains(&key);
        let any = ends.iter().any(|end| key.ends_with(end)) || begins.iter().any(|of| key.starts_with(of));
        any || rotates
            || windows
            || key == "reorder_and_upcast_attn"
            || token && (family, key) != ("longformer", "pad_token_id")
    };
    let defaults: BTreeMap<String, Map<String, Value>> =
        serde_json::from_str(include_str!("defaults.json")).unwrap();
    for (family, keys) in defaults {
        let plain: Map<String, Value> =
            [("model_type".to_owned(), family.as_str().into())].into_iter().collect();
        let model = config::read(&plain).unwrap_or_else(|error| panic!("{family}: {error}")).1;
        for (key, value) in keys {
            let other = match &value {
                Value::Bool(flag) => json!(!flag),
                Value::Number(n) if n.is_f64() => json!(n.as_f64().unwrap() / 2.0 + 0.01),
                Value::Number(n) => json!(n.as_u64().unwrap() * 2 + 2),
                Value::String(word) => json!(if word == "relu" { "gelu" } else { "relu" }),
                _ if key == "rope_parameters" => json!({"rope_theta": 5e5}),
                _ if key == "layer_types" => json!(["sliding_attention"]),
                _ => json!(16),
            };
            let mut config = plain.clone();
            config.insert(key.clone(), other.clone());
            let follows = config::read(&config).map_or(true, |(_, read)| read != model);
            assert_eq!(follows, !quiet(&family, &key), "{family}: {key} {other}");
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_reading_panic(at in 0_usize..4000, byte: u8, cut in 0_usize..6000) {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path(), "qwen2", "F32", u64::MAX);
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        if at < bytes.len() {
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        fs::write(&path, &bytes).unwrap();
        if let Ok(opened) = HfModel::open(dir.path()) {
            for parameter in parameter_table(opened.model()) {
                let _ = opened.read(&parameter.name, 0, 0, parameter.shape[0]);
            }
        }
    }
}
