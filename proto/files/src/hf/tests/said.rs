//! What exports say beside the weights.

use coxswain_types::framing::Sentinels;
use coxswain_types::model::{Biases, EmbeddingSpec, NormKind, NormPlacement, NormSpec, RopeScaling};

use super::*;
use crate::atomic::digest_bytes;
use crate::tokenizer::Tokenizer;

/// The folders of `tests/parity/tokens.json`, and the families that have such tokens.
const TOKENS: [(&str, &[&str]); 5] = [
    ("begins", &["llama", "mistral", "qwen2", "qwen3"]),
    ("plain", &["gpt2"]),
    ("bert", &["bert", "bert, classes", "roberta", "albert", "longformer", "big_bird"]),
    ("t5", &["t5", "t5, gated"]),
    ("bart", &["bart"]),
];

fn keys(files: &BTreeMap<&'static str, Vec<u8>>, name: &str) -> Map<String, Value> {
    files.get(name).map(|bytes| serde_json::from_slice(bytes).unwrap()).unwrap_or_default()
}

fn put(folder: &Path, files: &BTreeMap<&'static str, Vec<u8>>) {
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// An import that is exported is the import, and is read as it was.
#[test]
fn tokens_that_came_in_leave_as_they_were() {
    let all: Value = serde_json::from_str(include_str!("../../../../../tests/parity/tokens.json")).unwrap();
    let rows = TOKENS.iter().flat_map(|(name, all)| all.iter().map(move |of| (*name, *of)));
    for (name, of) in rows {
        let (mut config, _) = families().remove(of).unwrap();
        let folder = &all["folders"][name];
        let pads = matches!(of, "roberta" | "longformer");
        config.retain(|key, _| !key.ends_with("token_id") || pads && key == "pad_token_id");
        for (key, value) in folder["files"]["config.json"].as_object().unwrap() {
            if key != "model_type" && !(pads && key == "pad_token_id") {
                config.insert(key.clone(), value.clone());
            }
        }
        config.insert("vocab_size".to_owned(), folder["vocab"].clone());
        let dir = tempfile::tempdir().unwrap();
        for (file, value) in folder["files"].as_object().unwrap() {
            fs::write(dir.path().join(file), value.to_string()).unwrap();
        }
        let bytes = folder["files"]["tokenizer.json"].to_string().into_bytes();
        let tokenizer = Tokenizer::of_any(&bytes).unwrap();
        let model = config::read(&config).unwrap().1;
        let before = framing(dir.path(), &config, &model, Some(&tokenizer)).unwrap();
        let digest = Some(digest_bytes(&bytes));
        let kept = Kept {
            config: config.clone(),
            beside: beside(dir.path()).unwrap(),
            tokenizer: digest,
            ..Kept::default()
        };
        let said = |kept| {
            let said = Said {
                model: &model,
                framing: &before,
                tokenizer: Some(&tokenizer),
                class_names: &[],
                trained: None,
                kept: Some(kept),
            };
            said.files().unwrap().1
        };
        let files = said(&kept);
        assert!(files["tokenizer.json"] == bytes, "{of}");
        let (left, came) = (keys(&files, "tokenizer_config.json"), &folder["files"]["tokenizer_config.json"]);
        let (left, came): (Value, &Value) = (left.into(), came);
        assert!(came.as_object().unwrap().iter().all(|(key, value)| left[key] == *value), "{of}: {left}");
        let written = keys(&files, "config.json");
        for (key, value) in config.iter().filter(|(_, value)| !value.is_null()) {
            assert_eq!(written[key], *value, "{of}: {key}");
        }
        let again = tempfile::tempdir().unwrap();
        put(again.path(), &files);
        let after = framing(again.path(), &written, &model, Some(&tokenizer)).unwrap();
        assert_eq!(after, before, "{of}");
        let kept = Kept { config: written, beside: beside(again.path()).unwrap(), ..kept.clone() };
        assert!(said(&kept) == files, "{of}: a second export differs");
    }
}

fn encoder() -> ModelSpec {
    let plain = ModelSpec::llama(1, 16, 2, 2, 16, 400);
    ModelSpec {
        architecture: Architecture::Encoder,
        positions: Positions::Learned { max: 32, offset: 0 },
        norm: NormSpec::new(NormKind::Layer, NormPlacement::Post, 1e-12),
        activation: Activation::Gelu,
        biases: Biases { qkv: true, out: true, ffn: true },
        embedding: EmbeddingSpec { types: 2, norm: true, ..plain.embedding },
        head: Head::MaskedLm { activation: Activation::Gelu },
        tied_embeddings: true,
        ..plain
    }
}

fn t5() -> ModelSpec {
    ModelSpec {
        architecture: Architecture::EncoderDecoder,
        encoder_layers: 1,
        positions: Positions::RelativeBias { buckets: 8, max_distance: 16 },
        activation: Activation::Relu,
        attention_scale: 1.0,
        logit_scale: 0.25,
        tied_embeddings: true,
        ..ModelSpec::llama(1, 16, 2, 2, 16, 400)
    }
}

/// Of models that were trained here, with the tokenizer that was.
#[test]
fn what_was_trained_here_says_what_its_library_must_know() {
    let tokenizer = Tokenizer::train(&["the boat goes on and on"], 280).unwrap();
    let end = crate::tokenizer::END_OF_TEXT;
    let llama = ModelSpec::llama(1, 16, 2, 1, 16, 400);
    let scaled = ModelSpec {
        positions: Positions::Rope {
            theta: 5e5,
            scaling: RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, original: 32 },
        },
        ..llama.clone()
    };
    let bare = Framing::default();
    let masks = Framing { sentinels: Some(Sentinels { first: 399, count: 1 }), ..Framing::default() };
    let pooled = ModelSpec { head: Head::Pooled { classes: 2 }, tied_embeddings: false, ..encoder() };
    let begins = Framing { begin: vec![0], longest: Some(24), ..Framing::default() };
    let spans =
        Framing { close: vec![0], sentinels: Some(Sentinels { first: 399, count: 3 }), ..Framing::default() };
    let stops = Framing { end: 1, stops: vec![2, 3], bos: Some(4), pad: Some(5), ..Framing::default() };
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 32,
    });
    let mut with_theta = yarn.clone();
    with_theta["rope_theta"] = json!(5e5);
    let (config, generation, words) = ("config.json", "generation_config.json", "tokenizer_config.json");
    type Keys<'a> = Vec<(&'a str, &'a str, Value)>;
    let rows: [(&str, &ModelSpec, &Framing, Keys<'_>); 6] = [
        (
            "llama",
            &llama,
            &bare,
            vec![
                (config, "eos_token_id", json!(0)),
                (config, "bos_token_id", json!(0)),
                (config, "pad_token_id", json!(0)),
                (config, "max_position_embeddings", json!(48)),
                (config, "rope_scaling", Value::Null),
                (config, "rope_parameters", json!({"rope_type": "default", "rope_theta": 1e4})),
                (config, "dtype", json!("float32")),
                (generation, "eos_token_id", json!(0)),
                (words, "eos_token", json!(end)),
                (words, "pad_token", json!(end)),
                (words, "add_bos_token", json!(false)),
                (words, "model_max_length", json!(48)),
                (words, "tokenizer_class", json!("PreTrainedTokenizerFast")),
            ],
        ),
        (
            "yarn",
            &scaled,
            &stops,
            vec![
                (config, "eos_token_id", json!([1, 2, 3])),
                (generation, "eos_token_id", json!([1, 2, 3])),
                (generation, "bos_token_id", json!(4)),
                (config, "pad_token_id", json!(5)),
                (config, "max_position_embeddings", json!(128)),
                (config, "rope_theta", json!(5e5)),
                (config, "rope_scaling", yarn),
                (config, "rope_parameters", with_theta),
            ],
        ),
        (
            "masks",
            &encoder(),
            &masks,
            vec![
                (words, "mask_token", json!("<mask>")),
                (words, "sep_token", json!(end)),
                (words, "model_max_length", json!(32)),
                (config, "bos_token_id", Value::Null),
                (generation, "eos_token_id", Value::Null),
            ],
        ),
        (
            "pooled",
            &pooled,
            &begins,
            vec![
                (config, "id2label", json!({"0": "neg", "1": "pos"})),
                (config, "label2id", json!({"neg": 0, "pos": 1})),
                (config, "num_labels", json!(2)),
                (words, "cls_token", json!(end)),
                (words, "add_bos_token", json!(true)),
                (words, "add_eos_token", json!(false)),
                (words, "model_max_length", json!(24)),
            ],
        ),
        (
            "spans",
            &t5(),
            &spans,
            vec![
                (config, "decoder_start_token_id", json!(0)),
                (config, "pad_token_id", json!(0)),
                (generation, "decoder_start_token_id", json!(0)),
                (generation, "forced_bos_token_id", Value::Null),
                (words, "mask_token", Value::Null),
                (words, "add_eos_token", json!(true)),
            ],
        ),
        (
            "forced",
            &t5(),
            &Framing { decoder_start: vec![2, 7], ..Framing::default() },
            vec![(config, "decoder_start_token_id", json!(2)), (generation, "forced_bos_token_id", json!(7))],
        ),
    ];
    let class_names = ["neg", "pos"].map(str::to_owned);
    for (name, model, framing, told) in rows {
        let said = Said {
            model,
            framing,
            tokenizer: Some(&tokenizer),
            class_names: &class_names,
            trained: Some(48),
            kept: None,
        };
        let (_, files) = said.files().unwrap();
        for (file, key, value) in told {
            let found = keys(&files, file).get(key).cloned().unwrap_or_default();
            assert_eq!(found, value, "{name}: {file} {key}");
        }
        // What was written says the same framing to whoever reads it.
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), &files);
        let read = Tokenizer::of_any(&files["tokenizer.json"]).unwrap();
        let again = super::framing(dir.path(), &keys(&files, config), model, Some(&read)).unwrap();
        assert_eq!(
            (&again.begin, &again.close, again.end),
            (&framing.begin, &framing.close, framing.end),
            "{name}"
        );
        assert_eq!((&again.stops, again.sentinels), (&framing.stops, framing.sentinels), "{name}");
        if model.encoder_layers > 0 {
            assert_eq!(again.decoder_begin(), framing.decoder_begin(), "{name}");
        }
        let text = "the boat <mask> went <extra_id_0> on";
        assert_eq!(read.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{name}");
    }
}

/// Without a tokenizer nothing is known of tokens, and classes' own ends of texts are not taken for theirs.
#[test]
fn tokens_that_mean_nothing_are_not_named() {
    let model = ModelSpec::llama(1, 16, 2, 1, 16, 60);
    let framing = Framing::default();
    let (config, _) = families().remove("llama").unwrap();
    let kept = Kept { config: config.clone(), ..Kept::default() };
    let said = |model, kept| Said {
        model,
        framing: &framing,
        tokenizer: None,
        class_names: &[],
        trained: None,
        kept,
    };
    let synthetic = said(&model, None).files().unwrap().1;
    assert_eq!(synthetic.keys().collect::<Vec<_>>(), [&"config.json", &"generation_config.json"]);
    let imported = config::read(&config).unwrap().1;
    let files = said(&imported, Some(&kept)).files().unwrap().1;
    assert_eq!(files.len(), 1);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"] {
        assert_eq!(keys(&files, "config.json")[key], config[key], "{key}");
    }
}

/// What a job changes of an import is said by no older key.
#[test]
fn no_stale_key_of_an_import_is_left() {
    let (mut config, _) = families().remove("mistral").unwrap();
    let scaling = json!({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64});
    config.insert("rope_scaling".to_owned(), scaling);
    config.insert("original_max_position_embeddings".to_owned(), json!(64));
    config.insert("layer_types".to_owned(), json!(["sliding_attention", "sliding_attention"]));
    let model = config::read(&config).unwrap().1;
    let Positions::Rope { theta, scaling } = model.positions else { panic!("{:?}", model.positions) };
    assert!(matches!(scaling, RopeScaling::Yarn { original: 64, .. }), "{scaling:?}");
    let longer = RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, original: 32 };
    for (scaling, rope_type) in [(longer, "yarn"), (RopeScaling::None, "default")] {
        let positions = Positions::Rope { theta, scaling };
        let model = ModelSpec { positions, attention: Attention::Full, ..model.clone() };
        let (_, written) = config::write(&model, Some(&config), &[]).unwrap();
        assert!(!written.contains_key("original_max_position_embeddings"), "{written:?}");
        assert_eq!(written["layer_types"], json!(["full_attention", "full_attention"]));
        assert_eq!(written["rope_parameters"]["rope_type"], json!(rope_type));
        let of_older = written["rope_scaling"].get("rope_type").cloned();
        assert_eq!(of_older, (rope_type == "yarn").then(|| json!("yarn")));
    }
}

#[test]
fn names_of_classes_come_and_go() {
    let (mut config, _) = families().remove("bert, classes").unwrap();
    let model = config::read(&config).unwrap().1;
    let named = json!({"0": "bad", "1": "fair", "10": "x", "2": "good"});
    let plain =
        |config: &Map<String, Value>| Kept { config: config.clone(), ..Kept::default() }.class_names();
    config.insert("id2label".to_owned(), named);
    assert!(plain(&config).is_empty(), "not all numbers have a name");
    config.insert("id2label".to_owned(), json!({"0": "bad", "1": "fair", "2": "good"}));
    assert_eq!(plain(&config), ["bad", "fair", "good"]);
    let given = ["a", "b", "c"].map(str::to_owned);
    let two = ModelSpec { head: Head::Pooled { classes: 2 }, ..model.clone() };
    let rows: [(&ModelSpec, &[String], Value); 4] = [
        (&model, &[], json!({"0": "bad", "1": "fair", "2": "good"})),
        (&model, &given, json!({"0": "a", "1": "b", "2": "c"})),
        (&two, &[], json!({"0": "LABEL_0", "1": "LABEL_1"})),
        (&two, &given[..2], json!({"0": "a", "1": "b"})),
    ];
    for (model, names, expected) in rows {
        let (_, written) = config::write(model, Some(&config), names).unwrap();
        assert_eq!(written["id2label"], expected);
        assert_eq!(written["num_labels"], json!(expected.as_object().unwrap().len()));
        assert_eq!(written["label2id"].as_object().unwrap().len(), expected.as_object().unwrap().len());
    }
}

#[test]
fn a_form_says_what_its_class_computes_in_another_way() {
    let roberta = |offset| ModelSpec {
        positions: Positions::Learned { max: 32, offset },
        embedding: EmbeddingSpec { types: 1, ..encoder().embedding },
        ..encoder()
    };
    let untied = ModelSpec { tied_embeddings: false, ..t5() };
    let (own, pads) = (Framing::default(), Framing { pad: Some(1), end: 2, ..Framing::default() });
    let closed = Framing { close: vec![0], ..Framing::default() };
    let rows = [
        (encoder(), Some(&own), "BertForMaskedLM", 0),
        (roberta(2), Some(&own), "RobertaForMaskedLM", 1),
        (roberta(2), Some(&pads), "RobertaForMaskedLM", 0),
        (roberta(2), None, "RobertaForMaskedLM", 0),
        (roberta(1), Some(&own), "RobertaForMaskedLM", 0),
        (roberta(1), Some(&closed), "RobertaForMaskedLM", 1),
        (t5(), None, "T5ForConditionalGeneration", 0),
        (untied, None, "T5ForConditionalGeneration", 1),
    ];
    for (model, framing, class, caveats) in rows {
        let form = form(&model, None, framing).unwrap();
        assert_eq!((form.class.as_str(), form.caveats.len()), (class, caveats), "{:?}", model.positions);
    }
}
