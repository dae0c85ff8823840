//! Lines that are samples, as rows of numbers, all of one length: the line's weight in thousandths, two
//! numbers that say what follows, the tokens, and zeros after them.

use coxswain_types::JobSpec;
use coxswain_types::framing::Framing;
use coxswain_types::job::{DataSpec, Lengths};
use coxswain_types::model::Head;
use serde::{Deserialize, Serialize};

use crate::tokenizer::{Tokenizer, TokenizerError};

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

    /// How many numbers a row has.
    pub(super) fn row_len(&self) -> usize {
        let tokens = match *self {
            Lines::Classes { sequence, .. } => u64::from(sequence),
            Lines::Pairs { apart: true, sequence, .. } => 2 * u64::from(sequence),
            Lines::Pairs { apart: false, sequence, .. } => u64::from(sequence) + 1,
        };
        usize::try_from(tokens + 3).unwrap_or(usize::MAX)
    }

    /// The parts of a line, which has no newline at its end.
    ///
    /// # Errors
    /// What is wrong with the line, in words.
    pub(super) fn parse<'l>(&self, line: &'l str) -> Result<Sample<'l>, String> {
        let (Lines::Classes { weights, .. } | Lines::Pairs { weights, .. }) = self;
        let (line, weight) = if *weights { weight_of(line)? } else { (line, 1000) };
        let of = match self {
            Lines::Classes { classes, names, .. } => {
                let (class, text) = class_of(line, *classes, names)?;
                SampleText::Class { class, text }
            }
            Lines::Pairs { .. } => {
                let (prompt, answer) = pair_of(line)?;
                SampleText::Pair { prompt, answer }
            }
        };
        Ok(Sample { weight, of })
    }

    /// The row of a line.
    ///
    /// # Errors
    /// [`TokenizerError::Encoding`].
    pub(super) fn row(
        &self,
        sample: &Sample<'_>,
        tokenizer: &Tokenizer,
        framing: &Framing,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut numbers = vec![sample.weight];
        let (Lines::Classes { sequence, .. } | Lines::Pairs { sequence, .. }) = *self;
        match sample.of {
            SampleText::Class { class, text } => {
                let tokens = framing.whole(&tokenizer.encode(text)?, Some(sequence));
                numbers.extend([class, tokens.len() as u32]);
                field(&mut numbers, &tokens, sequence);
            }
            SampleText::Pair { prompt, answer } => {
                let apart = matches!(self, Lines::Pairs { apart: true, .. });
                let (prompt, answer) = (tokenizer.encode(prompt)?, tokenizer.encode(answer)?);
                pair(&mut numbers, &prompt, answer, (apart, sequence), framing);
            }
        }
        Ok(numbers)
    }
}

/// A line that is a sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'l> {
    /// In thousandths.
    weight: u32,
    of: SampleText<'l>,
}

/// What a sample is of.
#[derive(Clone, Copy, Debug)]
enum SampleText<'l> {
    Class { class: u32, text: &'l str },
    Pair { prompt: &'l str, answer: &'l str },
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

    fn tokenizer() -> Tokenizer {
        Tokenizer::train(&["good bad good bad"], 300).unwrap()
    }

    #[test]
    fn lines_become_rows_of_one_length() {
        let tokenizer = tokenizer();
        let lines = Lines::Classes { classes: 3, names: Vec::new(), sequence: 6, weights: false };
        let framing = Framing { begin: vec![0], ..Framing::default() };
        let row_of =
            |line: &str| lines.row(&lines.parse(line)?, &tokenizer, &framing).map_err(|e| e.to_string());
        let numbers = [row_of("2\tgood").unwrap(), row_of("0\ta long text that is cut").unwrap()].concat();
        assert_eq!((lines.row_len(), numbers.len()), (9, 2 * 9));
        let first = framing.whole(&tokenizer.encode("good").unwrap(), None);
        assert_eq!(numbers[..3], [1000, 2, first.len() as u32]);
        assert_eq!(numbers[3..3 + first.len()], first);
        assert_eq!(numbers[9..12], [1000, 0, 6]);
        for (text, told) in [
            ("1 good", "found no tab; must be a class from 0 to 2, a tab, and a text"),
            ("3\tbad", "found the class `3`; must be a class from 0 to 2"),
            ("-1\tbad", "found the class `-1`"),
        ] {
            let error = row_of(text).unwrap_err();
            assert!(error.starts_with(told), "{error}");
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
            let row = lines.row(&lines.parse(&text)?, &tokenizer, framing).map_err(|e| e.to_string())?;
            assert_eq!(row.len(), lines.row_len());
            Ok::<_, String>(row)
        };
        let close = |apart| if apart { vec![9] } else { Vec::new() };
        let rows_of = |apart, text: &str| {
            framed(&Framing { end: 9, close: close(apart), ..Framing::default() }, apart, text)
        };
        let (x, y) = (ids("x")[0], ids("y")[0]);
        assert_eq!(rows_of(false, "xx\ty").unwrap(), [250, 2, 2, x, x, y, 9, 0]);
        // The beginning of a long prompt goes, and the end of a long answer.
        assert_eq!(rows_of(false, "yxxx\ty").unwrap(), [250, 3, 2, x, x, x, y, 9]);
        assert_eq!(rows_of(false, "yx\tyyyyyy").unwrap(), [250, 1, 4, x, y, y, y, y]);
        assert_eq!(rows_of(true, "xx\ty").unwrap(), [250, 3, 2, x, x, 9, 0, y, 9, 0, 0]);
        assert_eq!(rows_of(true, "xxxxx\tyyyyy").unwrap(), [250, 4, 4, x, x, x, 9, y, y, y, y]);
        // A model's own first and last tokens stay whatever is cut.
        let other = Framing { begin: vec![7], close: vec![8], end: 9, ..Framing::default() };
        assert_eq!(framed(&other, false, "yxx\ty").unwrap(), [250, 3, 2, 7, x, x, y, 9]);
        assert_eq!(framed(&other, true, "xxxxx\ty").unwrap(), [250, 4, 3, 7, x, x, 8, 7, y, 9, 0]);
        let error = rows_of(true, "xx\t").unwrap_err();
        assert!(error.contains("found nothing on one side of the tab"), "{error}");
    }
}
