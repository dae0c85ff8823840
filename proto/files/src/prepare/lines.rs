//! Lines that are samples, as rows of numbers, all of one length: the line's weight in thousandths, two
//! numbers that say what follows, the tokens, and zeros after them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use coxswain_types::JobSpec;
use coxswain_types::framing::Framing;
use coxswain_types::job::{DataSpec, Lengths};
use coxswain_types::model::Head;
use serde::{Deserialize, Serialize};

use super::{Encoding, PrepareError};
use crate::tokenizer::Tokenizer;

/// What lines are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Lines {
    /// A class (its number or name) and a text. The row has the class, the number of tokens, and at most `sequence`
    /// tokens.
    Classes {
        classes: u32,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        names: Vec<String>,
        sequence: u32,
        weights: bool,
    },
    /// A prompt and an answer. The row has both their lengths; then one after the other, of at most
    /// `sequence + 1` tokens, or `apart` in fields of so many each.
    Pairs { apart: bool, sequence: u32, weights: bool },
}

impl Lines {
    /// What the lines of a job are; `None` where its text is one.
    pub(super) fn of(spec: &JobSpec) -> Option<Lines> {
        let sequence = spec.train.sequence;
        match (&spec.data, spec.model.head) {
            (&DataSpec::Labelled { weights, classes: ref names, .. }, Head::Pooled { classes }) => {
                Some(Lines::Classes { classes, names: names.clone(), sequence, weights })
            }
            (&DataSpec::Pairs { weights, .. }, _) => {
                let apart = Lengths::of(&spec.model, &spec.train).source > 0;
                Some(Lines::Pairs { apart, sequence, weights })
            }
            _ => None,
        }
    }

    /// Cuts a text into the lines to train on and those to hold out: `share` of all, rounded down. For pairs
    /// these are the last lines; for classes the last lines of each class, so that a file that is sorted by class keeps
    /// some of each on both sides.
    pub(super) fn split<'a>(&self, text: &'a str, share: f64) -> (Part<'a>, Part<'a>) {
        match self {
            Lines::Pairs { .. } => {
                let at = held_out_start(text, share);
                let before = text[..at].matches('\n').count();
                (Part::whole(&text[..at], 0), Part::whole(&text[at..], before))
            }
            Lines::Classes { .. } => by_class(text, share),
        }
    }

    /// The rows of parts of files, with the name of each file. A number follows the last row, as a token follows the
    /// last sample of a text.
    pub(super) fn rows<'a>(
        &self,
        tokenizer: &Tokenizer,
        parts: impl Iterator<Item = (&'a str, &'a Part<'a>)>,
        framing: &Framing,
        encoding: Encoding<'_>,
    ) -> Result<Vec<u32>, PrepareError> {
        let (mut numbers, mut done) = (Vec::new(), 0);
        for (file, part) in parts {
            let lines = part.text.lines().zip(&part.numbers).filter(|(line, _)| !line.trim().is_empty());
            for (line, &number) in lines {
                encoding(done)?;
                done += line.len() as u64 + 1;
                let told = |what| PrepareError::Line { path: PathBuf::from(file), line: number, what };
                let (Lines::Classes { weights, .. } | Lines::Pairs { weights, .. }) = self;
                let (line, weight) = if *weights { weight_of(line).map_err(told)? } else { (line, 1000) };
                numbers.push(weight);
                match *self {
                    Lines::Classes { classes, ref names, sequence, .. } => {
                        let (class, text) = class_of(line, classes, names).map_err(told)?;
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

/// Adds a row. Too long an answer loses its end, and a prompt in the same sample its beginning; `begin` stays.
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

/// A part of a file, and the number of each of its lines in the file, from 1 on.
#[derive(Debug, PartialEq)]
pub(super) struct Part<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) numbers: Vec<usize>,
}

impl<'a> Part<'a> {
    /// A part of a text that is no list of lines.
    pub(super) fn of_text(text: &'a str) -> Part<'a> {
        Part { text: Cow::Borrowed(text), numbers: Vec::new() }
    }

    /// A part that `before` lines come before.
    pub(super) fn whole(text: &'a str, before: usize) -> Part<'a> {
        Part { text: Cow::Borrowed(text), numbers: (before + 1..=before + text.lines().count()).collect() }
    }
}

/// The lines to train on, and the last `share` of the lines of each class.
fn by_class<'a>(text: &'a str, share: f64) -> (Part<'a>, Part<'a>) {
    let class = |line: &'a str| line.split_once('\t').map_or("", |(class, _)| class).trim();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let full = || text.split_inclusive('\n').zip(1..).filter(|(line, _)| !line.trim().is_empty());
    full().for_each(|(line, _)| *counts.entry(class(line)).or_default() += 1);
    // The share of all lines, rounded down once and not for each class.
    let (mut seen, mut held_out) = (0, 0);
    let mut kept: BTreeMap<&str, usize> = counts
        .into_iter()
        .map(|(class, count)| {
            seen += count;
            let now = ((seen as f64 * share) as usize).saturating_sub(held_out).min(count);
            held_out += now;
            (class, count - now)
        })
        .collect();
    let (mut train, mut held_out) = (Part::of_text(""), Part::of_text(""));
    for (line, number) in full() {
        let left = kept.entry(class(line)).or_default();
        let part = if *left > 0 { &mut train } else { &mut held_out };
        *left = left.saturating_sub(1);
        part.numbers.push(number);
        part.text.to_mut().push_str(line);
        if !line.ends_with('\n') {
            part.text.to_mut().push('\n');
        }
    }
    (train, held_out)
}

/// Where the held-out lines of a text start: `share` of its lines from the end, rounded down.
fn held_out_start(text: &str, share: f64) -> usize {
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
fn class_of<'a>(line: &'a str, classes: u32, names: &[String]) -> Result<(u32, &'a str), String> {
    // For each line, so words are made for a wrong one only.
    let must = || match names {
        [] => format!("must be a class from 0 to {}, a tab, and a text", classes.saturating_sub(1)),
        names => format!("must be a class of data.classes ({}), a tab, and a text", names.join(", ")),
    };
    let Some((class, text)) = line.split_once('\t') else {
        return Err(format!("found no tab; {}", must()));
    };
    let class = class.trim();
    let number = match names {
        [] => class.parse::<u32>().ok().filter(|number| *number < classes),
        names => names.iter().zip(0..).find(|(name, _)| *name == class).map(|(_, number)| number),
    };
    match number {
        Some(number) => Ok((number, text)),
        None if names.is_empty() && class.parse::<f64>().is_err() => {
            Err(format!("found the class `{class}`; {}; name the classes with data.classes", must()))
        }
        None => Err(format!("found the class `{class}`; {}", must())),
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
        let lines = Lines::Classes { classes: 3, names: Vec::new(), sequence: 6, weights: false };
        let framing = Framing { begin: vec![0], ..Framing::default() };
        let rows_of = |text: &str| {
            let part = Part::whole(text, 4);
            lines.rows(&tokenizer, [("a.tsv", &part)].into_iter(), &framing, &|_| Ok(()))
        };
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
    fn classes_have_names() {
        let names = ["neg", "pos"].map(str::to_owned);
        assert_eq!(class_of("pos\ta film", 2, &names), Ok((1, "a film")));
        for (line, names, told) in [
            (
                "1\ta film",
                &names[..],
                "found the class `1`; must be a class of data.classes (neg, pos), a tab",
            ),
            (
                "pos\ta film",
                &[],
                "found the class `pos`; must be a class from 0 to 1, a tab, and a text; name the",
            ),
        ] {
            let error = class_of(line, 2, names).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
    }

    #[test]
    fn every_class_is_held_out_where_a_file_is_sorted_by_class() {
        let lines = Lines::Classes { classes: 2, names: Vec::new(), sequence: 6, weights: false };
        let sorted: String = (0..20).map(|i| format!("{}\t{i}\n", i / 10)).collect();
        let (train, held_out) = lines.split(&sorted, 0.2);
        assert_eq!(held_out.text, "0\t8\n0\t9\n1\t18\n1\t19\n");
        assert_eq!(held_out.numbers, [9, 10, 19, 20]);
        assert_eq!(train.numbers, [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18]);
        // The share of all lines also where each class has too few for one; blank lines are none.
        let many: String = (0..10).map(|i| format!("{i}\ta\n\n{i}\tb\n")).collect();
        let (train, held_out) = lines.split(&many, 0.25);
        assert_eq!((train.numbers.len(), held_out.numbers.len()), (15, 5));
        let (train, held_out) = lines.split("0\ta\n1\tb", 0.0);
        assert_eq!((train.text.as_ref(), held_out.text.as_ref()), ("0\ta\n1\tb\n", ""));
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
            let part = Part::whole(&text, 0);
            lines.rows(&tokenizer, [("a.tsv", &part)].into_iter(), framing, &|_| Ok(()))
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
