//! Which parts of a text are trained on and which are kept for validation, decided from positions and counts, and found
//! again while the text is read chunk by chunk.

use std::collections::BTreeMap;
use std::mem::take;
use std::path::{Path, PathBuf};

use super::PrepareError;
use super::lines::Lines;

/// The longest line that is a sample. It is in memory while it is tokenized, at about 50 bytes for each of
/// its bytes.
const MAX_LINE_BYTES: usize = 4 << 20;

/// The memory for the classes of all files, as they are spelled: `1` and `01` are one class and counted
/// apart.
const MAX_CLASSES_BYTES: usize = 32 << 20;

/// What a class takes beside its spelling.
const CLASS_BYTES: usize = 64;

/// A side of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Train,
    Validation,
}

/// How a text is split.
#[derive(Debug, PartialEq)]
pub(super) enum TextSplit {
    /// The bytes from here on are kept for validation.
    Bytes(u64),
    /// So many lines are to train on; `None` means all.
    Lines(Option<u64>),
    /// Of each class, as it is spelled, so many lines are to train on.
    Classes(BTreeMap<String, u64>),
}

/// Some of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fragment<'t> {
    pub(super) side: Side,
    /// A whole line with its newline, where lines are samples.
    pub(super) text: &'t str,
    /// The number of that line in its file, from 1 on.
    pub(super) line: usize,
}

/// Receives the parts of a text, one by one.
type Each<'e> = &'e mut dyn FnMut(Fragment<'_>) -> Result<(), PrepareError>;

/// Receives lines and their numbers.
type EachLine<'e> = &'e mut dyn FnMut(&str, usize) -> Result<(), PrepareError>;

/// Makes lines of a text that comes chunk by chunk.
#[derive(Debug)]
pub(super) struct LineReader<'a> {
    path: &'a Path,
    /// The beginning of a line.
    begun: String,
    /// Lines before that.
    lines: usize,
}

impl<'a> LineReader<'a> {
    fn new(path: &'a Path) -> LineReader<'a> {
        LineReader { path, begun: String::new(), lines: 0 }
    }

    /// `each` gets each line that has its end, and its number.
    fn push(&mut self, chunk: &str, each: EachLine<'_>) -> Result<(), PrepareError> {
        for part in chunk.split_inclusive('\n') {
            if self.begun.len() + part.len() > MAX_LINE_BYTES {
                let what = format!(
                    "is longer than {MAX_LINE_BYTES} bytes; a sample must be a line of at most these"
                );
                return Err(PrepareError::Line { path: self.path.to_owned(), line: self.lines + 1, what });
            }
            match (part.ends_with('\n'), self.begun.is_empty()) {
                (true, true) => {
                    self.lines += 1;
                    each(part, self.lines)?;
                }
                (true, false) => {
                    self.begun.push_str(part);
                    self.lines += 1;
                    each(&self.begun, self.lines)?;
                    self.begun.clear();
                }
                (false, _) => self.begun.push_str(part),
            }
        }
        Ok(())
    }

    /// What follows the last newline, and its number; `None` where nothing does.
    fn last(&mut self) -> Option<(String, usize)> {
        let last = take(&mut self.begun);
        (!last.is_empty()).then_some((last, self.lines + 1))
    }
}

/// A line without its end.
pub(super) fn without_end(line: &str) -> &str {
    line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line))
}

/// The class of a line, as it is spelled.
fn class_of(line: &str) -> &str {
    line.split_once('\t').map_or("", |(class, _)| class).trim()
}

/// Memory for the classes of all files of a job.
#[derive(Debug)]
pub(super) struct Room(usize);

impl Room {
    pub(super) fn new() -> Room {
        Room(MAX_CLASSES_BYTES)
    }
}

/// Counts the lines of a text that are samples, and refuses what is not a sample.
#[derive(Debug)]
pub(super) struct LineCounter<'a> {
    lines: &'a Lines,
    reader: LineReader<'a>,
    classes: BTreeMap<String, u64>,
}

impl<'a> LineCounter<'a> {
    pub(super) fn new(lines: &'a Lines, path: &'a Path) -> LineCounter<'a> {
        LineCounter { lines, reader: LineReader::new(path), classes: BTreeMap::new() }
    }

    /// Adds the next chunk of the text.
    ///
    /// # Errors
    /// [`PrepareError::Line`].
    pub(super) fn push(&mut self, chunk: &str, room: &mut Room) -> Result<(), PrepareError> {
        let LineCounter { lines, reader, classes } = self;
        let path = reader.path;
        reader.push(chunk, &mut |line, number| count(lines, classes, room, (line, number), path))
    }

    /// How the text is split: `share` of its lines, rounded down, are kept for validation. For pairs these are the last
    /// lines; for classes the last lines of each class, so that a file that is sorted by class keeps some of
    /// each on both sides.
    ///
    /// # Errors
    /// [`PrepareError::Line`].
    pub(super) fn finish(mut self, share: f64, room: &mut Room) -> Result<TextSplit, PrepareError> {
        let (path, newlines) = (self.reader.path, self.reader.lines);
        let last = self.reader.last();
        if let Some((line, number)) = &last {
            count(self.lines, &mut self.classes, room, (line, *number), path)?;
        }
        Ok(match self.lines {
            Lines::Classes { .. } => TextSplit::Classes(kept(self.classes, share)),
            Lines::Pairs { .. } => TextSplit::Lines(kept_lines(newlines as u64, last.is_some(), share)),
        })
    }
}

/// Checks a line, and counts it to its class.
fn count(
    lines: &Lines,
    classes: &mut BTreeMap<String, u64>,
    room: &mut Room,
    (line, number): (&str, usize),
    path: &Path,
) -> Result<(), PrepareError> {
    if line.trim().is_empty() {
        return Ok(());
    }
    let wrong = |what| PrepareError::Line { path: PathBuf::from(path), line: number, what };
    lines.parse(without_end(line)).map_err(wrong)?;
    if matches!(lines, Lines::Pairs { .. }) {
        return Ok(());
    }
    let class = class_of(line);
    if let Some(count) = classes.get_mut(class) {
        *count += 1;
        return Ok(());
    }
    room.0 = room.0.checked_sub(CLASS_BYTES + class.len()).ok_or_else(|| {
        wrong(
            "the classes of all lines are spelled in too many ways; write each in one way, such as 1 for 01"
                .into(),
        )
    })?;
    classes.insert(class.to_owned(), 1);
    Ok(())
}

/// How many lines of each class are to train on. The share that is kept for validation is one of all lines, rounded down
/// once and not for each class.
fn kept(classes: BTreeMap<String, u64>, share: f64) -> BTreeMap<String, u64> {
    let (mut seen, mut validation) = (0, 0);
    let kept = |(class, count)| {
        seen += count;
        let now = ((seen as f64 * share) as u64).saturating_sub(validation).min(count);
        validation += now;
        (class, count - now)
    };
    classes.into_iter().map(kept).collect()
}

/// How many lines are to train on, of a text with so many newlines and maybe a line after the last. A text
/// without a newline is not split.
fn kept_lines(newlines: u64, unended: bool, share: f64) -> Option<u64> {
    let lines = newlines + u64::from(unended && newlines > 0);
    let validation = (lines as f64 * share) as u64;
    (validation > 0).then(|| lines.saturating_sub(validation))
}

/// Finds the parts of a text that comes chunk by chunk.
#[derive(Debug)]
pub(super) enum Divider<'a> {
    /// The bytes to train on that are still to come.
    Bytes(u64),
    /// The lines to train on.
    Lines(LineReader<'a>, Option<u64>),
    /// The lines of each class to train on that are still to come.
    Classes(LineReader<'a>, BTreeMap<&'a str, u64>),
}

impl<'a> Divider<'a> {
    /// Of the text at `path`.
    pub(super) fn new(split: &'a TextSplit, path: &'a Path) -> Divider<'a> {
        let reader = LineReader::new(path);
        match split {
            TextSplit::Bytes(start) => Divider::Bytes(*start),
            TextSplit::Lines(kept) => Divider::Lines(reader, *kept),
            TextSplit::Classes(kept) => {
                Divider::Classes(reader, kept.iter().map(|(class, kept)| (class.as_str(), *kept)).collect())
            }
        }
    }

    /// Adds the next chunk of the text. `each` gets the parts in the order of the text; blank lines between
    /// those of classes are left out.
    ///
    /// # Errors
    /// [`PrepareError::Line`], and those of `each`.
    pub(super) fn push(&mut self, chunk: &str, each: Each<'_>) -> Result<(), PrepareError> {
        match self {
            Divider::Bytes(left) => {
                let at = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
                // The place lies between two letters, but in a file that has changed since; that is seen at
                // its end.
                let (train, validation) = chunk.split_at(chunk.floor_char_boundary(at));
                *left -= at as u64;
                for (side, text) in [(Side::Train, train), (Side::Validation, validation)] {
                    if !text.is_empty() {
                        each(Fragment { side, text, line: 0 })?;
                    }
                }
                Ok(())
            }
            Divider::Lines(reader, kept) => reader
                .push(chunk, &mut |text, line| each(Fragment { side: of_line(*kept, line), text, line })),
            Divider::Classes(reader, left) => {
                reader.push(chunk, &mut |text, line| of_class(left, text, line).map_or(Ok(()), &mut *each))
            }
        }
    }

    /// Ends the text. A last line of a class gets a newline where it has none.
    ///
    /// # Errors
    /// Those of `each`.
    pub(super) fn finish(mut self, each: Each<'_>) -> Result<(), PrepareError> {
        match &mut self {
            Divider::Bytes(_) => Ok(()),
            Divider::Lines(reader, kept) => reader.last().map_or(Ok(()), |(text, line)| {
                each(Fragment { side: of_line(*kept, line), text: &text, line })
            }),
            Divider::Classes(reader, left) => reader
                .last()
                .map_or(Ok(()), |(text, line)| of_class(left, &(text + "\n"), line).map_or(Ok(()), each)),
        }
    }
}

fn of_line(kept: Option<u64>, line: usize) -> Side {
    if kept.is_none_or(|kept| line as u64 <= kept) { Side::Train } else { Side::Validation }
}

/// `None` for a blank line.
fn of_class<'t>(left: &mut BTreeMap<&str, u64>, text: &'t str, line: usize) -> Option<Fragment<'t>> {
    if text.trim().is_empty() {
        return None;
    }
    let side = match left.get_mut(class_of(text)) {
        Some(left) if *left > 0 => {
            *left -= 1;
            Side::Train
        }
        _ => Side::Validation,
    };
    Some(Fragment { side, text, line })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes() -> Lines {
        Lines::Classes { classes: 10, names: Vec::new(), sequence: 6, weights: false }
    }

    fn pairs() -> Lines {
        Lines::Pairs { apart: false, sequence: 6, weights: false }
    }

    fn chunks(text: &str, chunk: usize) -> Vec<&str> {
        let (mut found, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (now, after) = rest.split_at(rest.ceil_char_boundary(chunk.min(rest.len())));
            found.push(now);
            rest = after;
        }
        found
    }

    fn split_of(lines: &Lines, text: &str, share: f64, chunk: usize) -> Result<TextSplit, String> {
        let (mut counter, mut room) = (LineCounter::new(lines, Path::new("a.tsv")), Room::new());
        let pushed = chunks(text, chunk).into_iter().try_for_each(|chunk| counter.push(chunk, &mut room));
        pushed.and_then(|()| counter.finish(share, &mut room)).map_err(|error| error.to_string())
    }

    /// The texts and the numbers of lines of each side.
    fn divided(split: &TextSplit, text: &str, chunk: usize) -> [(String, Vec<usize>); 2] {
        let mut sides = [(String::new(), Vec::new()), (String::new(), Vec::new())];
        let mut add = |fragment: Fragment<'_>| {
            let (text, lines) = &mut sides[usize::from(fragment.side == Side::Validation)];
            text.push_str(fragment.text);
            lines.push(fragment.line);
            Ok(())
        };
        let mut divider = Divider::new(split, Path::new("a.tsv"));
        chunks(text, chunk).into_iter().for_each(|chunk| divider.push(chunk, &mut add).unwrap());
        divider.finish(&mut add).unwrap();
        sides
    }

    fn split(lines: &Lines, text: &str, share: f64) -> [(String, Vec<usize>); 2] {
        divided(&split_of(lines, text, share, usize::MAX).unwrap(), text, usize::MAX)
    }

    #[test]
    fn whole_lines_are_kept_for_validation() {
        for (text, share, expected) in [
            ("0\ta\n1\tb\n", 0.49, "0\ta\n1\tb\n"),
            ("0\ta\n1\tb", 0.49, "0\ta\n1\tb"),
            ("0\ta\n1\tb\n0\tc\n1\td", 0.25, "0\ta\n1\tb\n0\tc\n"),
            ("0\ta\n1\tb\n0\tc\n", 0.4, "0\ta\n1\tb\n"),
            ("0\ta", 0.4, "0\ta"),
            ("", 0.4, ""),
        ] {
            let [(train, _), (validation, _)] = split(&pairs(), text, share);
            assert_eq!(train, expected, "{text:?} {share}");
            assert_eq!(train + &validation, text);
        }
        let [train, validation] = split(&pairs(), "a\tb\n\nc\td\r\ne\tf", 0.5);
        assert_eq!(train, ("a\tb\n\n".into(), vec![1, 2]));
        assert_eq!(validation, ("c\td\r\ne\tf".into(), vec![3, 4]));
    }

    #[test]
    fn every_class_is_validated_where_a_file_is_sorted_by_class() {
        let sorted: String = (0..20).map(|i| format!("{}\t{i}\n", i / 10)).collect();
        let [(_, train), (text, validation)] = split(&classes(), &sorted, 0.2);
        assert_eq!(text, "0\t8\n0\t9\n1\t18\n1\t19\n");
        assert_eq!(validation, [9, 10, 19, 20]);
        assert_eq!(train, [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17, 18]);
        // The share of all lines also where each class has too few for one; blank lines are none.
        let many: String = (0..10).map(|i| format!("{i}\ta\n\n{i}\tb\n")).collect();
        let [(_, train), (_, validation)] = split(&classes(), &many, 0.25);
        assert_eq!((train.len(), validation.len()), (15, 5));
        let [(train, _), (validation, _)] = split(&classes(), "0\ta\n1\tb", 0.0);
        assert_eq!((train.as_str(), validation.as_str()), ("0\ta\n1\tb\n", ""));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let long = format!("1\ta\n1\t{}", "a".repeat(MAX_LINE_BYTES));
        let spelled: String = (0..1000).map(|zeros| format!("{}1\ta\n", "0".repeat(zeros * 100))).collect();
        for (text, told) in [
            ("1\ta\r\n\n2\ta\n10\tb\n", "a.tsv, line 4: found the class `10`; must be a class from 0 to 9"),
            ("1\ta\n2", "a.tsv, line 2: found no tab"),
            (&long, "a.tsv, line 2: is longer than 4194304 bytes"),
            (&spelled, "the classes of all lines are spelled in too many ways"),
        ] {
            for chunk in [1 << 20, 1 << 16] {
                let error = split_of(&classes(), text, 0.1, chunk).unwrap_err();
                assert!(error.contains(told), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn parts_do_not_depend_on_how_a_text_comes(
            text in "((0|1|01|7)\t[aé]{0,3}(\n|\r\n|\n\n|)){0,12}", share in 0.0f64..0.6, chunk in 1usize..12,
        ) {
            let text = &text;
            for lines in [classes(), pairs()] {
                let whole = split_of(&lines, text, share, usize::MAX);
                prop_assert_eq!(&split_of(&lines, text, share, chunk), &whole);
                if let Ok(whole) = whole {
                    prop_assert_eq!(divided(&whole, text, chunk), divided(&whole, text, usize::MAX));
                }
            }
            let at = text.floor_char_boundary((text.len() as f64 * share) as usize);
            let [(train, _), (validation, _)] = divided(&TextSplit::Bytes(at as u64), text, chunk);
            prop_assert_eq!((train.as_str(), validation.as_str()), text.split_at(at));
        }
    }
}
