//! `coxswain plan` on machines that do not exist: the choice, its file, and what it refuses.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const JOB: &str = "
name: tiny
model: {layers: 4, dim: 256, heads: 4, kv_heads: 2, ffn: 512, vocab: 3000}
data: {synthetic: {tokens: 100000}}
train: {steps: 500, sequence: 128, batch_size: 16, precision: bf16}
layout: auto
";

const CLUSTER: &str = "
hosts:
- {count: 2, devices: 2, device: a10-24gb, price_per_hour: 3.0}
between: {gigabytes_per_s: 1}
";

fn coxswain(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coxswain"));
    command.current_dir(folder).args(arguments).env_remove("COXSWAIN_COORDINATOR").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("job.yaml"), JOB).unwrap();
    fs::write(folder.path().join("cluster.yaml"), CLUSTER).unwrap();
    folder
}

#[test]
fn a_choice_is_printed_kept_and_compared() {
    let folder = folder();
    let plan = |more: &[&str]| {
        let output =
            coxswain(folder.path(), &[&["plan", "job.yaml", "--cluster", "cluster.yaml"], more].concat());
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{more:?}");
        text(&output.stdout).to_owned()
    };
    let printed = plan(&["-o", "a.json"]);
    for part in
        ["tiny on 2 hosts of 2 a10-24gb: pipeline", "tokens/s", "500 steps in", "price", "other layouts"]
    {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert_eq!(plan(&[]), printed, "the same question has the same answer");
    let facts: Value = serde_json::from_str(&plan(&["--format", "json"])).unwrap();
    let workers = facts["workers"].as_u64().unwrap();
    assert!((1..=4).contains(&workers) && facts["prediction"]["step"].as_f64().unwrap() > 0.0, "{facts}");
    let page = plan(&["--format", "html"]);
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg") && !page.contains("src="), "{page}");
    assert!(plan(&["--format", "svg"]).starts_with("<svg"));
    // The kept job is whole: it is planned as any other, and takes as many workers.
    let kept: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("a.json")).unwrap()).unwrap();
    fs::write(folder.path().join("kept.yaml"), kept["job"].as_str().unwrap()).unwrap();
    let output = coxswain(folder.path(), &["plan", "kept.yaml", "--workers", &workers.to_string()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    plan(&["-o", "b.json", "--set", "layout={tensor: 2, pipeline: auto}", "--workers", "2"]);
    let differs = text(&coxswain(folder.path(), &["plan", "diff", "a.json", "b.json"]).stdout).to_owned();
    assert!(differs.contains("layout.tensor"), "{differs}");
    let same = coxswain(folder.path(), &["plan", "diff", "a.json", "a.json"]);
    assert_eq!(text(&same.stdout), "the plans are the same\n");
}

#[test]
fn a_known_model_is_planned_for_a_memory() {
    let folder = folder();
    let asked =
        ["plan", "--preset", "smollm2-135m", "--workers", "2", "--memory", "24GiB", "--format", "json"];
    let output = coxswain(folder.path(), &asked);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["cluster"]["hosts"][0]["device"]["name"], "a10-24gb");
    assert!(facts["fullest_bytes"].as_u64().unwrap() <= 24 << 30);
    assert!(facts["chosen"]["train.micro_batch_size"].is_string(), "{facts}");
}

#[test]
fn what_cannot_be_planned_is_told() {
    let folder = folder();
    fs::write(folder.path().join("bad.yaml"), "hosts: [{device: a100}]").unwrap();
    let rows: [(&[&str], &str); 10] = [
        (&["plan", "job.yaml", "--device", "h100"], "unknown device `h100`; did you mean `h100-80gb`?"),
        (&["plan", "job.yaml", "--cluster", "bad.yaml"], "bad.yaml:1:10: hosts[0].device: unknown device"),
        (&["plan", "job.yaml", "--cluster", "none.yaml"], "the cluster file none.yaml cannot be read"),
        (&["plan", "job.yaml", "--cluster", "cluster.yaml", "--workers", "5"], "the cluster has 4 devices"),
        (&["plan", "job.yaml", "--device", "cpu", "--memory", "1MiB"], "no layout fits"),
        (&["plan", "job.yaml", "--device", "cpu", "--memory", "much"], "must be a whole number of bytes"),
        (&["plan", "diff", "job.yaml", "job.yaml"], "is not a plan that `coxswain plan -o` wrote"),
        (&["up", "--plan", "job.yaml"], "is not a plan that `coxswain plan -o` wrote"),
        (&["up", "job.yaml", "--hosts", "a,b"], "describe them in a cluster file"),
        (&["submit", "job.yaml", "--directory", "/nowhere"], "layout: is `auto`, which a plan replaces"),
    ];
    for (arguments, expected) in rows {
        let output = coxswain(folder.path(), arguments);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    }
}
