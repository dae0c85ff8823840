//! Any bytes are a safetensors file whose tensors can be read, or are refused: as the weights of a foreign model, and as
//! a shard of a checkpoint.

use coxswain_files::atomic::digest_bytes;
use coxswain_files::hf::HfModel;
use coxswain_files::{Checkpoint, publish};
use coxswain_types::params::parameter_table;
use coxswain_types::status::SavedFile;

use crate::{folder, jobs};

/// The configuration that stands beside the weights.
const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
"num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 9, "tie_word_embeddings": true}"#;

/// The name of the shard.
const SHARD: &str = "model-g1-r000.safetensors";

/// Reads a safetensors file, in both ways.
pub fn run(bytes: &[u8]) {
    folder::with(&[("config.json", CONFIG.as_bytes()), ("model.safetensors", bytes)], |folder| {
        let Ok(model) = HfModel::open(folder) else { return };
        for row in parameter_table(model.model()) {
            let values = model.read(&row.name, 0, 0, row.shape[0]).expect("a tensor of an open model");
            assert_eq!(values.len() as u64, row.elements());
        }
    });
    folder::with(&[(SHARD, bytes)], |folder| {
        let file =
            SavedFile { name: SHARD.to_owned(), bytes: bytes.len() as u64, digest: digest_bytes(bytes) };
        if publish(&folder.into(), &[file], jobs::header(jobs::small())).is_err() {
            return;
        }
        let checkpoint = Checkpoint::open(&folder.into(), None).expect("a checkpoint that was published");
        checkpoint.verify().expect("the files that were published");
        for name in checkpoint.tensor_names() {
            let rows = checkpoint.shape(&name).expect("a tensor of the list")[0];
            checkpoint.read_slice(&name, 0, 0, rows).expect("a tensor of the list");
        }
        drop(checkpoint.expect_model());
    });
}
