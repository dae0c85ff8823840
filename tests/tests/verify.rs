//! `coxswain verify` on real runs: certificates that hold, and some that must not.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use coxswain_tests::{Folder, programs};
use serde_json::Value;

/// What `coxswain verify` said.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    /// The certificate as JSON, where there is one.
    json: Option<Value>,
}

/// A layout of the certificate: bitwise, other tensors, whether it is broken.
type Found<'a> = (&'a str, bool, bool, bool);

impl Said {
    fn layouts(&self) -> Result<Vec<Found<'_>>> {
        let json =
            self.json.as_ref().with_context(|| format!("no certificate; it said:\n{}", self.stderr))?;
        let rows = json["layouts"].as_array().context("layouts")?.iter().map(|row| {
            let name = row["layout"].as_str().context("a name")?;
            let bitwise = row["bitwise"].as_bool().context("bitwise")?;
            let others = row["other_tensors"].as_u64().context("other_tensors")?;
            ensure!(row["tensors"].as_u64().is_some_and(|tensors| tensors > others), "{row}");
            Ok((name, bitwise, others > 0, !row["broken"].is_null()))
        });
        rows.collect()
    }

    fn runs_are_in(&self) -> Option<PathBuf> {
        self.stderr.lines().find_map(|line| line.strip_prefix("the runs are in ")).map(PathBuf::from)
    }
}

fn verify(folder: &Folder, name: &str, options: &[&str]) -> Result<Said> {
    let json = folder.path().join(format!("{name}.json"));
    let mut command = Command::new(programs("coxswain")?);
    command.arg("verify").arg(folder.job()).arg("--json").arg(&json).args(options);
    // Temporary folders of runs that are kept go where the test's own folder goes.
    let output = command.env("TMPDIR", folder.path()).stdin(Stdio::null()).output()?;
    let json = std::fs::read(json).ok().map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
        json,
    })
}

#[test]
fn layouts_of_a_job_are_certified() -> Result<()> {
    let folder = Folder::new()?;
    let said = verify(&folder, "plain", &["--layouts", "pp2,dp2,tp2,tp2xpp2"])?;
    ensure!(said.code == Some(0), "exit code {:?}\n{}{}", said.code, said.stdout, said.stderr);
    let expected = [
        ("pp2", true, false, false),
        ("dp2", true, false, false),
        // Not bitwise, or the comparison would see nothing.
        ("tp2", false, true, false),
        ("tp2xpp2", false, true, false),
    ];
    ensure!(said.layouts()? == expected, "{}", said.stdout);
    for part in
        ["reference  one process", "runs       5 steps", "threads    1 ", "the bits of tp2", "holds: 4 of 4"]
    {
        ensure!(said.stdout.contains(part), "{part} is missing:\n{}", said.stdout);
    }
    ensure!(said.runs_are_in().is_none(), "{}", said.stderr);
    let left =
        std::fs::read_dir(folder.path())?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let left: Vec<_> = left.filter(|name| name.starts_with("coxswain-verify")).collect();
    ensure!(left.is_empty(), "{left:?} is left behind");
    Ok(())
}

#[test]
fn with_logical_shards_every_layout_is_bitwise() -> Result<()> {
    let folder = Folder::new()?;
    let out = folder.path().join("runs");
    let out = out.to_str().context("a path of UTF-8")?;
    let layouts = ["one", "tp2", "tp2xpp2+sp", "dp2+zero", "pp2+interleaved+full", "pp2+zb-h1"];
    let options =
        ["--set", "train.tensor_shards=2", "--steps", "3", "--out", out, "--layouts", &layouts.join(",")];
    let said = verify(&folder, "shards", &options)?;
    ensure!(said.code == Some(0), "exit code {:?}\n{}{}", said.code, said.stdout, said.stderr);
    ensure!(said.layouts()? == layouts.map(|name| (name, true, false, false)), "{}", said.stdout);

    // The folders are there to look at, and the next certificate takes fresh runs.
    for name in layouts.into_iter().chain(["reference"]) {
        let metrics = std::fs::read_to_string(folder.path().join("runs").join(name).join("metrics.jsonl"))?;
        ensure!(metrics.lines().count() == 3, "{name}: {metrics}");
    }
    let again = verify(&folder, "again", &options)?;
    ensure!(again.code == Some(2) && again.stderr.contains("is there already"), "{}", again.stderr);
    Ok(())
}

#[test]
fn what_is_not_the_same_does_not_pass() -> Result<()> {
    let folder = Folder::new()?;
    // Each adds in another order than one process: tp2 its products, fast dp2 its gradients.
    for (name, layout, sets) in
        [("strict", "tp2", &[][..]), ("fast", "dp2", &["--set", "train.reduction=fast"])]
    {
        let layouts = format!("pp2,{layout}");
        let options = [sets, &["--strict", "--layouts", &layouts]].concat();
        let said = verify(&folder, name, &options)?;
        ensure!(said.code == Some(1), "exit code {:?}\n{}{}", said.code, said.stdout, said.stderr);
        let expected = [("pp2", true, false, false), (layout, false, true, true)];
        ensure!(said.layouts()? == expected, "{}", said.stdout);
        ensure!(said.stderr.contains(&format!("error: layout {layout}: ")), "{}", said.stderr);
        ensure!(said.stdout.contains(&format!("does not hold: 1 of 2: {layout}")), "{}", said.stdout);
        let kept = said.runs_are_in().context("the folder of the runs")?;
        ensure!(kept.join(layout).join("metrics.jsonl").is_file(), "{} is gone", kept.display());
    }
    Ok(())
}

#[test]
fn another_reference_is_named() -> Result<()> {
    let folder = Folder::new()?;
    let said =
        verify(&folder, "reference", &["--steps", "2", "--reference", "tp2", "--layouts", "tp2,tp2xdp2"])?;
    ensure!(said.code == Some(0), "exit code {:?}\n{}{}", said.code, said.stdout, said.stderr);
    ensure!(said.layouts()? == [("tp2xdp2", true, false, false)], "{}", said.stdout);
    ensure!(said.stdout.contains("reference  tp2 (chosen by --reference)"), "{}", said.stdout);
    Ok(())
}

#[test]
fn bad_input_is_refused_before_anything_starts() -> Result<()> {
    let folder = Folder::new()?;
    let rows: [(&[&str], &str); 6] = [
        (&["--layouts", "tp3"], "layout tp3: "),
        (&["--layouts", "pp2,pp8"], "layout pp8: "),
        (&["--layouts", "xx2"], "`` is not a part; parts are ppN"),
        (&["--layouts", "pp2,pp2"], "`pp2` is given twice"),
        (&["--layouts", "pp2", "--set", "model.heads=5"], "model.heads"),
        (&["--layouts", "pp2", "--steps", "0"], "--steps"),
    ];
    for (options, expected) in rows {
        let said = verify(&folder, "bad", options)?;
        ensure!(said.code == Some(2), "{options:?}: exit code {:?}\n{}", said.code, said.stderr);
        ensure!(said.stderr.contains(expected) && said.stdout.is_empty(), "{options:?}: {}", said.stderr);
    }
    Ok(())
}

#[test]
fn a_run_that_fails_shows_its_last_words() -> Result<()> {
    let folder = Folder::new()?;
    let said = verify(&folder, "failed", &["--set", "data.text=nothing.txt", "--layouts", "pp2"])?;
    ensure!(said.code == Some(1) && said.stdout.is_empty() && said.json.is_none(), "{}", said.stderr);
    ensure!(said.stderr.contains("error: reference (one process): the run ended"), "{}", said.stderr);
    ensure!(said.stderr.contains("nothing.txt"), "{}", said.stderr);
    Ok(())
}
