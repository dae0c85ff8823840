//! Labelled lines as rows of numbers, all of one length: the class, the number of tokens, the tokens, and
//! zeros after them.

use std::path::PathBuf;

use super::PrepareError;
use crate::tokenizer::Tokenizer;

/// The rows of files: of each its name, its text, and how many of its lines come before the text. A number
/// follows the last row, as a token follows the last sample of a text.
pub(super) fn rows<'a>(
    tokenizer: &Tokenizer,
    files: impl Iterator<Item = (&'a str, &'a str, usize)>,
    (classes, sequence): (u32, u32),
) -> Result<Vec<u32>, PrepareError> {
    let mut numbers = Vec::new();
    for (file, text, before) in files {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (at, line) in lines {
            let (class, text) = parse(line, classes).map_err(|what| PrepareError::Line {
                path: PathBuf::from(file),
                line: before + at + 1,
                what,
            })?;
            let mut tokens = tokenizer.encode_alone(text)?;
            tokens.truncate(sequence as usize);
            numbers.extend([class, tokens.len() as u32]);
            let end = numbers.len() + sequence as usize;
            numbers.extend(tokens);
            numbers.resize(end, 0);
        }
    }
    numbers.push(0);
    Ok(numbers)
}

/// Where the held-out lines of a text start: `share` of its lines from the end, rounded down.
pub(super) fn held_out_start(text: &str, share: f64) -> usize {
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let lines = ends.len() + usize::from(ends.last().is_some_and(|end| *end < text.len()));
    let kept = lines - (lines as f64 * share) as usize;
    if kept == lines { text.len() } else { kept.checked_sub(1).map_or(0, |last| ends[last]) }
}

/// The class and the text of a line.
fn parse(line: &str, classes: u32) -> Result<(u32, &str), String> {
    let must = format!("must be a class from 0 to {}, a tab, and a text", classes.saturating_sub(1));
    let Some((class, text)) = line.split_once('\t') else {
        return Err(format!("found no tab; {must}"));
    };
    match class.trim().parse::<u32>() {
        Ok(number) if number < classes => Ok((number, text)),
        _ => Err(format!("found the class `{}`; {must}", class.trim())),
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

    #[test]
    fn lines_become_rows_of_one_length() {
        let tokenizer = Tokenizer::train(&["good bad good bad"], 300).unwrap();
        let rows_of = |text: &str| rows(&tokenizer, [("a.tsv", text, 4)].into_iter(), (3, 6));
        let numbers = rows_of("2\tgood\n\n0\ta long text that is cut\n").unwrap();
        assert_eq!(numbers.len(), 2 * 8 + 1);
        let first = tokenizer.encode_alone("good").unwrap();
        assert_eq!(numbers[..2], [2, first.len() as u32]);
        assert_eq!(numbers[2..2 + first.len()], first);
        assert_eq!(numbers[8..10], [0, 6]);
        for (text, told) in [
            ("1 good", "a.tsv, line 5: found no tab; must be a class from 0 to 2, a tab, and a text"),
            ("0\tgood\n3\tbad", "a.tsv, line 6: found the class `3`; must be a class from 0 to 2"),
            ("\n-1\tbad", "a.tsv, line 6: found the class `-1`"),
        ] {
            let error = rows_of(text).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
