//! Data prepared, found again, and refused.

mod memory;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use coxswain_types::assignment::TokenSource;

use super::*;
use crate::atomic::digest_file;
use crate::fixture;
use crate::source::OpenTokens;
use crate::store::memory::FaultyStore;
use crate::tokenizer::Tokenizer;
use crate::tokens::list_of;

/// As a first start of the job does.
fn prepare(dir: &Path, spec: &JobSpec) -> Result<PreparedData, PrepareError> {
    super::prepare(&dir.into(), spec, None, &Digests::default(), &|_| Ok(()))
}

/// A run's folder and two texts.
fn run() -> (tempfile::TempDir, JobSpec) {
    let dir = tempfile::tempdir().unwrap();
    let texts = ["the boat goes on and on\n".repeat(20), "the oars go in and out\r\n".repeat(30)];
    let mut files = Vec::new();
    for (name, text) in ["a.txt", "b.txt"].iter().zip(texts) {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        files.push(path.to_str().unwrap().to_owned());
    }
    (dir, fixture::spec(DataSpec::Text { files, validation: 0.1 }))
}

fn tokens(dir: &Path, source: impl Into<TokenSource>) -> Vec<u32> {
    let tokens = OpenTokens::open(&dir.into(), &source.into()).unwrap();
    let mut ids = vec![0; tokens.len() as usize];
    tokens.read(0, &mut ids).unwrap();
    ids.into_iter().map(|id| id as u32).collect()
}

fn set_validation(spec: &mut JobSpec, share: f64) {
    if let DataSpec::Text { validation, .. } = &mut spec.data {
        *validation = share;
    }
}

#[test]
fn another_store_holds_the_same_tokens() {
    let (dir, spec) = run();
    let data = prepare(dir.path(), &spec).unwrap();
    let memory = FaultyStore::default();
    let other = StoreFolder::new(Arc::new(memory.clone()));
    for _ in 0..2 {
        let again = super::prepare(&other, &spec, None, &Digests::default(), &|_| Ok(())).unwrap();
        assert_eq!(again, data);
    }
    for (key, bytes) in memory.objects() {
        assert_eq!(*bytes, fs::read(dir.path().join(&key)).unwrap(), "{key}");
    }
    let OpenTokens::File(file) = OpenTokens::open(&other, &data.train).unwrap() else { panic!() };
    let (mut here, mut there) = (vec![0; 50], vec![0; 50]);
    file.read(7, &mut there).unwrap();
    OpenTokens::open(&dir.path().into(), &data.train).unwrap().read(7, &mut here).unwrap();
    assert_eq!(here, there);
    // The second time, nothing was made anew.
    let puts = memory.operations().iter().filter(|operation| operation.starts_with("put")).count();
    assert_eq!(puts, memory.objects().len());
}

#[test]
fn text_becomes_tokens_and_a_part_is_kept_for_validation() {
    let (dir, spec) = run();
    let data = prepare(dir.path(), &spec).unwrap();
    let tokenizer = Tokenizer::load(&dir.path().into(), TOKENIZER).unwrap();
    assert_eq!(data.tokenizer_digest.clone().unwrap(), digest_bytes(&tokenizer.to_bytes()));
    assert!(tokenizer.vocab_size() <= spec.model.vocab);

    let train = tokenizer.decode(&tokens(dir.path(), data.train.clone()));
    let (a, b) = train.split_once("<|endoftext|>").unwrap();
    assert_eq!(a, "the boat goes on and on\n".repeat(18));
    assert_eq!(b, "the oars go in and out\r\n".repeat(27));
    let validation = tokens(dir.path(), data.validation.clone().unwrap());
    let text = fs::read_to_string(dir.path().join(VALIDATION_TEXT)).unwrap();
    assert_eq!(text, "the boat goes on and on\n".repeat(2) + &"the oars go in and out\r\n".repeat(3));
    assert_eq!(tokenizer.decode(&validation).replace("<|endoftext|>", ""), text);
    assert_eq!(data.validation_bytes, text.len() as u64);
    // The tokenizer has seen the training parts only.
    assert_eq!(tokenizer.to_bytes(), Tokenizer::train(&[a, b], 300).unwrap().to_bytes());
}

#[test]
fn no_validation_leaves_no_validation_files() {
    let (dir, mut spec) = run();
    prepare(dir.path(), &spec).unwrap();
    set_validation(&mut spec, 0.0);
    let data = prepare(dir.path(), &spec).unwrap();
    assert_eq!((data.validation, data.validation_bytes), (None, 0));
    assert!(!dir.path().join(VALIDATION_TEXT).exists() && !dir.path().join(VALIDATION).exists());
}

#[test]
fn what_is_prepared_is_found_until_something_changes() {
    let (dir, mut spec) = run();
    let at = |name: &str| dir.path().join(name);
    let written = || fs::metadata(at(PREPARED)).unwrap().modified().unwrap();
    let data = prepare(dir.path(), &spec).unwrap();
    let first = written();
    assert_eq!(prepare(dir.path(), &spec).unwrap(), data);
    assert_eq!(written(), first, "it was made again");

    // A damaged file of any kind is made again, with the same contents.
    let [train, validation] = [TRAIN, VALIDATION].map(list_of);
    for name in [TOKENIZER, TRAIN, &train, VALIDATION, &validation, VALIDATION_TEXT, PREPARED] {
        let good = fs::read(at(name)).unwrap();
        fs::write(at(name), &good[1..]).unwrap();
        assert_eq!(prepare(dir.path(), &spec).unwrap(), data, "{name}");
        assert_eq!(fs::read(at(name)).unwrap(), good, "{name}");
        fs::remove_file(at(name)).unwrap();
        assert_eq!(prepare(dir.path(), &spec).unwrap(), data, "{name}");
    }
    // A text that lies elsewhere is the same text; one that has changed is not.
    let DataSpec::Text { files, .. } = &mut spec.data else { unreachable!() };
    fs::rename(at("a.txt"), at("c.txt")).unwrap();
    files[0] = at("c.txt").to_str().unwrap().to_owned();
    let before = written();
    assert_eq!(prepare(dir.path(), &spec).unwrap(), data);
    assert_eq!(written(), before);
    fs::write(at("c.txt"), "another text\n".repeat(40)).unwrap();
    let changed = prepare(dir.path(), &spec).unwrap();
    assert_ne!(changed.train, data.train);
    spec.model.vocab = 258;
    assert_ne!(prepare(dir.path(), &spec).unwrap().train, changed.train);
}

#[test]
fn an_interruption_reads_no_file_that_looks_the_same() {
    let (dir, spec) = run();
    let digests = Digests::default();
    let again = || super::prepare(&dir.path().into(), &spec, None, &digests, &|_| Ok(())).unwrap();
    let data = again();
    // The texts of this test changed a moment ago, those of a user did not.
    let DataSpec::Text { files, .. } = &spec.data else { unreachable!() };
    for path in files.iter().map(Path::new) {
        let name = path.file_name().unwrap().to_str().unwrap();
        digests.wrote(&dir.path().into(), name, &digest_file(path).unwrap());
    }
    let before = digests.read_bytes();
    assert_eq!(again(), data);
    assert_eq!(super::prepare(&dir.path().into(), &spec, Some(&data), &digests, &|_| Ok(())).unwrap(), data);
    assert_eq!(digests.read_bytes(), before);

    // What does not look the same is read, and only that.
    let list = dir.path().join(list_of(TRAIN));
    let bytes = fs::read(&list).unwrap();
    fs::write(&list, &bytes).unwrap();
    assert_eq!(again(), data);
    assert_eq!(digests.read_bytes(), before + bytes.len() as u64);
    let train = dir.path().join(TRAIN);
    let good = fs::read(&train).unwrap();
    fs::write(&train, vec![0; good.len()]).unwrap();
    assert_eq!(again(), data);
    assert_eq!(fs::read(&train).unwrap(), good);
}

#[test]
fn synthetic_tokens_are_uniform_and_of_the_seed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = fixture::spec(DataSpec::Synthetic { tokens: 30_000 });
    let data = prepare(dir.path(), &spec).unwrap();
    assert_eq!((data.tokenizer_digest.clone(), data.validation.clone()), (None, None));
    let ids = tokens(dir.path(), data.train.clone());
    assert_eq!(ids.len(), 30_000);
    let mut seen = [0u32; 300];
    ids.iter().for_each(|&id| seen[id as usize] += 1);
    assert!(seen.iter().all(|n| (50..160).contains(n)), "{seen:?}");
    assert_eq!(prepare(dir.path(), &spec).unwrap(), data);
    spec.train.seed += 1;
    assert_ne!(tokens(dir.path(), prepare(dir.path(), &spec).unwrap().train), ids);
}

#[test]
fn synthetic_tokens_take_no_disk_whatever_their_number() {
    let (dir, text) = run();
    prepare(dir.path(), &text).unwrap();
    let spec = fixture::spec(DataSpec::Synthetic { tokens: 1 << 36 });
    let data = prepare(dir.path(), &spec).unwrap();
    // Of the text's files none is left.
    let names = fs::read_dir(dir.path().join("data")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["prepared.json"]);
    let tokens = OpenTokens::open(&dir.path().into(), &data.train).unwrap();
    tokens.read((1 << 36) - 4096, &mut [0; 4096]).unwrap();
    // A run that goes on finds the same ones, and refuses those of another number.
    let again =
        |spec| super::prepare(&dir.path().into(), spec, Some(&data), &Digests::default(), &|_| Ok(()));
    assert_eq!(again(&spec).unwrap(), data);
    let fewer = fixture::spec(DataSpec::Synthetic { tokens: 1 << 35 });
    assert!(matches!(again(&fewer), Err(PrepareError::Changed { .. })));
}

#[test]
fn a_token_source_is_told_by_its_fields() {
    let file = r#"{"path":"data/t","tokens":3,"digest":"d"}"#;
    let synthetic = r#"{"tokens":3,"seed":18446744073709551615,"vocab":9}"#;
    for json in [file, synthetic] {
        let source: TokenSource = serde_json::from_str(json).unwrap();
        assert_eq!(source.file().is_some(), json == file);
        assert_eq!((source.tokens(), serde_json::to_string(&source).unwrap()), (3, json.to_owned()));
    }
    for json in [r#"{"tokens":3}"#, r#"{"tokens":-3,"seed":1,"vocab":9}"#, r#"{"path":"t","tokens":3}"#] {
        serde_json::from_str::<TokenSource>(json).unwrap_err();
    }
}

#[test]
fn bad_data_is_refused_by_name() {
    let (dir, spec) = run();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let text = |files: Vec<String>, validation| DataSpec::Text { files, validation };
    let rows = [
        (
            text(vec![file("bad", b"good \xff")], 0.0),
            "bad is not valid UTF-8 (line 1, invalid byte at offset 5); convert",
        ),
        (text(vec![file("none", b"")], 0.0), "none is empty"),
        (text(vec![], 0.0), "no file is named"),
        (text(vec!["/nowhere/at/all".into()], 0.0), "data.text: /nowhere/at/all does not exist"),
        (text(vec![file("short", b"abcdefgh")], 0.0), "makes 8 tokens, and one sample takes 17"),
        (text(vec![file("tail", b"abcdefghijklmnopqrst")], 0.06), "validation text makes 1 token, and"),
        (
            DataSpec::Labelled {
                files: vec![file("none.tsv", b"")],
                classes: vec![],
                validation: 0.0,
                weights: false,
            },
            "data.labelled: ",
        ),
        (DataSpec::Synthetic { tokens: 16 }, "makes 16 tokens, and one sample takes 17"),
    ];
    for (data, expected) in rows {
        // Twice: what was found prepared is checked like what was made.
        for _ in 0..2 {
            let error = prepare(dir.path(), &JobSpec { data: data.clone(), ..spec.clone() }).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    let mut small = spec;
    small.model.vocab = 256;
    assert!(prepare(dir.path(), &small).unwrap_err().to_string().contains("at least 257"));
}

#[test]
fn it_ends_in_every_phase_where_it_is_asked_to() {
    for phase in [
        PreparationPhase::Reading,
        PreparationPhase::Words,
        PreparationPhase::Merges,
        PreparationPhase::Encoding,
    ] {
        let (dir, spec) = run();
        let stop = |now: PreparationProgress| if now.phase == phase { Err(Stopped) } else { Ok(()) };
        let error = super::prepare(&dir.path().into(), &spec, None, &Digests::default(), &stop).unwrap_err();
        assert_eq!(error.to_string(), "preparing the data was stopped", "{phase:?}");
        assert!(!dir.path().join(PREPARED).exists(), "{phase:?}");
    }
}

#[test]
fn a_byte_order_mark_changes_no_token() {
    let (dir, spec) = run();
    let data = prepare(dir.path(), &spec).unwrap();
    let path = dir.path().join("a.txt");
    let marked = ["\u{feff}".as_bytes(), &fs::read(&path).unwrap()].concat();
    fs::write(&path, marked).unwrap();
    assert_eq!(prepare(dir.path(), &spec).unwrap(), data);
}

/// A text of lines that start with a class or prompt, some of them blank.
fn lines_of(count: u64, ends: &[&str]) -> String {
    let word = |n: u64| {
        ["boat", "gr\u{f6}\u{df}e", "\u{1F6A3}", "oar's", "12", "  tide", "x\u{20ac}"][n as usize % 7]
    };
    let line = |n: u64| {
        let words: Vec<&str> = (0..coxswain_types::hash::mix(n) % 40)
            .map(|i| word(coxswain_types::hash::mix(n * 64 + i)))
            .collect();
        let end = ends[n as usize % ends.len()];
        format!("{}\ta {}{end}", coxswain_types::hash::mix(n + 7) % 3, words.join(" "))
    };
    (0..count).map(line).collect::<String>() + "2\tthe end"
}

/// What was trained on so far must not change: these digests are of a program that held texts in memory.
#[test]
fn small_texts_give_the_tokens_that_they_always_gave() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let marked = "\u{feff}".to_owned() + &lines_of(2000, &["\n", "\r\n", "\n\n", ""]);
    let files = vec![file("a", marked), file("b", "no blank".repeat(30_000)), file("c", "\n".into())];
    let lines = vec![file("d", lines_of(900, &["\n", "\r\n", "\n \n"])), file("e", lines_of(90, &["\n"]))];
    let rows = [
        (
            DataSpec::Text { files, validation: 0.07 },
            ["377e2c8fef16e514", "109422fe38287a69", "0c7ad8877975f3b1", "391f507756ad088e"],
        ),
        (
            DataSpec::Pairs { files: lines.clone(), validation: 0.2, weights: false },
            ["9cbf257175469c50", "2f9ec975ab27236f", "3c76be7bc000c377", "90032334ee78038d"],
        ),
        (
            DataSpec::Labelled { files: lines, classes: Vec::new(), validation: 0.1, weights: false },
            ["42e22ca2ec3be6ae", "8761c2e12ba18402", "425e5ffe4ce1b6a3", "9ce3abde7f09ec00"],
        ),
    ];
    for (data, expected) in rows {
        let mut spec = fixture::spec(data);
        spec.model.vocab = 700;
        if let DataSpec::Labelled { .. } = spec.data {
            spec.model.head = Head::Pooled { classes: 3 };
        }
        let data = prepare(dir.path(), &spec).unwrap();
        let validation = data.validation.unwrap();
        let text = digest_file(&dir.path().join(VALIDATION_TEXT)).unwrap();
        let found =
            [&data.tokenizer_digest.unwrap(), &data.train.file().unwrap().digest, &validation.digest, &text];
        assert_eq!(found.map(|digest| &digest[..16]), expected);
    }
}
