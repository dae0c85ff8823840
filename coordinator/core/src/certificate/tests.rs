mod compare;
mod print;

use std::path::Path;

use super::*;
use crate::spec::{JobText, parse};

const JOB: &str = "
name: tiny
model: {layers: 4, dim: 64, heads: 4, kv_heads: 2, ffn: 96, vocab: 320}
data: {synthetic: {tokens: 4096}}
train: {steps: 1000, sequence: 32, global_micro_batches: 8, warmup_steps: 20}
";

fn spec_of(job: &str, sets: &[&str]) -> JobSpec {
    let sets: Vec<_> = sets.iter().map(|set| set.split_once('=').unwrap()).collect();
    let sets: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    parse(&JobText { source: "job.yaml", text: job, sets: &sets, base: Path::new("/") }).unwrap()
}

fn spec(layout: &str, sets: &[&str]) -> JobSpec {
    let layout = LayoutName::parse(layout).unwrap();
    let sets: Vec<_> = sets.iter().copied().chain(layout.sets.iter().map(String::as_str)).collect();
    spec_of(JOB, &sets)
}

fn record() -> RunRecord {
    let norms = |scale: f64| {
        [("a", 0.5 * scale), ("b", 0.25 * scale)].map(|(name, norm)| (name.to_owned(), norm)).into()
    };
    RunRecord {
        losses: [(1, 6.0), (2, 5.0)].into(),
        norms: [(1, 1.5), (2, 1.25)].into(),
        parameter_norms: [(1, norms(1.0)), (2, norms(0.9))].into(),
        validation: Some(5.5),
        digests: ["a", "b", "optimizer.a"].map(|name| (name.to_owned(), format!("digest of {name}"))).into(),
    }
}

fn next(x: f64) -> f64 {
    f64::from_bits(x.to_bits() + 1)
}

#[test]
fn names_become_changes_to_the_job() {
    let rows: [(&str, &[&str]); 8] = [
        ("one", &["layout={pipeline: 1, tensor: 1, data: 1}"]),
        ("pp2", &["layout={pipeline: 2, tensor: 1, data: 1}"]),
        ("tp2xpp4", &["layout={pipeline: 4, tensor: 2, data: 1}"]),
        ("dp3xpp2xtp4", &["layout={pipeline: 2, tensor: 4, data: 3}"]),
        ("dp2+zero", &["layout={pipeline: 1, tensor: 1, data: 2}", "layout.zero=1"]),
        (
            "pp2+interleaved+full",
            &[
                "layout={pipeline: 2, tensor: 1, data: 1}",
                "layout.schedule=interleaved",
                "layout.chunks=2",
                "train.recompute=full",
            ],
        ),
        ("job", &[]),
        ("job+sp+zb-h1", &["layout.sequence_parallel=true", "layout.schedule=zb-h1"]),
    ];
    for (name, sets) in rows {
        assert_eq!(LayoutName::parse(name).unwrap().sets, sets, "{name}");
    }
}

#[test]
fn every_option_is_a_change_that_jobs_know() {
    let plain = spec("pp2", &[]);
    for option in ["zero", "sp", "gpipe", "zb-h1", "interleaved", "full", "attention", "ffn"] {
        assert_ne!(spec(&format!("pp2+{option}"), &[]), plain, "{option}");
    }
    for option in ["1f1b", "none"] {
        assert_eq!(spec(&format!("pp2+{option}"), &[]), plain, "{option}");
    }
}

#[test]
fn a_name_replaces_all_of_the_layout_and_keeps_recompute() {
    let sets = ["layout.schedule=interleaved", "layout.chunks=4", "layout.zero=1", "train.recompute=full"];
    assert_eq!(spec("pp2", &sets), spec("pp2", &["train.recompute=full"]));
}

#[test]
fn names_that_make_no_sense_are_refused_with_what_is_allowed() {
    let parts = "parts are ppN, tpN, dpN with N from 1 to 4096, joined by x (such as tp2xpp2), or `one` or `job` alone";
    let rows = [
        ("", format!("`` is not a part; {parts}")),
        ("p2", format!("`p2` is not a part; {parts}")),
        ("pp", format!("`pp` is not a part; {parts}")),
        ("pp0", format!("`pp0` is not a part; {parts}")),
        ("pp02", format!("`pp02` is not a part; {parts}")),
        ("pp5000", format!("`pp5000` is not a part; {parts}")),
        ("pp2xjob", format!("`job` is not a part; {parts}")),
        ("pp2 ", format!("`pp2 ` is not a part; {parts}")),
        ("pp2xpp2", "`pp` is given twice".to_owned()),
        (
            "pp2+fast",
            "`+fast` is not an option; there are +zero, +sp, +1f1b, +gpipe, +zb-h1, +interleaved, +none, +full, +attention, \
             +ffn"
                .to_owned(),
        ),
        ("pp2+gpipe+zb-h1", "`+gpipe` and `+zb-h1` both set schedule; give one of them".to_owned()),
        ("pp2+zero+zero", "`+zero` and `+zero` both set zero; give one of them".to_owned()),
    ];
    for (name, problem) in rows {
        let error = LayoutName::parse(name).unwrap_err();
        assert_eq!(error, CertificateError::Name { name: name.to_owned(), problem });
        assert!(error.to_string().starts_with(&format!("--layouts: layout `{name}`: ")));
    }
}

#[test]
fn the_runs_are_valid_jobs_whatever_their_schedule() {
    for (steps, sets, expected) in [
        (5, &[][..], (5, 5)),
        (100, &[], (100, 20)),
        (5, &["train.learning_rate_schedule=wsd", "train.decay_steps=100"], (5, 5)),
        (25, &["train.learning_rate_schedule=wsd", "train.decay_steps=100"], (25, 20)),
        (5, &["train.learning_rate_schedule=constant", "train.warmup_steps=0"], (5, 0)),
        (1, &["data={text: text.txt}", "train.validate_every=3", "checkpoint={every: 2}"], (1, 1)),
    ] {
        let changes = run_sets(&spec_of(JOB, sets), steps);
        let all: Vec<_> = sets.iter().copied().chain(changes.iter().map(String::as_str)).collect();
        let spec = spec_of(JOB, &all);
        assert_eq!((spec.train.steps, spec.train.optimizer.warmup_steps), expected, "{sets:?}");
        assert_eq!((spec.train.validate_every, spec.checkpoint.every), (0, 0));
        assert!(spec.train.parameter_norms);
    }
}

#[test]
fn threads_are_the_jobs_or_a_share_of_the_cores() {
    for (given, cores, workers, number) in
        [(Some(3), 2, 8, 3), (None, 8, 2, 4), (None, 8, 3, 2), (None, 2, 8, 1), (None, 0, 0, 1)]
    {
        assert_eq!(threads(given, cores, workers).number, number, "{given:?} {cores} {workers}");
    }
}

#[test]
fn the_reference_is_one_process_or_the_smallest_that_fits() {
    let layout = |name: &str, workers, needed| Candidate { name: name.to_owned(), workers, needed };
    let one = layout("one", 1, 100 << 20);
    let given = [layout("dp4", 4, 50 << 20), layout("pp2", 2, 60 << 20), layout("tp2", 2, 40 << 20)];
    for (available, expected) in [
        (None, Some(("one", None))),
        (Some(100 << 20), Some(("one", None))),
        (
            Some(99 << 20),
            Some(("pp2", Some("one process needs about 100.0 MiB, and 99.0 MiB are available"))),
        ),
        (
            Some(59 << 20),
            Some(("tp2", Some("one process needs about 100.0 MiB, and 59.0 MiB are available"))),
        ),
        (Some(39 << 20), None),
    ] {
        let chosen = choose_reference(&one, &given, available).ok();
        let expected =
            expected.map(|(name, why): (&str, Option<&str>)| (name.to_owned(), why.map(str::to_owned)));
        assert_eq!(chosen, expected, "{available:?}");
    }
    let error = choose_reference(&one, &given, Some(39 << 20)).unwrap_err().to_string();
    assert!(error.contains("tp2") && error.contains("40.0 MiB") && error.contains("39.0 MiB"), "{error}");
}
