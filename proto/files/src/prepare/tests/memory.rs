//! The memory that a preparation takes does not grow with the text. Measured in processes of their own, by
//! the highest mark that the system keeps.

use std::io::{BufWriter, Write};
use std::process::Command;
use std::time::Instant;

use coxswain_console::say;

use super::*;
use coxswain_types::hash::mix;

use crate::hash::draw;

/// Names how much text [`one_preparation`] makes and prepares, in bytes.
const BYTES: &str = "COXSWAIN_TEST_TEXT_BYTES";

/// Names the kind of that text.
const KIND: &str = "COXSWAIN_TEST_TEXT_KIND";

/// Writes a text of words: some are frequent, and new ones never end.
fn write_words(path: &Path, bytes: u64) {
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    let (mut at, mut n, mut line) = (0, 0u64, String::new());
    while at < bytes {
        line.clear();
        for _ in 0..12 {
            // The rank is 2^x, so that each octave of ranks is as frequent as any other: Zipf's law.
            let x = draw(5, n);
            n += 1;
            let rank = 2.0f64.powf((x >> 40) as f64 / (1u64 << 24) as f64 * 26.0) as u64;
            let mut word = mix(rank);
            for _ in 0..2 + (64 - rank.leading_zeros()) / 4 {
                line.push(char::from(b'a' + (word % 23) as u8));
                word /= 23;
            }
            line.push(' ');
        }
        line.push_str(if n % 7 == 0 { "gr\u{f6}\u{df}er.\n" } else { "12.\n" });
        file.write_all(line.as_bytes()).unwrap();
        at += line.len() as u64;
    }
    file.flush().unwrap();
}

/// Writes a text without blanks.
fn write_letters(path: &Path, bytes: u64, letters: &[u8]) {
    let mut file = BufWriter::new(fs::File::create(path).unwrap());
    for n in 0..bytes.div_ceil(8) {
        let draws = draw(9, n).to_le_bytes();
        file.write_all(&draws.map(|byte| letters[usize::from(byte) % letters.len()])).unwrap();
    }
    file.flush().unwrap();
}

/// Peak resident memory of this process, in bytes.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

/// By hand: `COXSWAIN_TEST_TEXT_BYTES=2000000000 cargo test --release -p coxswain-files one_preparation --
/// --nocapture`.
#[test]
fn one_preparation() {
    // A process of its own, which other tests start.
    let Ok(bytes) = std::env::var(BYTES) else { return };
    let bytes = bytes.parse().unwrap();
    let kind = std::env::var(KIND).unwrap_or_default();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    match kind.as_str() {
        "letters" => write_letters(&path, bytes, b"ACGT"),
        "any" => write_letters(&path, bytes, b"abcdefghijklmnopqrstuvwxyz0123456789.,;:!?"),
        "same" => fs::write(&path, "the boat goes on and on\n".repeat(bytes as usize / 24)).unwrap(),
        "few" => write_letters(&path, bytes, b"abcdefghijklmnopqrstuvwxyz  "),
        _ => write_words(&path, bytes),
    }
    let file = path.to_str().unwrap().to_owned();
    let mut spec = fixture::spec(DataSpec::Text { files: vec![file], validation: 0.01 });
    spec.model.vocab = 8000;
    let start = Instant::now();
    let data =
        super::super::prepare(&dir.path().into(), &spec, None, &Digests::default(), &|_| Ok(())).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    say(&format!("peak {} bytes, {seconds:.1} s, {:?}", peak_bytes(), data.train));
}

/// The peak memory of one preparation, in bytes.
fn peak_of(kind: &str, bytes: u64) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "prepare::tests::memory::one_preparation", "--nocapture"]);
    let output = command.env(BYTES, bytes.to_string()).env(KIND, kind).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let peak = said.split_once("peak ").and_then(|(_, rest)| rest.split_once(' '));
    peak.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap()
}

/// A longer text takes no more memory, once it is longer than what is read ahead. A preparation that holds the text
/// once takes six MiB more.
#[test]
fn memory_does_not_grow_with_the_text() {
    let [small, large] = [4, 10].map(|mebibytes| peak_of("same", mebibytes << 20));
    let more = large.saturating_sub(small);
    assert!(more < 5 << 20, "{large} bytes where {small} were enough for less than half of the text");
}
