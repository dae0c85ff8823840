//! Models that leave for other programs and come back.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use coxswain_files::Checkpoint;
use coxswain_tests::{Folder, programs};

fn coxswain(folder: &Path, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(programs("coxswain")?);
    command.current_dir(folder).args(words).output().context("starting coxswain")
}

fn done(folder: &Path, words: &[&str]) -> Result<String> {
    let output = coxswain(folder, words)?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn digests(folder: &Path) -> Result<Vec<(String, String)>> {
    let (_, newest) = coxswain_files::latest(&folder.into())?.context("a checkpoint")?;
    let all = Checkpoint::open(&newest, None)?.digests()?;
    Ok(all
        .into_iter()
        .filter(|(name, _)| name.starts_with("model.") || name.starts_with("lm_head"))
        .collect())
}

/// Of each kind of stack one.
const MODELS: [(&str, &[&str]); 3] = [
    ("llama", &[]),
    (
        "gpt2",
        &[
            "model.positions=learned",
            "model.max_positions=40",
            "model.norm=layer",
            "model.activation=gelu-tanh",
            "model.biases=true",
            "model.kv_heads=4",
            "model.tied_embeddings=true",
        ],
    ),
    (
        "t5",
        &[
            "model.architecture=encoder-decoder",
            "model.positions=relative",
            "model.activation=relu",
            "model.kv_heads=4",
            "model.attention_scale=1",
            "model.logit_scale=0.125",
            "model.tied_embeddings=true",
        ],
    ),
];

#[test]
fn a_trained_model_goes_out_and_comes_back_bit_for_bit() -> Result<()> {
    for (name, sets) in MODELS {
        let folder = Folder::new()?;
        let path = folder.path();
        let run =
            sets.iter().fold(folder.run("run").layout(2, 1, 1).set("train.steps=3"), |run, set| run.set(set));
        run.summary().context(name)?;
        done(path, &["export", "--checkpoint", "run", "--out", "hf"]).context(name)?;
        done(path, &["import", "hf", "--out", "back"]).context(name)?;
        ensure!(
            digests(&path.join("run"))? == digests(&path.join("back"))?,
            "{name}: other weights came back"
        );

        // And again, in small files: the same tensors.
        let small = ["export", "--checkpoint", "back", "--out", "small", "--max-file-bytes", "20000"];
        done(path, &small)?;
        ensure!(
            path.join("small/model.safetensors.index.json").is_file(),
            "{name}: it should be several files"
        );
        done(path, &["import", "small", "--out", "again"])?;
        ensure!(digests(&path.join("back"))? == digests(&path.join("again"))?, "{name}: from small files");

        let write = |from: &str| {
            let prompt = if name == "t5" { "one <mask> three" } else { "one" };
            done(
                path,
                &[
                    "generate",
                    "--checkpoint",
                    from,
                    "--prompt",
                    prompt,
                    "--tokens",
                    "12",
                    "--temperature",
                    "0",
                ],
            )
        };
        if name == "gpt2" {
            // Its table has 40 positions; what would stand behind them is not written.
            let words = |tokens| ["generate", "--checkpoint", "run", "--prompt", "one", "--tokens", tokens];
            let output = coxswain(path, &words("60"))?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1) && stderr.contains("ask for at most"), "{stderr}");
            done(path, &["generate", "--checkpoint", "run", "--prompt", "one"])?;
        }
        let (before, after) = (write("run")?, write("again")?);
        ensure!(name == "t5" || before == after, "{name} wrote {before:?}, then {after:?}");
    }
    Ok(())
}

/// The likeliest tokens, written by one process and by four: every form of cache, cut by layers and heads.
#[test]
fn several_processes_write_what_one_writes() -> Result<()> {
    let forms: [(&str, &[&str]); 5] = [
        ("llama", &[]),
        ("compressed", &["model.attention={kind: compressed, window: 6, block: 4}"]),
        ("latent", &["model.attention={kind: latent, rank: 24, rope_dim: 4}", "model.kv_heads=4"]),
        ("decay", &["model.attention={kind: linear, decay: true}"]),
        ("t5", MODELS[2].1),
    ];
    for (name, sets) in forms {
        let folder = Folder::new()?;
        let path = folder.path();
        let run = sets.iter().fold(folder.run("run").layout(1, 1, 1), |run, set| run.set(set));
        run.summary().context(name)?;
        let prompt = if name == "t5" { "one <mask> three" } else { "one two" };
        let words =
            ["generate", "--checkpoint", "run", "--prompt", prompt, "--tokens", "24", "--temperature", "0"];
        let one = done(path, &words).context(name)?;
        for layout in [["--pipeline", "2", "--tensor", "2"], ["--pipeline", "4", "--tensor", "1"]] {
            let four = done(path, &[&words[..], &layout].concat()).context(name)?;
            ensure!(one == four, "{name} {layout:?}: {one:?} became {four:?}");
        }
    }
    Ok(())
}

#[test]
fn a_job_starts_from_an_import() -> Result<()> {
    let folder = Folder::new()?;
    let path = folder.path();
    let first = folder.run("run").layout(1, 1, 1).summary()?;
    done(path, &["export", "--checkpoint", "run", "--out", "hf"])?;
    done(path, &["import", "hf", "--out", "back"])?;
    // The job that came with the import, with a text.
    let job = std::fs::read_to_string(path.join("back/job.yaml"))?;
    std::fs::write(path.join("back/job.yaml"), job.replace("text.txt", "../text.txt"))?;
    let words = ["up", "back/job.yaml", "--workers", "1", "--out", "on"];
    let sets = ["train.steps=1", "train.sequence=32", "train.learning_rate=1e-12", "train.threads=1"];
    let words: Vec<&str> = words.into_iter().chain(sets.iter().flat_map(|set| ["--set", set])).collect();
    done(path, &words)?;
    let metrics = std::fs::read_to_string(path.join("on/metrics.jsonl"))?;
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().context("a line")?)?;
    let (was, is) =
        (first.validation.context("a loss")?, last["validation"]["loss"].as_f64().context("a loss")?);
    ensure!((was - is).abs() < 1e-6 * was, "{was}, then {is}");
    Ok(())
}

/// The files of a model say what stands around its texts, and the import's checkpoint keeps it.
#[test]
fn an_import_frames_texts_as_its_files_say() -> Result<()> {
    let folder = Folder::new()?;
    let path = folder.path();
    folder.run("run").layout(1, 1, 1).set("train.steps=1").summary()?;
    done(path, &["export", "--checkpoint", "run", "--out", "hf"])?;
    let known: serde_json::Value = serde_json::from_str(include_str!("../parity/tokens.json"))?;
    let files = known["folders"]["begins"]["files"].as_object().context("files")?;
    for (name, of) in files.iter().filter(|(name, _)| *name != "config.json") {
        std::fs::write(path.join("hf").join(name), of.to_string())?;
    }
    let config = path.join("hf/config.json");
    let mut changed: serde_json::Value = serde_json::from_slice(&std::fs::read(&config)?)?;
    changed["max_position_embeddings"] = 20.into();
    std::fs::write(&config, changed.to_string())?;
    let told = done(path, &["import", "hf", "--out", "back"])?;
    ensure!(told.contains("generation_config.json has temperature: 0.6"), "{told}");
    let (_, step) = coxswain_files::latest(&path.join("back").as_path().into())?.context("a checkpoint")?;
    let framing = coxswain_files::Manifest::read(&step, None)?.data.framing;
    ensure!((&framing.begin[..], framing.end, &framing.stops[..]) == (&[0][..], 1, &[2][..]), "{framing:?}");
    let job = std::fs::read_to_string(path.join("back/job.yaml"))?;
    ensure!(job.contains("sequence: 20\n"), "{job}");

    let words = ["generate", "--checkpoint", "back", "--prompt", "the </s>", "--tokens"];
    let refused = coxswain(path, &[&words[..], &["30"]].concat())?;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && stderr.contains("more than the model"), "{stderr}");
    let written = done(path, &[&words[..], &["4"]].concat())?;
    ensure!(written.starts_with("the </s>") && written.matches("</s>").count() == 1, "{written}");

    // A token that the embedding has no row for.
    let mut tokenizer = files["tokenizer.json"].clone();
    let mut added = tokenizer["added_tokens"][0].clone();
    (added["id"], added["content"]) = (320.into(), "[PAD]".into());
    tokenizer["added_tokens"].as_array_mut().context("a list")?.push(added);
    std::fs::write(path.join("hf/tokenizer.json"), tokenizer.to_string())?;
    let output = coxswain(path, &["import", "hf", "--out", "more"])?;
    let (stderr, left) = (String::from_utf8_lossy(&output.stderr), path.join("more").exists());
    ensure!(output.status.code() != Some(0) && !left && stderr.contains("`[PAD]`"), "{stderr}");
    Ok(())
}

#[test]
fn what_cannot_go_in_or_out_is_told_and_leaves_nothing() -> Result<()> {
    let folder = Folder::new()?;
    let path = folder.path();
    folder.run("odd").layout(1, 1, 1).set("train.steps=1").set("model.attention=linear").summary()?;
    std::fs::create_dir(path.join("full"))?;
    std::fs::write(path.join("full/file"), "x")?;
    std::fs::write(path.join("no.gguf"), "GGML")?;
    let rows: [(&[&str], i32, &str); 6] = [
        (&["import", "nowhere", "--out", "new"], 2, "nowhere"),
        (&["import", "full", "--out", "new"], 2, "config.json"),
        (&["import", "no.gguf", "--out", "new"], 2, "does not begin as a GGUF file does"),
        (&["export", "--checkpoint", "full", "--out", "new"], 2, "has no committed checkpoint"),
        (&["export", "--checkpoint", "odd", "--out", "full"], 2, "--out full is not empty"),
        (&["export", "--checkpoint", "odd", "--out", "new"], 1, "the nearest, llama, differs in attention"),
    ];
    for (words, code, told) in rows {
        let output = coxswain(path, words)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code) && stderr.contains(told), "{words:?}: {stderr}");
        ensure!(!path.join("new").exists(), "{words:?} left something");
    }
    Ok(())
}
