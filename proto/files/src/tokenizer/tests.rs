use proptest::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::pieces::piece_len;
use super::words::MAX_WORD_BYTES;
use super::*;

/// Text with the statistics of words: few frequent ones, many rare ones.
fn prose(words: u64, seed: u64) -> String {
    let mut text = String::new();
    for i in 0..words {
        let rank = (2.0f64.powf(crate::hash::draw_below(seed, i, 1000) as f64 / 100.0)) as u64;
        let mut word = coxswain_types::hash::mix(rank);
        for _ in 0..2 + rank % 6 {
            text.push(char::from(b'a' + (word % 17) as u8));
            word /= 17;
        }
        text.push_str(match i % 13 {
            5 => ", ",
            12 => ".\n\n",
            _ => " ",
        });
    }
    text
}

#[test]
fn the_same_text_gives_the_same_tokenizer() {
    let (a, b) = (prose(30_000, 1), prose(10_000, 2));
    let train = || Tokenizer::train(&[&a, &b], 600).unwrap();
    let first = train();
    assert_eq!(first.vocab_size(), 600);
    for _ in 0..4 {
        assert!(first.to_bytes() == train().to_bytes(), "training is not deterministic");
    }
    assert!(first.to_bytes() != Tokenizer::train(&[&b], 600).unwrap().to_bytes());
    assert!(first.encode(&a).unwrap().len() * 2 < a.len(), "{} tokens", first.encode(&a).unwrap().len());
}

#[test]
fn every_text_decodes_to_itself() {
    let tokenizer = Tokenizer::train(&[&prose(2_000, 1)], 300).unwrap();
    for text in ["", " ", "one two\r\n\tthree", "größe \u{1F6A3} \u{0}", "a<|endoftext|>b", "  x  y  "] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(!ids.contains(&END_OF_TEXT_ID), "{text}");
        assert_eq!(
            tokenizer.decode(&tokenizer.own.as_ref().unwrap().encode_bytes(text).collect::<Vec<_>>()),
            text
        );
    }
    assert_eq!(tokenizer.decode(&[END_OF_TEXT_ID]), END_OF_TEXT);
    let rower = tokenizer.encode("\u{1F6A3}").unwrap();
    assert_eq!(tokenizer.decode(&rower[..1]), "\u{FFFD}");
    assert_eq!(tokenizer.decode(&[300, u32::MAX]), "");
}

#[test]
fn a_tokenizer_survives_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let folder = &StoreFolder::from(dir.path());
    let text = prose(5_000, 3);
    let trained = Tokenizer::train(&[&text], 400).unwrap();
    trained.save(folder, "tokenizer.json").unwrap();
    let loaded = Tokenizer::load(folder, "tokenizer.json").unwrap();
    assert_eq!(loaded.to_bytes(), trained.to_bytes());
    assert_eq!(loaded.encode(&text).unwrap(), trained.encode(&text).unwrap());
    assert_eq!(std::fs::read(dir.path().join("tokenizer.json")).unwrap(), trained.to_bytes());
}

#[test]
fn sizes_at_the_border() {
    assert_eq!(
        Tokenizer::train(&["x"], 256).unwrap_err().to_string(),
        "a vocabulary of 256 tokens is too small: a byte-level tokenizer needs at least 257 \
         (256 bytes and <|endoftext|>); raise model.vocab"
    );
    assert_eq!(Tokenizer::train(&["hello hello"], 257).unwrap().vocab_size(), 257);
    assert!(Tokenizer::train(&["hello hello"], 1000).unwrap().vocab_size() < 270);
    assert_eq!(Tokenizer::train(&[], 1000).unwrap().vocab_size(), 257);
}

#[test]
fn foreign_and_damaged_files_are_refused() {
    let good = String::from_utf8(Tokenizer::train(&["hello hello"], 260).unwrap().to_bytes()).unwrap();
    let rows = [
        ("", ""),
        (&good[..good.len() / 2], ""),
        (&good.replace("\"add_prefix_space\": false", "\"add_prefix_space\": true"), "another way"),
        (&good.replace("\"!\": 1,", ""), "a token is missing"),
    ];
    for (text, expected) in rows {
        let error = Tokenizer::from_bytes(text.as_bytes()).unwrap_err().to_string();
        assert!(
            error.starts_with("this is not a byte-level tokenizer") && error.contains(expected),
            "{error}"
        );
    }
    assert!(matches!(
        Tokenizer::load(&std::path::Path::new("nowhere").into(), "t"),
        Err(TokenizerError::Io { .. })
    ));
    // What others have made is taken where a model brought it, and treats text in its own way.
    let foreign = good.replace("\"add_prefix_space\": false", "\"add_prefix_space\": true");
    let foreign = Tokenizer::from_elsewhere(foreign.as_bytes()).unwrap();
    assert_eq!(foreign.decode(&foreign.encode("hello").unwrap()), " hello");
    let error = Tokenizer::from_elsewhere(b"{}").unwrap_err().to_string();
    assert!(error.starts_with("this is not a tokenizer.json that can be read"), "{error}");
}

#[test]
fn letters_for_bytes_are_those_of_the_library() {
    let ours: std::collections::HashSet<char> = byte_letters().into_iter().collect();
    assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
    assert_eq!(byte_letters()[usize::from(b' ')], '\u{120}');
}

/// Texts of one word, of which the library's own trainer takes minutes for a tenth.
#[test]
fn a_text_without_blanks_takes_seconds() {
    let bytes = 1 << 20;
    let draw = |i: u64, of: u32| crate::hash::draw_below(7, i, of);
    let texts = [
        "a".repeat(bytes),
        (0..bytes as u64).map(|i| char::from(b"ACGT"[draw(i, 4) as usize])).collect(),
        // Letters with the statistics of words, without a blank between them.
        (0..bytes as u64 / 3)
            .filter_map(|i| char::from_u32(0x4e00 + 2.0f64.powf(f64::from(draw(i, 1100)) / 100.0) as u32))
            .collect(),
        " ".repeat(bytes),
    ];
    for text in texts {
        let (start, sample) = (std::time::Instant::now(), text.chars().next());
        let tokenizer = Tokenizer::train(&[&text], 2000).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        // One to three seconds on a machine of its own.
        assert!(seconds < 60.0, "{sample:?} took {seconds:.1} s");
        assert_eq!(tokenizer.decode(&ids), text, "{sample:?}");
        assert!(ids.len() * 2 < bytes, "{sample:?}: {} tokens", ids.len());
        let longest = tokenizer.own.unwrap().spelling.iter().map(Vec::len).max();
        assert!(longest <= Some(MAX_WORD_BYTES), "{sample:?}: {longest:?}");
    }
}

#[test]
fn the_file_is_the_one_of_the_library() {
    let text = prose(20_000, 5) + "gr\u{f6}\u{df}e 12 it's\t\u{1F6A3}  x\n\n";
    let trainer = BpeTrainer::builder()
        .vocab_size(700)
        .min_frequency(MIN_FREQUENCY)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(byte_letters().into_iter().collect())
        .build();
    let mut library = tokenizers::Tokenizer::new(BPE::default());
    library.with_pre_tokenizer(Some(byte_level()));
    library.with_decoder(Some(byte_level()));
    library.train(&mut TrainerWrapper::BpeTrainer(trainer), pieces(&text)).unwrap();
    let own = Tokenizer::train(&[&text], 700).unwrap();
    assert!(own.to_bytes() == library.to_string(true).unwrap().as_bytes());
}

#[test]
fn training_ends_where_it_is_asked_to() {
    let text = prose(50_000, 1);
    for wanted in [PreparationPhase::Words, PreparationPhase::Merges] {
        let stop = |now: PreparationProgress| if now.phase == wanted { Err(Stopped) } else { Ok(()) };
        let error = Tokenizer::train_watched(&[&text], 600, &stop).unwrap_err();
        assert!(matches!(error, TokenizerError::Stopped(Stopped)), "{error}");
    }
}

proptest! {
    #[test]
    fn pieces_encode_to_the_tokens_of_the_whole(text in "([a-c']|[ \n\t\u{a0}]|1|é|\\.|<\\|endoftext\\|>){0,60}", least in 1usize..20) {
        let tokenizer = shared();
        let (mut ids, mut rest) = (Vec::new(), text.as_str());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece_len(rest, least, usize::MAX));
            prop_assert!(!piece.is_empty());
            ids.extend(tokenizer.encode(piece).unwrap());
            rest = after;
        }
        prop_assert_eq!(&ids, &tokenizer.encode(&text).unwrap());
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }
}

fn shared() -> &'static Tokenizer {
    static SHARED: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
    SHARED.get_or_init(|| {
        Tokenizer::train(&["aa bb  ab\n\n ba's  ab  'll b c\n\nab aa 11 é.. ".repeat(4).as_str()], 300)
            .unwrap()
    })
}
