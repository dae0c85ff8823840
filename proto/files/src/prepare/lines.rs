//! Lines that are samples, as rows of numbers, all of one length: the line's weight in thousandths, two
//! numbers that say what follows, the tokens, and zeros after them.

use std::path::PathBuf;

use coxswain_types::JobSpec;
use coxswain_types::framing::Framing;
use coxswain_types::job::{DataSpec, Lengths};
use coxswain_types::model::Head;
use serde::{Deserialize, Serialize};

use super::PrepareError;
use crate::tokenizer::Tokenizer;

/// What lines are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Lines {
    /// A class and a text. The row has the class, the number of tokens, and at most so many.
    Classes { classes: u32, sequence: u32, weights: bool },
    /// A prompt and an answer. The row has both their lengths; then one after the other, of at most
    /// `sequence + 1` tokens, or `apart` in fields of so many each.
    Pairs { apart: bool, sequence: u32, weights: bool },
}

impl Lines {
    /// What the lines of a job are; `None` where its text is one.
    pub(super) fn of(spec: &JobSpec) -> Option<Lines> {
        let sequence = spec.train.sequence;
        match (&spec.data, spec.model.head) {
            (&DataSpec::Labelled { weights, .. }, Head::Pooled { classes }) => {
                Some(Lines::Classes { classes, sequence, weights })
            }
            (&DataSpec::Pairs { weights, .. }, _) => {
                let apart = Lengths::of(&spec.model, &spec.train).source > 0;
                Some(Lines::Pairs { apart, sequence, weights })
            }
            _ => None,
        }
    }

    /// The rows of files: of each its name, its text, and how many of its lines come before the text. A
    /// number follows the last row, as a token follows the last sample of a text.
    pub(super) fn rows<'a>(
        self,
        tokenizer: &Tokenizer,
        files: impl Iterator<Item = (&'a str, &'a str, usize)>,
        framing: &Framing,
    ) -> Result<Vec<u32>, PrepareError> {
        let mut numbers = Vec::new();
        for (file, text, before) in files {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            for (at, line) in lines {
                let told =
                    |what| PrepareError::Line { path: PathBuf::from(file), line: before + at + 1, what };
                let (Lines::Classes { weights, .. } | Lines::Pairs { weights, .. }) = self;
                let (line, weight) = if weights { weight_of(line).map_err(told)? } else { (line, 1000) };
                numbers.push(weight);
                match self {
                    Lines::Classes { classes, sequence, .. } => {
                        let (class, text) = class_of(line, classes).map_err(told)?;
                        let tokens = framing.whole(&tokenizer.encode(text)?, Some(sequence));
                        numbers.extend([class, tokens.len() as u32]);
                        field(&mut numbers, &tokens, sequence);
                    }
                    Lines::Pairs { apart, sequence, .. } => {
                        let (prompt, answer) = pair_of(line).map_err(told)?;
                        let (prompt, answer) = (tokenizer.encode(prompt)?, tokenizer.encode(answer)?);
                        pair(&mut numbers, &prompt, answer, (apart, sequence), framing);
                    }
                }
            }
        }
        numbers.push(0);
        Ok(numbers)
    }
}

/// Adds tokens, and zeros up to `len`.
fn field(numbers: &mut Vec<u32>, tokens: &[u32], len: u32) {
    let end = numbers.len() + len as usize;
    numbers.extend(tokens);
    numbers.resize(end, 0);
}

/// Adds a row. Of an answer the end is cut, of a prompt that goes before it in one sample the beginning; what
/// stands before the prompt stays.
fn pair(
    numbers: &mut Vec<u32>,
    prompt: &[u32],
    mut answer: Vec<u32>,
    (apart, sequence): (bool, u32),
    framing: &Framing,
) {
    answer.push(framing.end);
    if apart {
        // Each is a text by itself.
        answer = [&framing.begin[..], &answer].concat();
        answer.truncate(sequence as usize);
        let prompt = framing.whole(prompt, Some(sequence));
        numbers.extend([prompt.len() as u32, answer.len() as u32]);
        field(numbers, &prompt, sequence);
        field(numbers, &answer, sequence);
    } else {
        answer.truncate(sequence as usize);
        let room = sequence as usize + 1 - answer.len();
        let begin = &framing.begin[..framing.begin.len().min(room)];
        let left = room - begin.len();
        let kept = &prompt[prompt.len().saturating_sub(left)..];
        numbers.extend([(begin.len() + kept.len()) as u32, answer.len() as u32]);
        field(numbers, &[begin, kept, &answer].concat(), sequence + 1);
    }
}

/// Where the held-out lines of a text start: `share` of its lines from the end, rounded down.
pub(super) fn held_out_start(text: &str, share: f64) -> usize {
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let lines = ends.len() + usize::from(ends.last().is_some_and(|end| *end < text.len()));
    let kept = lines - (lines as f64 * share) as usize;
    if kept == lines { text.len() } else { kept.checked_sub(1).map_or(0, |last| ends[last]) }
}

/// A line without its weight, and that in thousandths.
fn weight_of(line: &str) -> Result<(&str, u32), String> {
    let must =
        "with data.weights a line must end with a tab and a weight from 0.001 to 1000, of three decimals";
    let Some((line, weight)) = line.rsplit_once('\t') else { return Err(format!("found no tab; {must}")) };
    let thousandths = weight.trim().parse::<f64>().map(|weight| weight * 1e3);
    match thousandths {
        Ok(x) if (1.0..=1e6).contains(&x.round()) && (x - x.round()).abs() < 1e-6 => {
            Ok((line, x.round() as u32))
        }
        _ => Err(format!("found the weight `{}`; {must}", weight.trim())),
    }
}

/// The class and the text of a line.
fn class_of(line: &str, classes: u32) -> Result<(u32, &str), String> {
    let must = format!("must be a class from 0 to {}, a tab, and a text", classes.saturating_sub(1));
    let Some((class, text)) = line.split_once('\t') else {
        return Err(format!("found no tab; {must}"));
    };
    match class.trim().parse::<u32>() {
        Ok(number) if number < classes => Ok((number, text)),
        _ => Err(format!("found the class `{}`; {must}", class.trim())),
    }
}

/// The prompt and the answer of a line.
fn pair_of(line: &str) -> Result<(&str, &str), String> {
    let must = "must be a prompt, a tab, and its answer";
    match line.split_once('\t') {
        None => Err(format!("found no tab; {must}")),
        Some(("", _) | (_, "")) => Err(format!("found nothing on one side of the tab; {must}")),
        Some(pair) => Ok(pair),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_held_out() {
        for (text, share, expected) in [
            ("0\ta\n1\tb\n", 0.49, "0\ta\n1\tb\n"),
            ("0\ta\n1\tb", 0.49, "0\ta\n1\tb"),
            ("0\ta\n1\tb\n0\tc\n1\td", 0.25, "0\ta\n1\tb\n0\tc\n"),
            ("0\ta\n1\tb\n0\tc\n", 0.4, "0\ta\n1\tb\n"),
            ("0\ta", 0.4, "0\ta"),
            ("", 0.4, ""),
        ] {
            assert_eq!(&text[..held_out_start(text, share)], expected, "{text:?} {share}");
        }
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(&["good bad good bad"], 300).unwrap()
    }

    #[test]
    fn lines_become_rows_of_one_length() {
        let tokenizer = tokenizer();
        let lines = Lines::Classes { classes: 3, sequence: 6, weights: false };
        let framing = Framing { begin: vec![0], ..Framing::default() };
        let rows_of = |text: &str| lines.rows(&tokenizer, [("a.tsv", text, 4)].into_iter(), &framing);
        let numbers = rows_of("2\tgood\n\n0\ta long text that is cut\n").unwrap();
        assert_eq!(numbers.len(), 2 * 9 + 1);
        let first = framing.whole(&tokenizer.encode("good").unwrap(), None);
        assert_eq!(numbers[..3], [1000, 2, first.len() as u32]);
        assert_eq!(numbers[3..3 + first.len()], first);
        assert_eq!(numbers[9..12], [1000, 0, 6]);
        for (text, told) in [
            ("1 good", "a.tsv, line 5: found no tab; must be a class from 0 to 2, a tab, and a text"),
            ("0\tgood\n3\tbad", "a.tsv, line 6: found the class `3`; must be a class from 0 to 2"),
            ("\n-1\tbad", "a.tsv, line 6: found the class `-1`"),
        ] {
            let error = rows_of(text).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn a_weight_ends_a_line() {
        assert_eq!(weight_of("1\ta\tb\t2.5 "), Ok(("1\ta\tb", 2500)));
        assert_eq!(weight_of("a\t0.001"), Ok(("a", 1)));
        for (line, told) in [
            ("a", "found no tab; with data.weights"),
            ("a\tb", "found the weight `b`"),
            ("a\t0", "found the weight `0`"),
            ("a\t0.0004", "found the weight `0.0004`"),
            ("a\t1.00001", "found the weight `1.00001`"),
            ("a\t1001", "found the weight `1001`"),
            ("a\tNaN", "found the weight `NaN`"),
            ("a\t-1", "found the weight `-1`"),
        ] {
            let error = weight_of(line).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn pairs_stand_one_after_the_other_or_apart() {
        let tokenizer = tokenizer();
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        let framed = |framing: &Framing, apart, text: &str| {
            let lines = Lines::Pairs { apart, sequence: 4, weights: true };
            let text = text.to_owned() + "\t0.25";
            lines.rows(&tokenizer, [("a.tsv", text.as_str(), 0)].into_iter(), framing)
        };
        let close = |apart| if apart { vec![9] } else { Vec::new() };
        let rows_of = |apart, text: &str| {
            framed(&Framing { end: 9, close: close(apart), ..Framing::default() }, apart, text)
        };
        let (x, y) = (ids("x")[0], ids("y")[0]);
        assert_eq!(rows_of(false, "xx\ty").unwrap(), [250, 2, 2, x, x, y, 9, 0, 0]);
        // The beginning of a long prompt goes, and the end of a long answer.
        assert_eq!(rows_of(false, "yxxx\ty").unwrap(), [250, 3, 2, x, x, x, y, 9, 0]);
        assert_eq!(rows_of(false, "yx\tyyyyyy").unwrap(), [250, 1, 4, x, y, y, y, y, 0]);
        assert_eq!(rows_of(true, "xx\ty").unwrap(), [250, 3, 2, x, x, 9, 0, y, 9, 0, 0, 0]);
        assert_eq!(rows_of(true, "xxxxx\tyyyyy").unwrap(), [250, 4, 4, x, x, x, 9, y, y, y, y, 0]);
        // A model's own first and last tokens stay whatever is cut.
        let other = Framing { begin: vec![7], close: vec![8], end: 9, ..Framing::default() };
        assert_eq!(framed(&other, false, "yxx\ty").unwrap(), [250, 3, 2, 7, x, x, y, 9, 0]);
        assert_eq!(framed(&other, true, "xxxxx\ty").unwrap(), [250, 4, 3, 7, x, x, 8, 7, y, 9, 0, 0]);
        let error = rows_of(true, "xx\t").unwrap_err().to_string();
        assert!(error.contains("line 1: found nothing on one side of the tab"), "{error}");
    }
}
