//! What `docs/job.md` says of the format, made from the format: the meaning, type and default of each
//! key from [`super::raw`] as it is written, the bounds from [`super::limits`], the rest from [`look`].
//!
//! The page's prose is its own. [`filled`] replaces what stands between `<!-- NAME -->` and
//! `<!-- end of NAME -->`; a test compares, and `UPDATE_EXPECT=1` rewrites the page.

use std::path::Path;

use coxswain_types::JobSpec;
use coxswain_types::params::{Parameter, parameter_table};

use super::limits::{self, Limit};
use super::presets;
use super::tests::LEAST;
use super::{JobText, SpecError, look, parse, resolved_yaml};
use model::{MODEL, beside_model};
use rules::RULES;

/// The structs whose fields are the keys.
const RAW: &str = concat!(include_str!("raw.rs"), include_str!("raw/model.rs"));

/// A struct of [`RAW`], or a field of one.
struct Item {
    name: String,
    /// Its type as Rust writes it; empty for a struct.
    ty: String,
    doc: String,
    fields: Vec<Item>,
}

/// A key of the job file.
struct Key {
    /// Such as `model.heads`.
    path: String,
    /// The type, without `Option`.
    ty: String,
    /// Whether it may be left out.
    optional: bool,
    meaning: String,
    /// What is said of its default.
    default: Option<String>,
}

/// The values that a key takes.
#[derive(Clone, Copy)]
enum Allowed {
    /// A count within these bounds.
    Count(&'static Limit),
    /// In words, with values on both sides of the border.
    Words { words: &'static str, fit: &'static [&'static str], unfit: &'static [&'static str] },
}

use Allowed::{Count, Words};

const POSITIVE: Allowed = Words { words: "above 0", fit: &["1e-9", "1000000"], unfit: &["0", "-1", ".inf"] };
const NOT_NEGATIVE: Allowed = Words { words: "0 or more", fit: &["0", "5.5"], unfit: &["-0.1", ".nan"] };
const SHARE: Allowed =
    Words { words: "0 or more and below 1", fit: &["0", "0.99"], unfit: &["-0.1", "1", ".nan"] };
const FLAG: Allowed = Words { words: "`true` or `false`", fit: &["true", "false"], unfit: &["1", "yes"] };
const ANY_COUNT: Allowed = Words { words: "0 or more", fit: &["0", "7"], unfit: &["-1", "0.5"] };

/// What keys take that take no count within fixed bounds, which [`limits::of`] has. Beside this, keys have the
/// rules of [`RULES`].
const ALLOWED: [(&str, Allowed); 44] = [
    (
        "name",
        Words {
            words: "as the meaning says", fit: &["a", "0.b_c-d"], unfit: &["''", "A", "-a", "a b", "ä"]
        },
    ),
    ("data.text", Words { words: "1 to 1024 files", fit: &["a", "[a, b]"], unfit: &["[]", "''"] }),
    ("data.pairs", Words { words: "1 to 1024 files", fit: &["a", "[a, b]"], unfit: &["[]", "''"] }),
    ("train.whole_words", FLAG),
    ("data.weights", FLAG),
    (
        "data.classes",
        Words { words: "`model.classes` names", fit: &["[neg, pos]"], unfit: &["[neg]", "['', pos]"] },
    ),
    ("data.labelled", Words { words: "1 to 1024 files", fit: &["a", "[a, b]"], unfit: &["[]", "''"] }),
    (
        "data.validation",
        Words { words: "0 or more and below 0.5", fit: &["0", "0.49"], unfit: &["-0.1", "0.5"] },
    ),
    ("train.seed", Words { words: "0 to 2^64 - 1", fit: &["0", "18446744073709551615"], unfit: &["-1"] }),
    ("train.gradient_groups", Words { words: "1 to `micro_batches`", fit: &["1"], unfit: &["0", "2"] }),
    (
        "train.reduction",
        Words { words: "`canonical` or `fast`", fit: &["canonical", "fast"], unfit: &["slow"] },
    ),
    (
        "train.tensor_shards",
        Words { words: "a power of two, 1 to 64", fit: &["1", "2", "8"], unfit: &["0", "3", "128"] },
    ),
    (
        "train.precision",
        Words { words: "`fp32`, `bf16` or `fp16`", fit: &["fp32", "bf16", "fp16"], unfit: &["fp8", "32"] },
    ),
    (
        "train.initial_loss_scale",
        Words {
            words: "a power of two, 1 to 16777216",
            fit: &["1", "16777216"],
            unfit: &["0", "3", "0.5", "33554432"],
        },
    ),
    ("train.dropout", SHARE),
    ("train.attention_dropout", SHARE),
    (
        "train.recompute",
        Words {
            words: "`none`, `full`, `attention`, `ffn` or `{budget: BYTES}`",
            fit: &["none", "full", "attention", "ffn", "{budget: 2GiB}", "{budget: 1}"],
            unfit: &["some", "{budget: 0}", "{budget: 2GB}", "{budget: 1025TiB}", "{}", "7"],
        },
    ),
    ("train.optimizer", Words { words: "`adamw` or `muon`", fit: &["adamw", "muon"], unfit: &["adam"] }),
    ("train.momentum", SHARE),
    (
        "train.learning_rate_schedule",
        Words {
            words: "`cosine`, `linear`, `wsd` or `constant`",
            fit: &["cosine", "linear", "wsd", "constant"],
            unfit: &["step"],
        },
    ),
    ("train.learning_rate", POSITIVE),
    (
        "train.min_learning_rate",
        Words { words: "0 to `learning_rate`", fit: &["0", "3e-4"], unfit: &["-1", "4e-4"] },
    ),
    (
        "train.decay_steps",
        Words { words: "0 to `steps - warmup_steps`", fit: &["0", "180"], unfit: &["181"] },
    ),
    ("train.warmup_steps", Words { words: "0 to `steps`", fit: &["0", "200"], unfit: &["201"] }),
    (
        "train.betas",
        Words {
            words: "each 0 or more and below 1",
            fit: &["[0, 0.999]"],
            unfit: &["[0.9, 1]", "[-1, 0.9]"],
        },
    ),
    ("train.eps", POSITIVE),
    ("train.weight_decay", NOT_NEGATIVE),
    ("train.clip_norm", NOT_NEGATIVE),
    ("train.validate_every", ANY_COUNT),
    ("train.parameter_norms", FLAG),
    (
        "train.mask_rate",
        Words { words: "above 0 and below 1", fit: &["0.01", "0.99"], unfit: &["0", "1", ".nan"] },
    ),
    (
        "train.corruption",
        Words { words: "`spans` or `infilling`", fit: &["spans", "infilling"], unfit: &["deletion"] },
    ),
    ("train.separate_documents", FLAG),
    ("train.start_from", Words { words: "a folder", fit: &["a", "../runs/b"], unfit: &["''", "[a]"] }),
    (
        "layout.schedule",
        Words {
            words: "`gpipe`, `1f1b`, `interleaved`, `zb-h1` or `custom`",
            fit: &["gpipe", "1f1b", "interleaved", "zb-h1", "custom"],
            unfit: &["zb", "7"],
        },
    ),
    (
        "layout.chunks",
        Words { words: "2 or more, 1 or more for `custom`", fit: &["2", "4"], unfit: &["1", "5"] },
    ),
    (
        "layout.actions",
        Words {
            words: "a line for each pipeline rank",
            fit: &["0F0,0B0", "' 0F0 , 0I0,0W0 '"],
            unfit: &["''", "0F0,,0B0", "0F0,1B0", "0F0,0B1", "7"],
        },
    ),
    ("layout.sequence_parallel", FLAG),
    ("layout.zero", Words { words: "0 or 1", fit: &["0", "1", "true"], unfit: &["2", "3", "4", "one"] }),
    ("checkpoint.every", ANY_COUNT),
    (
        "recovery.on_loss",
        Words {
            words: "`wait`, `shrink` or `fail`",
            fit: &["wait", "shrink", "fail"],
            unfit: &["retry", "7"],
        },
    ),
    ("recovery.peer_replica", FLAG),
    ("recovery.rebalance", FLAG),
    (
        "priority",
        Words {
            words: "-2147483648 to 2147483647",
            fit: &["-2147483648", "0", "2147483647"],
            unfit: &["-2147483649", "2147483648", "0.5", "high"],
        },
    ),
];

fn allowed(path: &str) -> Option<Allowed> {
    let words = || ALLOWED.iter().chain(&MODEL).find(|(of, _)| *of == path).map(|(_, allowed)| *allowed);
    limits::of(path).map(Count).or_else(words)
}

/// What has to stand beside a key that goes with another choice only.
fn beside(path: &str) -> Sets {
    match path {
        "train.initial_loss_scale" | "train.loss_scale_growth_steps" => &[("train.precision", "fp16")],
        "train.momentum" => &[("train.optimizer", "muon")],
        "train.decay_steps" => &[("train.learning_rate_schedule", "wsd")],
        "train.mask_rate" => &[("model.architecture", "encoder"), ("model.vocab", "600")],
        "train.whole_words" => &[("model.architecture", "encoder"), ("model.vocab", "600")],
        "data.pairs" => &[("data", "{}")],
        "data.weights" => &[("data", "{pairs: a}")],
        "train.corruption" => &[("model.architecture", "encoder-decoder"), ("model.vocab", "600")],
        "data.classes" => &[
            ("data", "{labelled: a}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "2"),
        ],
        "data.labelled" => &[
            ("data", "{}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "2"),
        ],
        "layout.chunks" => &[("layout.schedule", "interleaved")],
        "layout.actions" => &[("layout.schedule", "custom")],
        path => beside_model(path),
    }
}

/// Values that replace those of the minimal job, by path.
type Sets = &'static [(&'static str, &'static str)];

/// The structs of `source`, with their fields.
fn structs(source: &str) -> Vec<Item> {
    let (mut found, mut doc) = (Vec::<Item>::new(), String::new());
    let item = |name: &str, ty: &str, doc: &mut String| Item {
        name: name.to_owned(),
        ty: ty.to_owned(),
        doc: std::mem::take(doc).trim().to_owned(),
        fields: Vec::new(),
    };
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
        } else if let Some(name) = line.strip_prefix("pub struct ") {
            found.push(item(name.trim_end_matches(" {"), "", &mut doc));
        } else if let Some((name, ty)) = line.strip_prefix("pub ").and_then(|line| line.split_once(": ")) {
            let field = item(name, ty.trim_end_matches(','), &mut doc);
            found.last_mut().unwrap().fields.push(field);
        } else if !line.starts_with("#[") {
            doc.clear();
        }
    }
    found
}

/// Maps in the order of the file: what is said of each, and its keys. The first is the whole file.
fn sections() -> Vec<(String, String, Vec<Key>)> {
    let structs = structs(RAW);
    let mut sections = Vec::new();
    let mut open = vec![("RawJob".to_owned(), String::new())];
    while let Some((name, at)) = open.pop() {
        let of = structs.iter().find(|item| item.name == name).unwrap();
        let keys: Vec<Key> = of.fields.iter().map(|field| key(field, &at)).collect();
        open.extend(
            keys.iter().rev().filter(|key| key.is_map()).map(|key| (key.ty.clone(), key.path.clone())),
        );
        sections.push((at, of.doc.clone(), keys));
    }
    sections
}

fn key(field: &Item, above: &str) -> Key {
    let path = if above.is_empty() { field.name.clone() } else { format!("{above}.{}", field.name) };
    let inner = field.ty.strip_prefix("Option<").and_then(|ty| ty.strip_suffix('>'));
    let (meaning, default) = match field.doc.split_once(" Default: ") {
        Some((meaning, default)) => (meaning, Some(default.trim_end_matches('.').to_owned())),
        None => (field.doc.as_str(), None),
    };
    let ty = inner.unwrap_or(&field.ty).to_owned();
    Key { path, ty, optional: inner.is_some(), meaning: meaning.to_owned(), default }
}

impl Key {
    fn is_map(&self) -> bool {
        self.ty.starts_with("Raw")
    }

    fn type_word(&self) -> &'static str {
        match self.ty.as_str() {
            "String" => "text",
            "Vec<String>" => "list of texts",
            "u32" | "u64" | "i32" => "whole number",
            "f64" => "number",
            "[f64; 2]" => "two numbers",
            "bool" => "true or false",
            "OnLoss" | "Reduction" | "Precision" | "Corruption" | "OptimizerName" | "RateScheduleName"
            | "ScheduleName" | "Architecture" | "PositionsName" | "RopeScalingName" | "NormKind"
            | "NormPlacement" | "ActivationName" | "AttentionName" | "HeadName" => "word",
            "BiasNames" => "true, false or list",
            "RecomputeSetting" => "word or map",
            "ZeroStage" => "whole number",
            "Paths" => "path or list",
            "RawAttention" => "word or map",
            ty if ty.starts_with("Raw") => "map",
            other => panic!("say what a {other} is"),
        }
    }

    fn row(&self) -> String {
        let default = match (&self.default, self.optional) {
            (Some(default), _) => default.as_str(),
            (None, true) => "absent",
            (None, false) => "**required**",
        };
        let allowed = match allowed(&self.path) {
            Some(Count(limit)) => format!("{} to {}", limit.least, limit.most),
            Some(Words { words, .. }) => (*words).to_owned(),
            None => String::new(),
        };
        format!("| `{}` | {} | {default} | {allowed} | {} |\n", self.path, self.type_word(), self.meaning)
    }
}

/// Every key, a table for each map.
fn keys() -> String {
    let mut text = String::new();
    for (path, doc, keys) in sections() {
        let (heading, doc) = match path.as_str() {
            "" => ("The whole file".to_owned(), "The whole file is a map."),
            path => (format!("`{path}`"), doc.split_once(": ").map_or("", |(_, doc)| doc)),
        };
        text.push_str(&format!("### {heading}\n\n"));
        if let Some(first) = doc.chars().next() {
            let rest = &doc[first.len_utf8()..];
            text.push_str(&format!("{}{rest}\n\n", first.to_uppercase()));
        }
        text.push_str("| Key | Type | Default | Allowed | Meaning |\n|---|---|---|---|---|\n");
        text.extend(keys.iter().map(Key::row));
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// Every preset, with the parameters that its model has.
fn models() -> String {
    let mut text = "| Preset | Parameters |\n|---|---|\n".to_owned();
    for name in presets::names() {
        let sets = [("model", format!("{{preset: {name}}}"))];
        let model = read(&sets.each_ref().map(|(path, value)| (*path, value.as_str()))).unwrap().model;
        let parameters: u64 = parameter_table(&model).iter().map(Parameter::elements).sum();
        text.push_str(&format!("| `{name}` | {parameters} |\n"));
    }
    text.trim_end().to_owned()
}

/// Every rule with what the program says where it is broken.
fn rules() -> String {
    let mut text = "| Rule | What is said where it is broken |\n|---|---|\n".to_owned();
    for (rule, sets) in RULES {
        let error = read_by(parse, sets).unwrap_err();
        let [fault] = error.faults() else { panic!("{rule}: {error}") };
        text.push_str(&format!("| {rule} | {}: {} |\n", fault.path, fault.message));
    }
    text.trim_end().to_owned()
}

/// The bounds with their reasons.
fn bounds() -> String {
    let mut text = "| Key | At most | Why |\n|---|---|---|\n".to_owned();
    for key in sections().iter().flat_map(|(_, _, keys)| keys) {
        if let Some(Count(Limit { most, reason, .. })) = allowed(&key.path) {
            text.push_str(&format!("| `{}` | {most} | {reason} |\n", key.path));
        }
    }
    text.trim_end().to_owned()
}

/// The minimal job with some values replaced.
fn read(sets: &[(&str, &str)]) -> Result<JobSpec, SpecError> {
    read_by(look, sets)
}

fn read_by(
    door: impl Fn(&JobText<'_>) -> Result<JobSpec, SpecError>,
    sets: &[(&str, &str)],
) -> Result<JobSpec, SpecError> {
    let sets: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    door(&JobText { source: "job.yaml", text: LEAST, sets: &sets, base: Path::new("/jobs") })
}

fn fenced(text: &str) -> String {
    format!("```yaml\n{}\n```", text.trim_end())
}

/// `page` with its made parts made anew.
fn filled(page: &str) -> String {
    let resolved = resolved_yaml(&read(&[]).unwrap()).unwrap();
    let parts = [
        ("minimal job", fenced(LEAST)),
        ("resolved job", fenced(&resolved)),
        ("keys", keys()),
        ("presets", models()),
        ("rules", rules()),
        ("bounds", bounds()),
    ];
    parts.iter().fold(page.to_owned(), |page, (name, part)| {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = page.split_once(&start).unwrap_or_else(|| panic!("the page has no {start}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("the page has no {end}"));
        format!("{before}{start}\n{part}\n\n{end}{after}")
    })
}

mod model;
mod rules;
mod tests;
