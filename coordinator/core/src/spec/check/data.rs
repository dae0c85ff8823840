//! Where tokens come from.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use coxswain_types::job::{DataSpec, Lengths, ModelSpec, TrainSpec, reserved_tokens};
use coxswain_types::model::{Architecture, Head};

use super::super::error::KeyPath;
use super::super::limits;
use super::super::raw::{Paths, RawData};
use super::Faults;

pub(super) fn data(
    raw: RawData,
    base: &Path,
    model: &ModelSpec,
    train: &TrainSpec,
    faults: &mut Faults,
) -> Option<DataSpec> {
    let pooled = matches!(model.head, Head::Pooled { .. });
    if raw.labelled.is_some() && !pooled {
        let why = "a class is told from the first token's output";
        faults.misplaced("data.labelled", format!("goes with model.head pooled only: {why}"));
    }
    if raw.pairs.is_some() && model.architecture == Architecture::Encoder {
        let why = "an encoder writes no answer";
        faults.misplaced("data.pairs", format!("goes with a decoder or an encoder-decoder: {why}"));
    }
    if (raw.pairs.is_some() || raw.labelled.is_some()) && train.separate_documents {
        let why = "each line is a sample by itself";
        faults.misplaced("train.separate_documents", format!("goes with data.text only: {why}"));
    }
    if raw.pairs.is_none() && raw.labelled.is_none() {
        faults.only_with("data.weights", raw.weights.is_some(), "data.labelled and data.pairs only");
    }
    if raw.labelled.is_none() {
        faults.only_with("data.classes", raw.classes.is_some(), "data.labelled only");
    }
    let (validation, weights) = (raw.validation.unwrap_or(0.05), raw.weights.unwrap_or(false));
    let of_text = |path: &'static str, paths, faults: &mut Faults| {
        check_text(model, train, validation, faults);
        files(path, paths, base, faults)
    };
    let data = match (raw.text, raw.labelled, raw.pairs, raw.synthetic) {
        (Some(paths), None, None, None) => {
            Some(DataSpec::Text { files: of_text("data.text", paths, faults), validation })
        }
        (None, Some(paths), None, None) => {
            let files = of_text("data.labelled", paths, faults);
            let classes = classes(raw.classes.unwrap_or_default(), model, faults);
            Some(DataSpec::Labelled { files, classes, validation, weights })
        }
        (None, None, Some(paths), None) => {
            Some(DataSpec::Pairs { files: of_text("data.pairs", paths, faults), validation, weights })
        }
        (None, None, None, Some(synthetic)) => {
            if raw.validation.is_some() {
                faults.misplaced(
                    "data.validation",
                    "goes with texts only; random tokens have no validation split".into(),
                );
            }
            let reserved = reserved_tokens(model, train);
            if model.vocab > 0 && model.vocab <= reserved {
                let (found, least) = (model.vocab, reserved + 1);
                let why = format!("one token, and {reserved} reserved for corruption");
                faults.add("model.vocab", format!("found {found}; must be {least} or more: {why}"));
            }
            let enough = u64::from(Lengths::of(model, train).window) + 1;
            if faults.count("data.synthetic.tokens", synthetic.tokens, &limits::SYNTHETIC_TOKENS)
                && synthetic.tokens < enough
            {
                let found = synthetic.tokens;
                let why = "the text of a sample and the token after it";
                let must = if model.encoder_layers > 0 { "" } else { "train.sequence + 1 " };
                let must = if must.is_empty() { enough.to_string() } else { format!("{must}({enough})") };
                faults.add("data.synthetic.tokens", format!("found {found}; must be at least {must}: {why}"));
            }
            Some(DataSpec::Synthetic { tokens: synthetic.tokens })
        }
        (text, labelled, pairs, synthetic) => {
            let names = [
                ("text", text.is_some()),
                ("labelled", labelled.is_some()),
                ("pairs", pairs.is_some()),
                ("synthetic", synthetic.is_some()),
            ];
            let found: Vec<_> = names.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
            let found = if found.is_empty() { "nothing".to_owned() } else { found.join(" and ") };
            faults
                .add("data", format!("found {found}; must have one of text, labelled, pairs and synthetic"));
            None
        }
    };
    let no_validation = match &data {
        Some(
            DataSpec::Text { validation, .. }
            | DataSpec::Labelled { validation, .. }
            | DataSpec::Pairs { validation, .. },
        ) => *validation == 0.0,
        Some(DataSpec::Synthetic { .. }) => true,
        None => false,
    };
    if no_validation && train.validate_every > 0 {
        let found = train.validate_every;
        faults.add(
            "train.validate_every",
            format!("found {found}; must be 0 without a validation split: there is nothing to evaluate on"),
        );
    }
    data
}

/// What every text asks of the job.
fn check_text(model: &ModelSpec, train: &TrainSpec, validation: f64, faults: &mut Faults) {
    let reserved = reserved_tokens(model, train);
    let least = limits::TEXT_VOCAB + reserved;
    // A tokenizer that is there already has its own size, which is checked where it is read.
    if train.start_from.is_none() && (1..least).contains(&model.vocab) {
        let found = model.vocab;
        let why = match reserved {
            0 => "256 bytes and the end-of-text token".to_owned(),
            1 => "256 bytes, the end-of-text token, and the token that hides others".to_owned(),
            spans => format!("256 bytes, the end-of-text token, and {spans} that stand for spans"),
        };
        faults.add("model.vocab", format!("found {found}; with text must be {least} or more ({why})"));
    }
    let must = "0 or more and below 0.5 (the share at the end of each file)";
    faults.number("data.validation", validation, |x| (0.0..0.5).contains(&x), must);
}

/// The names of classes, each of which stands in front of a tab.
fn classes(names: Vec<String>, model: &ModelSpec, faults: &mut Faults) -> Vec<String> {
    let key = "data.classes";
    let found = names.len();
    match model.head {
        Head::Pooled { classes } if found > 0 && found != classes as usize => {
            faults.add(key, format!("found {found} names; must be as many as model.classes ({classes})"));
        }
        _ => {}
    }
    let mut seen = BTreeSet::new();
    for (i, name) in names.iter().enumerate() {
        let at = || KeyPath::from(key).index(i);
        if !is_class_name(name) {
            faults.never(
                at(),
                format!("found `{name}`; must be a name without tabs, and without blanks around it"),
            );
        } else if !seen.insert(name) {
            faults.never(at(), format!("found `{name}` twice; each class has a name of its own"));
        }
    }
    names
}

/// Whether lines can begin with this class: it is one word or several between a line's start and a tab.
pub fn is_class_name(name: &str) -> bool {
    !name.is_empty() && name.trim() == name && !name.contains(['\t', '\n', '\r'])
}

/// The absolute paths of text files.
fn files(key: &'static str, paths: Paths, base: &Path, faults: &mut Faults) -> Vec<String> {
    let (paths, listed) = match paths {
        Paths::One(path) => (vec![path], false),
        Paths::Many(paths) => (paths, true),
    };
    let most = limits::TEXT_FILES;
    if paths.is_empty() || paths.len() > most {
        faults.never(key, format!("found a list of {}; must name 1 to {most} files", paths.len()));
    }
    let mut files = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let at = KeyPath::from(key);
        let at = if listed { at.index(i) } else { at };
        if path.is_empty() {
            faults.never(at, "found an empty path; must name a file".to_owned());
            continue;
        }
        match absolute(base, path) {
            Some(file) => files.push(file),
            None => {
                faults.never(at, format!("`{path}` lies in {}, which is not a UTF-8 path", base.display()))
            }
        }
    }
    files
}

/// `path` from `base`, without `.` steps. `..` stays: what it means depends on links, which only a
/// file system knows.
pub(super) fn absolute(base: &Path, path: &str) -> Option<String> {
    let joined = base.join(path);
    let plain: PathBuf = joined.components().filter(|part| *part != Component::CurDir).collect();
    plain.into_os_string().into_string().ok()
}
