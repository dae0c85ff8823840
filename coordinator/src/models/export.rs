//! A checkpoint as a Hugging Face folder. One tensor is in memory at a time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use coxswain_files::atomic::{create_folder, digest_bytes};
use coxswain_files::folders::locate;
use coxswain_files::hf::{self, Form, HfError, Kept, Said};
use coxswain_files::prepare::TOKENIZER;
use coxswain_files::tokenizer::END_OF_TEXT_ID;
use coxswain_files::{Checkpoint, StoreFolder, Tokenizer};
use coxswain_types::JobSpec;
use coxswain_types::assignment::PreparedData;
use coxswain_types::framing::Framing;

use super::{KEPT, into_room, unpanicked};
use crate::failure::Failure;
use crate::output;

/// The largest file of what was kept of an import: a configuration, its neighbours, and a line for each tensor.
const MAX_KEPT_BYTES: u64 = 1 << 28;

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

pub(crate) fn export(args: &Export) -> Result<(), Failure> {
    let found = locate(&args.checkpoint).map_err(anyhow::Error::from)?;
    let (run, folder) = found.ok_or_else(|| {
        Failure::Input(format!(
            "{} has no committed checkpoint; give a run's folder (what `up --out` was given) or one of its \
             checkpoints/step-* folders",
            args.checkpoint.display()
        ))
    })?;
    output::write(&into_room(&args.out, || bring_out(args, &run, &folder))?)
}

fn bring_out(args: &Export, run: &StoreFolder, folder: &StoreFolder) -> Result<String> {
    let checkpoint = Checkpoint::open(folder, None)?;
    checkpoint.verify()?;
    checkpoint.expect_model()?;
    let manifest = checkpoint.manifest();
    let (spec, data) = (&manifest.spec, &manifest.data);
    create_folder(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let kept = kept(Some(run.clone()), spec)?;
    let tokenizer = unpanicked(&run.path(), || tokenizer_of(run, data))?;
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
    Ok(format!("{out}: the weights of step {step} of {run}, for {class}\n{caveats}"))
}

/// The tokenizer of a run, which must be that of its checkpoint; `None` where its tokens were synthetic.
fn tokenizer_of(run: &StoreFolder, data: &PreparedData) -> Result<Option<Tokenizer>> {
    let Some(wanted) = &data.tokenizer_digest else { return Ok(None) };
    let tokenizer = Tokenizer::load(run, TOKENIZER)?;
    if digest_bytes(&tokenizer.to_bytes()) != *wanted {
        bail!(
            "{} is not the tokenizer that the checkpoint was trained with; bring that one back",
            run.place(TOKENIZER).display()
        );
    }
    Ok(Some(tokenizer))
}

/// What was kept of the model that a run began with.
fn kept(run: Option<StoreFolder>, spec: &JobSpec) -> Result<Option<Kept>> {
    let start = spec.train.start_from.as_ref().map(|path| StoreFolder::from(Path::new(path)));
    let mut folders = run.into_iter().chain(start);
    // Whether it is there may stay unknown: then there is nothing to read.
    let Some(folder) = folders.find(|folder| folder.has(KEPT).unwrap_or(false)) else { return Ok(None) };
    let path = folder.place(KEPT);
    let bytes = folder.read(KEPT, MAX_KEPT_BYTES).with_context(|| format!("reading {}", path.display()))?;
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
