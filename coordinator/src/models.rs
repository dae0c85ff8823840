//! `import` and `export`: models from other programs, and back to them. A model that comes in lies in a
//! folder like a run's, with a checkpoint of step 0; jobs start from it, and it writes and leaves again.
//!
//! One tensor is in memory at a time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use coxswain_core::spec::{JobText, look, resolved_yaml};
use coxswain_files::atomic::{create_folder, digest_bytes, write_atomic};
use coxswain_files::folders::{locate, model_file, step_folder};
use coxswain_files::gguf::Gguf;
use coxswain_files::hf::{self, Form, HfError, HfModel, Kept, Said};
use coxswain_files::prepare::TOKENIZER;
use coxswain_files::regular;
use coxswain_files::tokenizer::END_OF_TEXT_ID;
use coxswain_files::{Checkpoint, Fingerprint, Header, ShardTensor, Tokenizer, publish, write_shard};
use coxswain_types::assignment::{PreparedData, TokenFile};
use coxswain_types::framing::Framing;
use coxswain_types::job::{DataSpec, ModelSpec};
use coxswain_types::model::{Architecture, Attention, Head, Positions};
use coxswain_types::params::{Parameter, parameter_table};
use coxswain_types::status::SavedFile;
use coxswain_types::{Generation, JobSpec, Rank};

use crate::failure::Failure;
use crate::output;

/// What an export needs to give back what was imported, below the folder of the import.
const KEPT: &str = "hf.json";
/// A job that starts from an import, below its folder.
const JOB: &str = "job.yaml";
/// The most bytes of a file of an imported checkpoint, unless one tensor is larger.
const MAX_SHARD_BYTES: u64 = 1 << 30;
/// The largest `tokenizer.json` that is copied: that of a million tokens takes less.
const MAX_TOKENIZER_BYTES: u64 = 1 << 28;
/// The largest file of what was kept of an import: a configuration, its neighbours, and a line for each tensor.
const MAX_KEPT_BYTES: u64 = 1 << 28;
/// The longest samples of the job that an import writes.
const SEQUENCE: u32 = 512;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A folder with config.json and safetensors files (Hugging Face's form), or a .gguf file.
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The folder of the import, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A run's folder (its newest checkpoint is used) or a checkpoint's.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The folder of the export, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The most bytes of a file, unless one tensor is larger.
    #[arg(long, value_name = "BYTES", default_value_t = 5_000_000_000)]
    max_file_bytes: u64,
}

/// A model in another program's form.
enum Source {
    Hf(HfModel),
    Gguf(Gguf),
}

impl Source {
    fn open(path: &Path) -> Result<Source> {
        if path.is_dir() {
            let opened = HfModel::open(path);
            return Ok(Source::Hf(opened.with_context(|| format!("reading {}", path.display()))?));
        }
        Ok(Source::Gguf(Gguf::open(path)?))
    }

    fn model(&self) -> &ModelSpec {
        match self {
            Source::Hf(model) => model.model(),
            Source::Gguf(file) => file.model(),
        }
    }

    /// A whole parameter, as the bytes of f32s.
    fn bytes(&self, parameter: &Parameter) -> Result<Vec<u8>> {
        let (name, rows) = (&parameter.name, parameter.shape[0]);
        let values = match self {
            Source::Hf(model) => model.read(name, 0, 0, rows)?,
            Source::Gguf(file) => file.read(name, 0, 0, rows)?,
        };
        Ok(values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// The bytes of its `tokenizer.json`; `None` where it has none.
    fn tokenizer(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self {
            Source::Hf(_) => {
                let file = path.join("tokenizer.json");
                if !file.exists() {
                    return Ok(None);
                }
                regular::read(&file, MAX_TOKENIZER_BYTES)
                    .map(Some)
                    .with_context(|| format!("reading {}", file.display()))
            }
            Source::Gguf(file) => Ok(Some(file.tokenizer_json().as_bytes().to_vec())),
        }
    }

    /// How it frames texts, of which it has a tokenizer from elsewhere, or none.
    fn framing(&self, path: &Path, tokenizer: Option<&Tokenizer>) -> Result<Framing> {
        Ok(match self {
            Source::Gguf(file) => file.framing().clone(),
            Source::Hf(model) => hf::framing(path, &model.kept().config, model.model(), tokenizer)?,
        })
    }
}

pub(crate) fn import(args: &Import) -> Result<(), Failure> {
    let source = Source::open(&args.source).map_err(|error| Failure::Input(format!("{error:#}")))?;
    let new = expect_room(&args.out)?;
    let done = bring_in(args, &source);
    if done.is_err() && new {
        // Half an import is of no use to anybody; what cannot be removed is only in the way.
        let _ = fs::remove_dir_all(&args.out);
    }
    let text = done?;
    output::write(&text)
}

/// Refuses a folder that holds anything; says whether it was not there.
fn expect_room(folder: &Path) -> Result<bool, Failure> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Failure::Input(format!("--out {}: {error}", folder.display()))),
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => {
                Err(Failure::Input(format!("--out {} is not empty; name a new folder", folder.display())))
            }
        },
    }
}

fn bring_in(args: &Import, source: &Source) -> Result<String> {
    let (out, model) = (args.out.as_path(), source.model());
    let mut spec = spec_of(model)?;
    if let (Source::Hf(hf), Head::Pooled { classes: 1.. }) = (source, model.head) {
        let (files, classes) = (Vec::new(), names_of_job(hf.kept().class_names()));
        spec.data = DataSpec::Labelled { files, classes, validation: 0.0, weights: false };
    }
    let folder = step_folder(out, 0);
    create_folder(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let data = unpanicked(&args.source, || tokens(args, source, &spec))?;
    let job = job_of(&spec, &data.framing)?;
    let files = shards(&folder, source)?;
    if let Source::Hf(hf) = source {
        let kept = Kept { tokenizer: data.tokenizer_digest.clone(), ..hf.kept().clone() };
        let json = serde_json::to_vec(&kept).context("what was kept as JSON")?;
        write_atomic(&out.join(KEPT), &json).with_context(|| format!("writing {KEPT}"))?;
    }
    write_atomic(&out.join(JOB), job.as_bytes()).with_context(|| format!("writing {JOB}"))?;
    let fingerprint = Fingerprint {
        runtime: "imported".to_owned(),
        threads: 1,
        dtype: "fp32".to_owned(),
        precision: "fp32".to_owned(),
        global_micro_batches: 1,
        micro_batch_size: 1,
        gradient_groups: 1,
        tensor_shards: 0,
    };
    let has_tokenizer = data.tokenizer_digest.is_some();
    publish(&folder, &files, Header { job: "imported".to_owned(), step: 0, spec, fingerprint, data })?;
    told(args, source, has_tokenizer)
}

fn told(args: &Import, source: &Source, tokenizer: bool) -> Result<String> {
    let parameters: u64 = parameter_table(source.model()).iter().map(Parameter::elements).sum();
    let out = args.out.display();
    let mut text = format!("{out}: {parameters} parameters of {}\n", args.source.display());
    if let Source::Hf(model) = source {
        for name in &model.kept().unused {
            text.push_str(&format!("  {name} is not used by this model and was left out\n"));
        }
    }
    if let Source::Hf(_) = source {
        for option in hf::unread(&args.source)? {
            text.push_str(&format!(
                "  generation_config.json has {option}, which generate is told by its options\n"
            ));
        }
    }
    if matches!(source.model().attention, Attention::Longformer { .. }) {
        text.push_str("  the first token alone is global: it sees all tokens and all see it\n");
    }
    if !tokenizer {
        text.push_str("  there is no tokenizer.json: it can be trained on, and writes no text\n");
    }
    text.push_str(&format!("next: set data and train in {out}/{JOB}, then coxswain up {out}/{JOB}"));
    text.push_str(" --workers 1 --out DIR\n");
    Ok(text)
}

/// Runs what reads a tokenizer. The library that does so panics at some files, among them one that ends in its middle.
fn unpanicked<T>(folder: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let folder = folder.display();
        Err(anyhow!(
            "the tokenizer of {folder} cannot be read: it is damaged, or of a kind that is not supported"
        ))
    })
}

/// Copies the tokenizer, and says what is known of its tokens.
fn tokens(args: &Import, source: &Source, spec: &JobSpec) -> Result<PreparedData> {
    let nothing = TokenFile { path: String::new(), tokens: 0, digest: String::new() };
    let mut data = PreparedData::of_tokens(nothing);
    let Some(bytes) = source.tokenizer(&args.source)? else {
        data.framing = source.framing(&args.source, None)?;
        return Ok(data);
    };
    let tokenizer = Tokenizer::of_any(&bytes)?;
    tokenizer.expect_within(spec.model.vocab)?;
    data.framing = source.framing(&args.source, Some(&tokenizer))?;
    let path = args.out.join(TOKENIZER);
    create_folder(path.parent().unwrap_or(&args.out)).context("creating data/")?;
    write_atomic(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
    data.tokenizer_digest = Some(digest_bytes(&bytes));
    Ok(data)
}

/// The names of classes, where a job's lines could begin with them.
fn names_of_job(names: Vec<String>) -> Vec<String> {
    let plain = |name: &String| !name.is_empty() && name.trim() == name && !name.contains(['\t', '\n', '\r']);
    let apart = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    if apart && names.iter().all(plain) { names } else { Vec::new() }
}

/// Writes all parameters, in files of some size.
fn shards(folder: &Path, source: &Source) -> Result<Vec<SavedFile>> {
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
        let path = folder.join(model_file(Generation(0), Rank(at as u32)));
        write_shard(&path, &tensors, |index, slab| -> Result<()> {
            Ok(slab.write(&source.bytes(group[index])?)?)
        })
    };
    groups.iter().enumerate().map(write).collect()
}

/// A job of this model that says nothing else.
fn spec_of(model: &ModelSpec) -> Result<JobSpec> {
    let text = "name: imported\nmodel: {layers: 1, dim: 8, heads: 1, vocab: 300}\n\
                data: {synthetic: {tokens: 999}}\ntrain: {steps: 100, sequence: 64}\n";
    let job = JobText { source: "the import", text, sets: &[], base: Path::new("/") };
    let spec = look(&job).map_err(|error| anyhow!("{error}"))?;
    Ok(JobSpec { model: model.clone(), ..spec })
}

/// The text of a job that starts from the import, which must say the very model.
fn job_of(spec: &JobSpec, framing: &Framing) -> Result<String> {
    let whole = resolved_yaml(spec).map_err(|error| anyhow!("{error}"))?;
    let model = whole.split_once("model:\n").map_or("", |(_, rest)| rest);
    let model = model.split_once("\ndata:").map_or(model, |(model, _)| model);
    let most = match spec.model.positions {
        Positions::Learned { max, .. } => max,
        _ => framing.longest.unwrap_or(u32::MAX),
    };
    // One token that stands for any span is what text was infilled with (BART).
    let one = framing.sentinels.is_some_and(|sentinels| sentinels.count == 1);
    let corruption = match spec.model.architecture {
        Architecture::EncoderDecoder if one => "  corruption: infilling\n",
        _ => "",
    };
    let data = match &spec.data {
        DataSpec::Labelled { classes, .. } if classes.is_empty() => "labelled: lines.tsv".to_owned(),
        DataSpec::Labelled { classes, .. } => {
            let names = serde_json::to_string(classes).context("the names of classes as JSON")?;
            format!("labelled: lines.tsv\n  classes: {names}")
        }
        _ => "text: text.txt".to_owned(),
    };
    let text = format!(
        "# Name a text (or labelled lines) and how long to train.\nname: imported\nmodel:\n{model}\ndata:\n  {data}\n\
         train:\n  start_from: .\n  steps: 100\n  sequence: {}\n{corruption}  learning_rate: 0.00002\n",
        SEQUENCE.min(most),
    );
    let job = JobText { source: JOB, text: &text, sets: &[], base: Path::new("/") };
    let again = look(&job).map_err(|error| anyhow!("the model cannot be said in a job file: {error}"))?;
    if again.model != spec.model {
        bail!("the model cannot be said in a job file: it reads back as another one");
    }
    Ok(text)
}

pub(crate) fn export(args: &Export) -> Result<(), Failure> {
    let found = locate(&args.checkpoint).map_err(anyhow::Error::from)?;
    let (run, folder) = found.ok_or_else(|| {
        Failure::Input(format!(
            "{} has no committed checkpoint; give a run's folder (what `up --out` was given) or one of its \
             checkpoints/step-* folders",
            args.checkpoint.display()
        ))
    })?;
    let new = expect_room(&args.out)?;
    let done = bring_out(args, &run, &folder);
    if done.is_err() && new {
        let _ = fs::remove_dir_all(&args.out);
    }
    let text = done?;
    output::write(&text)
}

fn bring_out(args: &Export, run: &Path, folder: &Path) -> Result<String> {
    let checkpoint = Checkpoint::open(folder, None)?;
    checkpoint.verify()?;
    checkpoint.expect_model()?;
    let manifest = checkpoint.manifest();
    let (spec, data) = (&manifest.spec, &manifest.data);
    create_folder(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let kept = kept(Some(run), spec)?;
    let tokenizer = unpanicked(run, || tokenizer_of(run, data))?;
    let said = Said {
        model: &spec.model,
        framing: &data.framing,
        tokenizer: tokenizer.as_ref(),
        class_names: spec.data.class_names(),
        // An import was not trained here.
        trained: (manifest.step > 0).then_some(spec.train.sequence),
        kept: kept.as_ref(),
    };
    let mut read = |name: &str, dim, offset, len| -> Result<Vec<f32>, HfError> {
        let bytes = checkpoint.read_slice(name, dim, offset, len)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    hf::export(&args.out, &said, args.max_file_bytes, &mut read)?;
    let form = hf::form(&spec.model, kept.as_ref(), Some(&data.framing))?;
    let (step, out, class) = (manifest.step, args.out.display(), &form.class);
    let caveats: String = form.caveats.iter().map(|caveat| format!("  {caveat}\n")).collect();
    Ok(format!("{out}: the weights of step {step} of {}, for {class}\n{caveats}", run.display()))
}

/// The tokenizer of a run, which must be that of its checkpoint; `None` where its tokens were synthetic.
fn tokenizer_of(run: &Path, data: &PreparedData) -> Result<Option<Tokenizer>> {
    let Some(wanted) = &data.tokenizer_digest else { return Ok(None) };
    let path = run.join(TOKENIZER);
    let tokenizer = Tokenizer::load(&path)?;
    if digest_bytes(&tokenizer.to_bytes()) != *wanted {
        bail!(
            "{} is not the tokenizer that the checkpoint was trained with; bring that one back",
            path.display()
        );
    }
    Ok(Some(tokenizer))
}

/// What was kept of the model that a run began with.
fn kept(run: Option<&Path>, spec: &JobSpec) -> Result<Option<Kept>> {
    let start = spec.train.start_from.as_ref().map(PathBuf::from);
    let folders = run.map(Path::to_owned).into_iter().chain(start);
    let Some(path) = folders.map(|folder| folder.join(KEPT)).find(|path| path.is_file()) else {
        return Ok(None);
    };
    let bytes =
        regular::read(&path, MAX_KEPT_BYTES).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
}

/// The form in which the model of a job will be exported, or why there is none.
pub(crate) fn form(spec: &JobSpec) -> Result<Result<Form, HfError>> {
    let kept = kept(None, spec)?;
    // Texts of a model from elsewhere are framed as its own files say.
    let own = spec.train.start_from.is_none() && spec.data.files().is_some();
    let framing = own.then(|| Framing::own(&spec.model, &spec.train, END_OF_TEXT_ID));
    Ok(hf::form(&spec.model, kept.as_ref(), framing.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights of a model whose configuration is [`CONFIG`].
    const WEIGHTS: &[u8] = include_bytes!("../../tests/fuzz/weights.safetensors");
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
