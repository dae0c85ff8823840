//! `coxswain up` as a user meets it, with worker processes that compute nothing: this test's own
//! program plays the worker.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../src/tests/fake.rs"]
mod fake;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const JOB: &str = "
name: tiny
model: {layers: 2, dim: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, micro_batch_size: 1, global_micro_batches: 2, learning_rate: 1.0e-3}
layout: {pipeline: 2}
";

/// Not a test: the worker that `coxswain up` starts, through the script of [`Place::new`].
#[test]
fn play_the_worker() {
    let Ok(arguments) = std::env::var("FAKE_ARGUMENTS") else { return };
    let arguments: Vec<_> = arguments.split(' ').collect();
    let value = |name: &str| arguments.iter().skip_while(|a| **a != name).nth(1).copied().unwrap();
    let (url, name) = (value("--coordinator"), value("--name"));
    let script = std::env::var("FAKE_SCRIPT").unwrap_or_default();
    assert_eq!(std::env::var("OMP_WAIT_POLICY").as_deref(), Ok("PASSIVE"));
    println!("{name} is here");
    let mut faults = fake::Faults::default();
    match (name, script.as_str()) {
        ("worker-1", "dies") => faults.dies_at = Some(3),
        ("worker-1", "fails") => faults.fails_at = Some(3),
        (_, "does not stop") => faults.deaf = true,
        ("worker-1", "never starts") => {
            println!("libtorch is not here");
            std::process::exit(3);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let ended = runtime.block_on(fake::work(url, name, faults));
    println!("{name} ends: {ended:?}");
    if script == "dies" && ended.is_err() {
        println!("terminate called after throwing an instance of 'c10::Error'");
        std::process::abort();
    }
    std::process::exit(0);
}

/// A folder with the program, the job and a worker program.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name: &str| folder.path().join(name);
        // A link, since a copy could still be open for writing in a child that another test forks.
        fs::hard_link(env!("CARGO_BIN_EXE_coxswain"), path("coxswain")).unwrap();
        fs::write(path("job.yaml"), JOB).unwrap();
        let test = std::env::current_exe().unwrap();
        let play = format!(
            "#!/bin/sh\necho $$ >> {}\nFAKE_ARGUMENTS=\"$*\" exec {} play_the_worker --exact --nocapture\n",
            path("pids").display(),
            test.display()
        );
        fs::write(path("coxswain-worker"), play).unwrap();
        fs::set_permissions(path("coxswain-worker"), fs::Permissions::from_mode(0o755)).unwrap();
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, script: &str, more: &[&str]) -> Command {
        let mut command = Command::new(self.path("coxswain"));
        command.current_dir(self.folder.path()).args(["up", "job.yaml", "--workers", "2"]).args(more);
        command.env("FAKE_SCRIPT", script);
        command
    }

    fn start(&self, script: &str, more: &[&str]) -> Child {
        self.command(script, more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until a run takes steps.
    fn takes_steps(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while fs::read_to_string(self.path("out/tiny/metrics.jsonl")).unwrap_or_default().is_empty() {
            assert!(Instant::now() < until, "the run does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs to the end: exit code and stderr. Nothing may be left running.
    fn up(&self, script: &str, more: &[&str]) -> (Option<i32>, String) {
        self.finish(self.start(script, more))
    }

    fn finish(&self, mut child: Child) -> (Option<i32>, String) {
        let (mut out, mut err) = (String::new(), String::new());
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(out, "", "stdout is for data");
        for pid in fs::read_to_string(self.path("pids")).unwrap_or_default().lines() {
            assert!(!Path::new("/proc").join(pid).exists(), "worker process {pid} is left: {err}");
        }
        (status.code(), err)
    }
}

fn kill(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_run_to_the_end_leaves_what_it_says() {
    let place = Place::new();
    let (code, err) = place.up("", &["--set", "train.seed=7"]);
    assert_eq!(code, Some(0), "{err}");
    for line in [
        "checkpoint  out/tiny/checkpoints/step-00000005",
        "metrics     out/tiny/metrics.jsonl",
        "loss curve  out/tiny/loss.svg",
    ] {
        assert!(err.contains(line), "{err}");
    }
    assert!(err.contains("step 5/5  loss 1.2000"), "{err}");
    let read = |name: &str| fs::read_to_string(place.path("out/tiny").join(name)).unwrap();
    assert_eq!(read("metrics.jsonl").lines().count(), 5);
    assert!(read("loss.svg").contains("</svg>"));
    assert!(
        read("job.yaml").contains("seed: 7") && read("job.yaml").contains("threads: "),
        "{}",
        read("job.yaml")
    );
    assert!(read("logs/worker-1.log").contains("worker-1 is here"));
    // The job that was written down is the job.
    let again = place.start("", &["--out", "again"]);
    assert_eq!(place.finish(again).0, Some(0));
}

#[test]
fn a_run_needs_no_reader() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for deaf in ["full", "a pipe that is closed after the first line", "closed"] {
        let place = Place::new();
        let mut command = place.command("", &["--set", "train.steps=40"]);
        let status = match deaf {
            "full" => command.stdout(full()).stderr(full()).status().unwrap(),
            "closed" => {
                let program = place.path("coxswain");
                let mut shell = Command::new("sh");
                shell.current_dir(place.folder.path()).args(["-c", "exec \"$@\" >&- 2>&-", "sh"]);
                shell.arg(program).args(["up", "job.yaml", "--workers", "2", "--set", "train.steps=40"]);
                shell.status().unwrap()
            }
            _ => {
                let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
                let mut lines = BufReader::new(child.stderr.take().unwrap());
                lines.read_line(&mut String::new()).unwrap();
                drop(lines);
                child.wait().unwrap()
            }
        };
        assert_eq!(status.code(), Some(0), "stderr: {deaf}");
        let out = place.path("out/tiny");
        assert!(fs::read_to_string(out.join("loss.svg")).unwrap().contains("</svg>"), "{deaf}");
        let steps = fs::read_to_string(out.join("metrics.jsonl")).unwrap().lines().count();
        assert_eq!(steps, 40, "{deaf}");
    }
}

#[test]
fn a_worker_that_dies_is_named_with_its_last_words() {
    let place = Place::new();
    let start = Instant::now();
    let (code, err) = place.up("dies", &["--set", "train.steps=100000", "--set", "recovery.on_loss=fail"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(err.contains("error: worker worker-1 (rank 1, stage 1, pid "), "{err}");
    assert!(err.contains("was lost: its connection closed"), "{err}");
    assert!(err.contains("worker-1: killed by signal 6; the end of "), "{err}");
    assert!(err.contains("    terminate called after throwing"), "{err}");
    assert!(err.contains("metrics     out/tiny/metrics.jsonl"), "{err}");
}

#[test]
fn a_worker_that_dies_again_and_again_ends_the_run() {
    let place = Place::new();
    let (code, err) = place.up("dies", &["--set", "train.steps=100000"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("ended (killed by signal 6) and is started again"), "{err}");
    let mut events = Command::new(place.path("coxswain"));
    let events =
        events.args(["events", "--data-dir"]).arg(place.path("out/tiny/coordinator")).output().unwrap();
    let events = String::from_utf8(events.stdout).unwrap();
    let interrupted =
        |line: &&str| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"] == "interrupted";
    assert!(events.lines().filter(interrupted).count() >= 10, "{events}");
    assert!(err.contains("10 tries before this one made no new step either"), "{err}");
}

#[test]
fn a_worker_that_fails_is_named_with_its_last_words() {
    let place = Place::new();
    let (code, err) = place.up("fails", &["--set", "train.steps=100000"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("failed: the disk is full") && err.contains("worker-1: still running"), "{err}");
    assert!(err.contains("    worker-1 is here"), "{err}");
}

#[test]
fn a_worker_that_never_starts_ends_the_run() {
    let place = Place::new();
    let (code, err) = place.up("never starts", &[]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("error: worker-1 ended (exit code 3)"), "{err}");
    assert!(err.contains("    libtorch is not here"), "{err}");
}

/// Whether the tests were started by `nohup` or its like, whose children keep on as well.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 != 0
}

#[test]
fn a_signal_ends_the_run_after_a_step_that_is_saved() {
    for signal in
        ["-INT", "-TERM", "-HUP"].into_iter().filter(|signal| *signal != "-HUP" || !ignores_hangup())
    {
        let place = Place::new();
        let child = place.start("", &["--set", "train.steps=100000"]);
        place.takes_steps();
        kill(signal, &child);
        let (code, err) = place.finish(child);
        assert_eq!(code, Some(1), "{err}");
        let lines = fs::read_to_string(place.path("out/tiny/metrics.jsonl")).unwrap().lines().count();
        let saved = format!("checkpoint  out/tiny/checkpoints/step-{lines:08}");
        assert!(err.contains("the run was cancelled: ended by ") && err.contains(&saved), "{err}");
    }
}

#[test]
fn a_second_signal_ends_the_run_at_once_and_says_what_is_lost() {
    let place = Place::new();
    let child = place.start("does not stop", &["--set", "train.steps=100000"]);
    place.takes_steps();
    kill("-INT", &child);
    std::thread::sleep(Duration::from_millis(300));
    kill("-INT", &child);
    let start = Instant::now();
    let (code, err) = place.finish(child);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("once more ends it at once"), "{err}");
    assert!(err.contains("steps lost: there is no checkpoint"), "{err}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_signal_before_the_run_ends_it_at_once() {
    let place = Place::new();
    // 32 MiB take seconds to tokenize.
    fs::write(place.path("book.txt"), "the boat goes on\n".repeat((32 << 20) / 17)).unwrap();
    let child = place.start("", &["--set", "data={text: book.txt}"]);
    let until = Instant::now() + Duration::from_secs(20);
    // The text is being tokenized.
    while !place.path("out/tiny/data").exists() {
        assert!(Instant::now() < until, "nothing is prepared");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill("-TERM", &child);
    let start = Instant::now();
    let (code, err) = place.finish(child);
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("the run was cancelled: ended by SIGTERM") && !err.contains("nothing to do"),
        "{err}"
    );
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// The modes of what is in a folder, and of the folder itself: of files and of folders.
fn modes(folder: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let mode = |path: &Path| format!("{:o}", fs::metadata(path).unwrap().permissions().mode() & 0o777);
    let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::from([mode(folder)]));
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let (more_files, more_folders) = modes(&path);
            files.extend(more_files);
            folders.extend(more_folders);
        } else {
            files.insert(mode(&path));
        }
    }
    (files, folders)
}

#[test]
fn files_are_their_owners_alone_unless_the_operator_says_otherwise() {
    // The mask of the shell, the variable, the option, and the modes of files and folders.
    let rows = [
        ("022", "", "", ["600", "700"]),
        ("027", "umask", "", ["640", "750"]),
        ("007", "", "--file-mode=umask", ["660", "770"]),
        ("002", "umask", "--file-mode=private", ["600", "700"]),
    ];
    let place = Place::new();
    fs::write(place.path("book.txt"), "the boat goes on\n".repeat(200)).unwrap();
    for (mask, variable, option, [file, folder]) in rows {
        let start = |arguments: &[&str]| {
            let mut shell = Command::new("sh");
            shell.current_dir(place.folder.path()).args(["-c", "umask $0; exec \"$@\"", mask, "./coxswain"]);
            shell.args(arguments).args(Some(option).filter(|option| !option.is_empty()));
            if !variable.is_empty() {
                shell.env("COXSWAIN_FILE_MODE", variable);
            }
            shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let out = format!("out-{mask}");
        let arguments = [
            "up",
            "job.yaml",
            "--workers=2",
            "--out",
            &out,
            "--set",
            "data={text: book.txt, validation: 0.2}",
        ];
        assert!(start(&arguments).wait().unwrap().success());
        let data = format!("data-{mask}");
        let mut serve = start(&["serve", "--data-dir", &data, "--listen", "127.0.0.1:0"]);
        let until = Instant::now() + Duration::from_secs(20);
        while !place.path(&data).join("journal").exists() {
            assert!(Instant::now() < until, "the coordinator does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        serve.kill().unwrap();
        serve.wait().unwrap();
        for made in [&out, &data] {
            let [file, folder] = [file, folder].map(|mode| BTreeSet::from([mode.to_owned()]));
            assert_eq!(modes(&place.path(made)), (file, folder), "umask {mask}: {made}");
        }
        // What was looked at is what a run makes.
        for path in ["run.lock", "metrics.jsonl", "loss.svg", "logs/worker-0.log", "data/validation.txt"] {
            assert!(place.path(&out).join(path).exists(), "{path}");
        }
    }
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let place = Place::new();
    let child = place.start("", &["--set", "train.steps=100000"]);
    let until = Instant::now() + Duration::from_secs(20);
    while !place.path("out/tiny/coordinator/journal").exists() {
        assert!(Instant::now() < until, "the run does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = place.start("", &[]);
    let output = second.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("is in use by another coordinator"), "{err}");
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert_eq!(place.finish(child).0, Some(1));
}
