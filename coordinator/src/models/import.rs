//! Models from other programs: whatever the form, a folder with a checkpoint of step 0, a tokenizer and a job.
//!
//! - [`ForeignModel`]: what is asked of a form; [`hf`], [`gguf`]: the forms.
//! - [`checkpoint`], [`job`]: what is written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use coxswain_core::spec::is_class_name;
use coxswain_files::Tokenizer;
use coxswain_files::atomic::{create_folder, write_atomic};
use coxswain_files::hf::Kept;
use coxswain_types::framing::Framing;
use coxswain_types::job::{DataSpec, ModelSpec};
use coxswain_types::model::Head;
use coxswain_types::params::{Parameter, parameter_table};

use super::{KEPT, into_room, unpanicked};
use crate::failure::Failure;
use crate::output;
use job::JOB;

mod checkpoint;
mod gguf;
mod hf;
mod job;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A folder with config.json and safetensors files (Hugging Face's form), or a .gguf file.
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The folder of the import, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A model in another program's form.
trait ForeignModel {
    fn model(&self) -> &ModelSpec;

    /// A whole parameter.
    fn read(&self, parameter: &Parameter) -> Result<Vec<f32>>;

    /// The bytes of its `tokenizer.json`; `None` where it has none.
    fn tokenizer(&self) -> Result<Option<Vec<u8>>>;

    /// How it frames texts; `tokenizer` is what [`ForeignModel::tokenizer`] gave.
    fn framing(&self, tokenizer: Option<&Tokenizer>) -> Result<Framing>;

    /// The names of its classes, in the order of their numbers; empty where it names none.
    fn class_names(&self) -> Vec<String> {
        Vec::new()
    }

    /// What an export needs to give back what was imported.
    fn kept(&self) -> Option<&Kept> {
        None
    }

    /// What it has that an import leaves out, a line each.
    fn left_out(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

fn open(path: &Path) -> Result<Box<dyn ForeignModel>> {
    Ok(if path.is_dir() {
        Box::new(hf::HfFolder::open(path)?)
    } else {
        Box::new(gguf::GgufFile::open(path)?)
    })
}

pub(crate) fn import(args: &Import) -> Result<(), Failure> {
    let source = open(&args.source).map_err(|error| Failure::Input(format!("{error:#}")))?;
    output::write(&into_room(&args.out, || bring_in(args, source.as_ref()))?)
}

fn bring_in(args: &Import, source: &dyn ForeignModel) -> Result<String> {
    let out = args.out.as_path();
    let mut spec = job::spec_of(source.model())?;
    if matches!(source.model().head, Head::Pooled { classes: 1.. }) {
        let (files, classes) = (Vec::new(), names_of_job(source.class_names()));
        spec.data = DataSpec::Labelled { files, classes, validation: 0.0, weights: false };
    }
    create_folder(out).with_context(|| format!("creating {}", out.display()))?;
    let data = unpanicked(&args.source, || checkpoint::tokens(out, source))?;
    let job = job::text(&spec, &data.framing)?;
    if let Some(kept) = source.kept() {
        let kept = Kept { tokenizer: data.tokenizer_digest.clone(), ..kept.clone() };
        let json = serde_json::to_vec(&kept).context("what was kept as JSON")?;
        write_atomic(&out.join(KEPT), &json).with_context(|| format!("writing {KEPT}"))?;
    }
    write_atomic(&out.join(JOB), job.as_bytes()).with_context(|| format!("writing {JOB}"))?;
    let has_tokenizer = data.tokenizer_digest.is_some();
    checkpoint::write(out, source, spec, data)?;
    told(args, source, has_tokenizer)
}

/// The names of classes, where a job's lines could begin with them.
fn names_of_job(names: Vec<String>) -> Vec<String> {
    let apart = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    if apart && names.iter().all(|name| is_class_name(name)) { names } else { Vec::new() }
}

fn told(args: &Import, source: &dyn ForeignModel, tokenizer: bool) -> Result<String> {
    let parameters: u64 = parameter_table(source.model()).iter().map(Parameter::elements).sum();
    let out = args.out.display();
    let mut text = format!("{out}: {parameters} parameters of {}\n", args.source.display());
    for line in source.left_out()? {
        text.push_str(&format!("  {line}\n"));
    }
    if let Some(note) = source.model().attention.import_note() {
        text.push_str(&format!("  {note}\n"));
    }
    if !tokenizer {
        text.push_str(
            "  tokenizer.json is missing: the model can be trained further, but cannot generate text\n",
        );
    }
    text.push_str(&format!("next: set data and train in {out}/{JOB}, then coxswain up {out}/{JOB}"));
    text.push_str(" --workers 1 --out DIR\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The weights of a model whose configuration is [`CONFIG`].
    const WEIGHTS: &[u8] = include_bytes!("../../../tests/fuzz/weights.safetensors");
    const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
        "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 9, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": 2}"#;

    /// What comes of an import, and whether its folder is there then.
    fn imported(config: &str, tokenizer: Option<&str>) -> (Result<(), String>, bool) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        fs::write(dir.path().join("model.safetensors"), WEIGHTS).unwrap();
        if let Some(json) = tokenizer {
            fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        }
        let out = dir.path().join("out");
        let done = import(&Import { source: dir.path().to_owned(), out: out.clone() });
        (done.map_err(|failure| format!("{failure:?}")), out.exists())
    }

    #[test]
    fn no_run_goes_on_in_the_folder_of_an_import() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), CONFIG).unwrap();
        fs::write(dir.path().join("model.safetensors"), WEIGHTS).unwrap();
        let out = dir.path().join("out");
        import(&Import { source: dir.path().to_owned(), out: out.clone() }).unwrap();
        let job = fs::read_to_string(out.join(JOB)).unwrap();
        let spec = crate::job::parse(&job, JOB, &out, &[]).unwrap();
        assert_eq!(spec.train.start_from.as_deref(), out.to_str());
        let error = crate::folder::newest(&out.as_path().into(), &spec, |_| true).err().unwrap();
        assert!(error.contains("name this one in train.start_from"), "{error}");
    }

    #[test]
    fn a_foreign_model_is_imported_or_refused_and_leaves_nothing() {
        assert_eq!(imported(CONFIG, None), (Ok(()), true));
        let layers = CONFIG.replace(r#""num_hidden_layers": 1"#, r#""num_hidden_layers": 4294967295"#);
        let rows = [
            (layers.as_str(), None, "num_hidden_layers"),
            // The library panics at this one.
            (CONFIG, Some(r#"{"decoder": {"type": "ByteLevel", "use_reg"#), "the tokenizer of"),
        ];
        for (config, tokenizer, told) in rows {
            let (done, left) = imported(config, tokenizer);
            let error = done.unwrap_err();
            assert!(error.contains(told) && !left, "{error}");
        }
    }
}
