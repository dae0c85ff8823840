//! The program as a user meets it: exit codes, stdout and stderr.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const JOB: &str = "
name: tiny
model: {layers: 2, dim: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, micro_batch_size: 1, global_micro_batches: 2, learning_rate: 1.0e-3}
layout: {pipeline: 2}
";

fn coxswain(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coxswain"));
    command.current_dir(folder).args(arguments).env_remove("COXSWAIN_COORDINATOR").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn bad_input_is_told_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("job.yaml"), JOB).unwrap();
    fs::write(folder.path().join("bad.yaml"), JOB.replace("heads: 4", "heeads: 4")).unwrap();
    let listen = ["serve", "--data-dir", "state", "--listen", "0.0.0.0:0"];
    let rows: [(&[&str], &str); 13] = [
        (&["up", "bad.yaml", "--workers", "2"], "heads"),
        (&["up", "none.yaml", "--workers", "2"], "the job file none.yaml cannot be read"),
        (&["up", "job.yaml", "--workers", "3"], "the layout needs 2 (layout.pipeline 2 x"),
        (&["up", "job.yaml", "--workers", "two"], "invalid value 'two'"),
        (&["up", "job.yaml", "--device", "tpu"], "unknown device; must be cpu, cuda or cuda:N"),
        (
            &["verify", "job.yaml", "--layouts", "pp2", "--device", "gpu"],
            "unknown device; must be cpu, cuda or cuda:N",
        ),
        (&["up", "job.yaml", "--set", "trian.steps=3"], "--set trian.steps=3: trian: is not a known key"),
        (&["plan", "job.yaml", "--workers", "4"], "the layout needs 2"),
        (&["plan", "job.yaml", "--workers", "2", "--set", "train.stepps=1"], "stepps"),
        (&["submit", "bad.yaml", "--directory", "/tmp/none"], "heads"),
        (&["status", "--coordinator", "not an address"], "is not a coordinator address"),
        (&["nonsense"], "unrecognized subcommand"),
        (&listen, "--insecure-network"),
    ];
    for (arguments, expected) in rows {
        let output = coxswain(folder.path(), arguments);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {err}");
        assert!(err.contains(expected), "{arguments:?}: {err}");
        assert_eq!(out, "", "{arguments:?}: stdout is for data");
    }
    assert!(!folder.path().join("out").exists() && !folder.path().join("state").exists());
}

/// A text that cannot be read is named before a folder is made, and nothing waits for a pipe.
#[test]
fn a_job_whose_text_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let job = JOB.replace("{synthetic: {tokens: 4096}}", "{text: book.txt}");
    fs::write(folder.path().join("job.yaml"), format!("\u{feff}{job}")).unwrap();
    let book = folder.path().join("book.txt");
    let kinds: [(&dyn Fn(), &str); 4] = [
        (&|| {}, "book.txt does not exist"),
        (&|| assert!(Command::new("mkfifo").arg(&book).status().unwrap().success()), "is a named pipe"),
        (&|| std::os::unix::fs::symlink("/dev/zero", &book).unwrap(), "is a device"),
        (&|| fs::write(&book, b"\x1f\x8b\x08").unwrap(), "is a gzip archive; unpack it first"),
    ];
    for (make, told) in kinds {
        let _ = fs::remove_file(&book);
        make();
        for command in ["plan", "up"] {
            let output = coxswain(folder.path(), &[command, "job.yaml", "--workers", "2"]);
            let err = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command}: {err}");
            assert!(err.contains("data.text: ") && err.contains(told), "{command}: {err}");
        }
        let output = coxswain(folder.path(), &["plan", "job.yaml", "--format", "json"]);
        let refused: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(refused["errors"][0]["code"], "data.text.unreadable", "{told}");
    }
    assert!(!folder.path().join("out").exists());
    let _ = fs::remove_file(&book);
    fs::write(&book, "the river goes on and on\n".repeat(400)).unwrap();
    let output = coxswain(folder.path(), &["plan", "job.yaml", "--workers", "2"]);
    let out = text(&output.stdout);
    assert!(out.contains("data: 1 file of 0.0 MB, about ") && out.contains("training reads"), "{out}");
    let output = coxswain(folder.path(), &["plan", "job.yaml", "--workers", "2", "--format", "json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["data"]["bytes"].as_u64(), Some(10_000));
    fs::write(
        folder.path().join("job.yaml"),
        "\u{feff}a".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
    )
    .unwrap();
    let output = coxswain(folder.path(), &["plan", "job.yaml", "--workers", "2"]);
    assert!(text(&output.stderr).contains("job.yaml is UTF-16 text; convert it first"), "{output:?}");
}

#[test]
fn what_cannot_be_reached_failed() {
    let folder = tempfile::tempdir().unwrap();
    // No process listens on port 1.
    let output = coxswain(folder.path(), &["status", "--coordinator", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no coordinator answers at http://127.0.0.1:1"));
}

#[test]
fn what_the_system_says_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let rows: [(&[&str], &str); 3] = [
        (&["export", "--checkpoint", "file", "--out", "o"], "(os error 20)"),
        (&["import", "file/none", "--out", "o"], "(os error 20)"),
        (&["events", "--data-dir", "none"], "(os error 2)"),
    ];
    for (arguments, expected) in rows {
        let output = coxswain(folder.path(), arguments);
        let err = text(&output.stderr);
        assert_eq!(err.matches(expected).count(), 1, "{arguments:?}: {err}");
    }
}

#[test]
fn plans_go_to_stdout() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("job.yaml"), JOB).unwrap();
    let output = coxswain(folder.path(), &["plan", "job.yaml", "--workers", "2"]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    assert!(text(&output.stdout).contains("worker-1"), "{}", text(&output.stdout));
    let output = coxswain(folder.path(), &["plan", "job.yaml", "--format", "json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["ranks"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_plan_says_what_can_be_exported() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("job.yaml"), JOB).unwrap();
    let why = "no known family can say this model; the nearest, llama, differs in attention";
    let rows: [(&[&str], &str, &str); 2] = [
        (&[], "\nexport: llama (LlamaForCausalLM)\n", "\"LlamaForCausalLM\""),
        (&["--set", "model.attention=linear"], &format!("\nexport: none; {why}"), why),
    ];
    for (sets, line, told) in rows {
        let output = coxswain(folder.path(), &[&["plan", "job.yaml"], sets].concat());
        assert!(text(&output.stdout).contains(line), "{} {}", text(&output.stdout), text(&output.stderr));
        let output = coxswain(folder.path(), &[&["plan", "job.yaml", "--format", "json"], sets].concat());
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(plan["export"].to_string().contains(told), "{}", plan["export"]);
    }
}

#[test]
fn a_command_whose_output_is_not_read_ends_quietly() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("job.yaml"), JOB).unwrap();
    let plan = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coxswain"));
        command.current_dir(folder.path()).args(["plan", "job.yaml", "--workers", "2"]);
        command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = plan(writer.into());
    // As if by SIGPIPE.
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(141), ""));
    let output = plan(File::options().write(true).open("/dev/full").unwrap().into());
    let expected = "error: writing to stdout: No space left on device (os error 28)\n";
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(1), expected));
}

#[test]
fn a_known_model_is_planned_without_a_job_file() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |arguments: &[&str]| coxswain(folder.path(), &[&["plan"], arguments].concat());
    // One that can be trained, one that can be planned only, and one that no machine here could hold.
    for (preset, workers, parameters) in [
        ("gpt2", "1", 124_439_808_u64),
        ("t5-small", "3", 60_506_624),
        ("llama-3.1-405b", "1", 405_853_388_800),
    ] {
        let output = plan(&["--preset", preset, "--workers", workers, "--format", "json"]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{preset}");
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(plan["parameters"].as_u64(), Some(parameters), "{preset}");
        assert_eq!(plan["ranks"].as_array().map(Vec::len).unwrap().to_string(), workers, "{preset}");
    }
    // The layout says how many workers there are.
    let of_layout = plan(&["--preset", "gpt2", "--set", "layout.tensor=2", "--set", "layout.data=2"]);
    let said = text(&of_layout.stdout);
    assert!(said.contains("pipeline 1 x tensor 2 x data 2 · 4 workers"), "{}", text(&of_layout.stderr));
    let output = plan(&["--preset", "gpt2", "--workers", "4", "--set", "layout.tensor=4"]);
    assert!(text(&output.stdout).contains("pipeline 1 x tensor 4 x data 1"), "{}", text(&output.stderr));
    let rows: [(&[&str], &str); 5] = [
        (&["--preset", "gpt5", "--workers", "1"], "must be one of gpt2, gpt2-medium, "),
        (&["--preset", "a: [", "--workers", "1"], "found `a: [`, which is not a preset"),
        (&["--preset", "gpt2", "--workers", "1", "--set", "model.heads=7"], "--set model.heads=7: found 7"),
        (&["--workers", "1"], "JOB.yaml"),
        (&["job.yaml", "--preset", "gpt2", "--workers", "1"], "cannot be used with"),
    ];
    for (arguments, expected) in rows {
        let output = plan(arguments);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), ""), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

#[test]
fn schedules_are_compared_and_drawn_without_changing_the_job() {
    let folder = tempfile::tempdir().unwrap();
    // The job's own schedule has lists, which the others do not take.
    let own = "layout:\n  pipeline: 2\n  schedule: custom\n  actions: |\n    0F0,0F1,0B0,0B1\n    1F0,1B0,1F1,1B1\n";
    let job = JOB.replace("layout: {pipeline: 2}\n", own);
    fs::write(folder.path().join("job.yaml"), job).unwrap();
    let plan = ["plan", "job.yaml", "--workers", "2"];
    let of = |more: &[&str]| coxswain(folder.path(), &[&plan[..], more].concat());
    let output = of(&[]);
    assert!(text(&output.stdout).contains("custom: "), "{}", text(&output.stderr));
    let output = of(&["--schedule", "gpipe,zb-h1", "--svg", "schedules.svg"]);
    let out = text(&output.stdout);
    assert!(out.contains("GPipe: ") && out.contains("ZB-H1: "), "{out}{}", text(&output.stderr));
    let picture = fs::read_to_string(folder.path().join("schedules.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("ZB-H1"), "{picture}");
    let output = of(&["--schedule", "gpipe,1f1b", "--format", "json"]);
    let plans: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plans.as_array().map(Vec::len), Some(2));
    let output = of(&["--schedule", "zb-h2"]);
    assert_eq!(output.status.code(), Some(2));
    // One layer on each of two ranks cannot be two stages.
    let output = of(&["--schedule", "interleaved"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_the_worker_program_nothing_is_started() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(folder.path().join("job.yaml"), JOB).unwrap();
    let program = folder.path().join("coxswain");
    fs::hard_link(env!("CARGO_BIN_EXE_coxswain"), &program).unwrap();
    let up = ["up", "job.yaml", "--workers", "2"];
    let generate = ["generate", "--checkpoint", "out", "--prompt", "-"];
    for arguments in [&up[..], &generate[..]] {
        let output = Command::new(&program).current_dir(folder.path()).args(arguments).output().unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains("coxswain-worker is not there"), "{err}");
    }
    assert!(!folder.path().join("out").exists());
}
