//! Stand-ins of published checkpoints: their tensors' names, the keys that their configurations have, and small
//! sizes (`tests/parity/families.py`).

use std::fs;

use super::*;

/// The checkpoints, with a star for the number of a layer in names.
fn published() -> BTreeMap<String, Listed> {
    let mut all: BTreeMap<String, Listed> = serde_json::from_str(include_str!("../published.json")).unwrap();
    for (_, tensors) in all.values_mut() {
        let layers = |name: &String| [0, 1].map(|layer: u32| name.replace('*', &layer.to_string()));
        *tensors =
            tensors.iter().flat_map(|(name, shape)| layers(name).map(|name| (name, shape.clone()))).collect();
    }
    all
}

/// The number at a place: biases are zero, and tables of tokens all the same but for the head of T5 1.1.
fn value(checkpoint: &str, name: &str, at: usize) -> f32 {
    let own_head = name == "lm_head.weight" && checkpoint.contains("t5");
    let tables = ["embed_tokens.weight", "shared.weight", "wte.weight", "word_embeddings.weight"];
    let heads = ["lm_head.weight", "predictions.decoder.weight", "lm_head.decoder.weight"];
    let table = tables.iter().chain(&heads).any(|end| name.ends_with(end)) && !own_head;
    match (name.ends_with("bias"), table && !checkpoint.starts_with("llama-2")) {
        (true, _) => 0.0,
        (false, true) => number("tokens", at),
        (false, false) => number(name, at),
    }
}

fn write(folder: &Path, checkpoint: &str, (config, tensors): &Listed) {
    fs::write(folder.join(CONFIG), serde_json::to_vec(config).unwrap()).unwrap();
    let planned =
        tensors.iter().map(|(name, shape)| Planned { name: name.clone(), shape: shape.clone(), dtype: None });
    let planned: Vec<_> = planned.collect();
    store::write(folder, &planned, u64::MAX, |name| {
        let count = tensors[name].iter().product::<u64>() as usize;
        Ok((0..count).map(|at| value(checkpoint, name, at)).collect())
    })
    .unwrap();
}

#[test]
fn published_checkpoints_come_in_and_leave_under_their_names() {
    for (name, listed) in published() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &name, &listed);
        let opened = HfModel::open(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let own_head =
            name.contains("v1_1") || name.starts_with("flan") || name == "llama-2-7b" || name == "mistral-7b";
        let encodes = opened.model().architecture == Architecture::Encoder;
        let features = matches!(opened.model().head, Head::Pooled { .. });
        assert_eq!(opened.model().tied_embeddings, !own_head && !features, "{name}");
        let again = tempfile::tempdir().unwrap();
        export_again(&opened, again.path(), u64::MAX);
        let (before, after) =
            (TensorStore::open(dir.path()).unwrap(), TensorStore::open(again.path()).unwrap());
        let unused: Vec<&str> = opened.kept().unused.iter().map(String::as_str).collect();
        let tasks = unused.iter().all(|of| {
            of.contains("pooler.") || of.starts_with("cls.seq_") || of.contains("1.EncDecAttention.relative")
        });
        assert!(tasks && (encodes || unused.len() < 2), "{name}: {unused:?}");
        let buffers = [".attn.bias", "masked_bias", "inv_freq", "position_ids"];
        for (tensor, shape) in &listed.1 {
            let left = unused.contains(&tensor.as_str()) || buffers.iter().any(|end| tensor.ends_with(end));
            assert_eq!(after.shape(tensor).is_none(), left, "{name}: {tensor}");
            if !left {
                let planned = Planned { name: tensor.clone(), shape: shape.clone(), dtype: None };
                assert!(whole(&before, &planned) == whole(&after, &planned), "{name}: {tensor}");
            }
        }
        assert_eq!(HfModel::open(again.path()).unwrap().model(), opened.model(), "{name}");
    }
}

#[test]
fn what_a_published_family_does_not_have_is_an_error_by_its_name() {
    let strange = ["extra.weight", "h.7.attn.bias", "layers.0.self_attn.s_norm.weight", "cls.other.weight"];
    for (name, listed) in published() {
        for strange in strange {
            let dir = tempfile::tempdir().unwrap();
            let mut listed = listed.clone();
            listed.1.insert(strange.to_owned(), vec![2]);
            write(dir.path(), &name, &listed);
            let error = HfModel::open(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{strange}` is there")), "{name}: {error}");
        }
    }
}

/// Names of one tensor, files beside each other, adapters and pickles.
#[test]
fn folders_are_read_as_the_library_reads_them_or_refused() {
    let all = published();
    let told = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gpt2", &all["gpt2"]);
        change(dir.path());
        HfModel::open(dir.path()).err().map_or(String::new(), |error| error.to_string())
    };
    let json = |value: Value| serde_json::to_vec(&value).unwrap();
    let stale = json!({"metadata": {}, "weight_map": {"wte.weight": "model-00001-of-00002.safetensors"}});
    let stale = json(stale);
    assert_eq!(told(&|folder| fs::write(folder.join("model.safetensors.index.json"), &stale).unwrap()), "");
    let adapter = json(json!({"base_model_name_or_path": "meta/llama"}));
    let adapter = told(&|folder| fs::write(folder.join("adapter_config.json"), &adapter).unwrap());
    assert!(adapter.contains("an adapter of meta/llama; merge it"), "{adapter}");
    let pickled = told(&|folder| {
        fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    });
    assert!(pickled.contains("there is pytorch_model.bin and no model.safetensors"), "{pickled}");
    let twice = told(&|folder| {
        let mut twice = all["gpt2"].clone();
        twice.1.insert("transformer.wte.weight".to_owned(), vec![60, 16]);
        write(folder, "gpt2", &twice);
    });
    assert!(twice.contains("`transformer.wte.weight` and `wte.weight` are names of one tensor"), "{twice}");
}
