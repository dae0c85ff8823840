//! Texts, read three times: looked through, counted, and tokenized. None of it keeps more of a text than a
//! batch.
//!
//! What a later pass reads must be what the first one did, by its digest.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use coxswain_types::framing::Framing;
use coxswain_types::job::DataSpec;

use super::lines::Lines;
use super::read::{Whole, read, validation_start};
use super::split::{Divider, Fragment, LineCounter, Room, Side, TextSplit, without_end};
use super::texts::{MAX_TEXT_BYTES, TextFault, look_at, text_error};
use super::{PrepareError, TRAIN, VALIDATION, VALIDATION_TEXT, write_error};
use crate::atomic::Written;
use crate::digests::Digests;
use crate::progress::{PreparationPhase, PreparationProgress, Watch};
use crate::store::{ObjectWriter, StoreFolder};
use crate::tokenizer::{Batch, Counter, Cutter, Threads, Tokenizer, expect_room};
use crate::tokens::TokenWriter;

/// The texts of a job, looked through.
pub(super) struct ScannedTexts<'a> {
    key: &'static str,
    files: Vec<(&'a Path, Whole, TextSplit)>,
    /// Of all texts.
    bytes: u64,
    watch: Watch<'a>,
}

impl<'a> ScannedTexts<'a> {
    /// Reads each text once: that it is one, its digest, and how it is split. There are none where tokens
    /// come from no file.
    ///
    /// # Errors
    /// [`PrepareError`], naming the file and the place.
    pub(super) fn look_through(
        data: &'a DataSpec,
        lines: Option<&Lines>,
        share: f64,
        digests: &Digests,
        watch: Watch<'a>,
    ) -> Result<ScannedTexts<'a>, PrepareError> {
        let mut texts = ScannedTexts { key: "data", files: Vec::new(), bytes: 0, watch };
        let Some((key, files)) = data.files() else { return Ok(texts) };
        let total = look_at(key, files)?.bytes;
        let mut room = Room::new();
        for path in files.iter().map(Path::new) {
            let seen = digests.see(path);
            let mut counter = lines.map(|lines| LineCounter::new(lines, path));
            let whole = read(key, path, |chunk| {
                watch(PreparationProgress { phase: PreparationPhase::Reading, done: texts.bytes, total })?;
                texts.bytes = texts.bytes.saturating_add(chunk.len() as u64);
                if texts.bytes > MAX_TEXT_BYTES {
                    return Err(PrepareError::TooMuchText { key, most: MAX_TEXT_BYTES });
                }
                counter.as_mut().map_or(Ok(()), |counter| counter.push(chunk, &mut room))
            })?;
            digests.saw(path, seen, &whole.digest);
            let split = match counter {
                Some(counter) => counter.finish(share, &mut room)?,
                None => TextSplit::Bytes(validation_start(key, path, whole.bytes, share)?),
            };
            texts.files.push((path, whole, split));
        }
        Ok(ScannedTexts { key, ..texts })
    }

    /// The digests of the files, in order.
    pub(super) fn digests(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(_, whole, _)| whole.digest.as_str())
    }

    /// Reads all texts again. `each` gets their parts, and `None` at the end of each text.
    fn pass(
        &self,
        mut each: impl FnMut(&'a Path, Option<Fragment<'_>>) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        for (path, first, split) in &self.files {
            let mut divider = Divider::new(split, path);
            let mut part = |fragment: Fragment<'_>| each(path, Some(fragment));
            let changed = || text_error(self.key, path, TextFault::Changed);
            let mut left = first.bytes;
            let again = read(self.key, path, |chunk| {
                // One that grows is not followed.
                left = left.checked_sub(chunk.len() as u64).ok_or_else(changed)?;
                divider.push(chunk, &mut part)
            })?;
            divider.finish(&mut part)?;
            if again != *first {
                return Err(changed());
            }
            each(path, None)?;
        }
        Ok(())
    }

    /// A tokenizer of at most `vocab` tokens, learned from the training part; and by how much the count of
    /// a word may have been too low.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub(super) fn learn(&self, vocab: u32) -> Result<(Tokenizer, u64), PrepareError> {
        // Before all is counted.
        expect_room(vocab)?;
        let mut counter = Counter::new(self.bytes, self.watch);
        self.pass(|_, fragment| {
            match fragment {
                Some(Fragment { side: Side::Train, text, .. }) => counter.push(text)?,
                Some(_) => {}
                None => counter.end_text()?,
            }
            Ok(())
        })?;
        let words = counter.finish()?;
        let short_by = words.short_by();
        Ok((Tokenizer::learn(words, vocab, self.watch)?, short_by))
    }

    /// Writes the tokens of both sides below the run's folder; of the validation side also the text, where there is one.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub(super) fn encode(
        &self,
        run: &StoreFolder,
        how: &How<'_>,
        holds_out: bool,
    ) -> Result<TokenizedTexts, PrepareError> {
        let mut encoder = Encoder {
            how,
            cutter: how.tokenizer.cutter(),
            open: None,
            batch: Batch::new(),
            threads: Threads::new(),
            train: TokenWriter::create(run, TRAIN)?,
            validation: if holds_out { Some(ValidationFiles::create(run)?) } else { None },
            done: 0,
            total: self.bytes,
            watch: self.watch,
        };
        self.pass(|path, fragment| match (fragment, how.lines) {
            (Some(fragment), None) => encoder.text(fragment),
            (Some(fragment), Some(lines)) => encoder.line(path, fragment, lines),
            (None, _) => encoder.end_document(),
        })?;
        encoder.finish()
    }
}

/// How texts become tokens.
pub(super) struct How<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) framing: &'a Framing,
    /// Where lines are samples.
    pub(super) lines: Option<&'a Lines>,
}

/// What was made of texts.
pub(super) struct TokenizedTexts {
    pub(super) train: coxswain_types::assignment::TokenFile,
    /// The tokens, and the text.
    pub(super) validation: Option<(coxswain_types::assignment::TokenFile, Written)>,
}

/// Text that is to be tokenized.
struct TokenizeTask<'a> {
    side: Side,
    text: String,
    of: TextOrigin<'a>,
}

enum TextOrigin<'a> {
    /// The first piece of a document.
    Start,
    /// A later one.
    Rest,
    /// A line, by its file and number.
    Line(&'a Path, usize),
}

impl How<'_> {
    /// The tokens of a piece, or the row of a line.
    fn encode(&self, work: &TokenizeTask<'_>) -> Result<Vec<u32>, PrepareError> {
        let (TextOrigin::Line(path, line), Some(lines)) = (&work.of, self.lines) else {
            return Ok(self.tokenizer.encode(&work.text)?);
        };
        let wrong = |what| PrepareError::Line { path: (*path).to_owned(), line: *line, what };
        let sample = lines.parse(without_end(&work.text)).map_err(wrong)?;
        Ok(lines.row(&sample, self.tokenizer, self.framing)?)
    }

    /// What stands before a document. Two of them are separated by `close`, `end` and `begin`.
    fn begin(&self, tokens: &mut TokenWriter) -> Result<(), PrepareError> {
        let Framing { begin, close, end, .. } = self.framing;
        if tokens.tokens() > 0 {
            tokens.write(close)?;
            if close.last() != Some(end) {
                tokens.write(&[*end])?;
            }
        }
        Ok(tokens.write(begin)?)
    }
}

/// The files of what is kept for validation.
struct ValidationFiles<'a> {
    run: &'a StoreFolder,
    tokens: TokenWriter,
    text: BufWriter<ObjectWriter>,
}

impl<'a> ValidationFiles<'a> {
    fn create(run: &'a StoreFolder) -> Result<ValidationFiles<'a>, PrepareError> {
        let text = run.create(VALIDATION_TEXT).map_err(write_error(run, VALIDATION_TEXT))?;
        Ok(ValidationFiles { run, tokens: TokenWriter::create(run, VALIDATION)?, text: BufWriter::new(text) })
    }

    fn write_text(&mut self, text: &str) -> Result<(), PrepareError> {
        self.text.write_all(text.as_bytes()).map_err(write_error(self.run, VALIDATION_TEXT))
    }

    fn finish(self) -> Result<(coxswain_types::assignment::TokenFile, Written), PrepareError> {
        let tokens = self.tokens.finish()?;
        let text =
            self.text.into_inner().map_err(io::IntoInnerError::into_error).and_then(ObjectWriter::commit);
        Ok((tokens, text.map_err(write_error(self.run, VALIDATION_TEXT))?))
    }
}

/// Tokenizes texts batch by batch.
struct Encoder<'a> {
    how: &'a How<'a>,
    cutter: Cutter,
    /// The document at hand, and whether a piece of it is under way.
    open: Option<(Side, bool)>,
    batch: Batch<TokenizeTask<'a>>,
    threads: Threads,
    train: TokenWriter,
    validation: Option<ValidationFiles<'a>>,
    done: u64,
    total: u64,
    watch: Watch<'a>,
}

impl<'a> Encoder<'a> {
    /// Adds some of a document. Each side of a text is a document of its own.
    fn text(&mut self, fragment: Fragment<'_>) -> Result<(), PrepareError> {
        if self.open.is_none_or(|(side, _)| side != fragment.side) {
            self.end_document()?;
            self.open = Some((fragment.side, false));
        }
        self.hold_out(fragment)?;
        self.cutter.push(fragment.text);
        while let Some(piece) = self.cutter.piece().map(str::to_owned) {
            self.piece(piece)?;
        }
        Ok(())
    }

    fn end_document(&mut self) -> Result<(), PrepareError> {
        self.cutter.last().map_or(Ok(()), |piece| self.piece(piece))?;
        self.open = None;
        Ok(())
    }

    fn piece(&mut self, text: String) -> Result<(), PrepareError> {
        let Some((side, begun)) = &mut self.open else { return Ok(()) };
        let of = if std::mem::replace(begun, true) { TextOrigin::Rest } else { TextOrigin::Start };
        let (side, bytes) = (*side, text.len());
        self.add(TokenizeTask { side, text, of }, bytes)
    }

    /// Adds a line, which may be blank.
    fn line(&mut self, path: &'a Path, fragment: Fragment<'_>, lines: &Lines) -> Result<(), PrepareError> {
        self.hold_out(fragment)?;
        let Fragment { side, text, line } = fragment;
        if text.trim().is_empty() {
            return Ok(());
        }
        let bytes = text.len().max(lines.row_len().saturating_mul(size_of::<u32>()));
        self.add(TokenizeTask { side, text: text.to_owned(), of: TextOrigin::Line(path, line) }, bytes)
    }

    fn hold_out(&mut self, fragment: Fragment<'_>) -> Result<(), PrepareError> {
        match &mut self.validation {
            Some(validation) if fragment.side == Side::Validation => validation.write_text(fragment.text),
            _ => Ok(()),
        }
    }

    fn add(&mut self, work: TokenizeTask<'a>, bytes: usize) -> Result<(), PrepareError> {
        if self.batch.is_full(bytes) {
            self.run()?;
        }
        self.batch.push(work, bytes);
        Ok(())
    }

    fn run(&mut self) -> Result<(), PrepareError> {
        (self.watch)(PreparationProgress {
            phase: PreparationPhase::Encoding,
            done: self.done,
            total: self.total,
        })?;
        let Encoder { how, batch, threads, train, validation, done, .. } = self;
        batch.run(
            threads,
            |work| how.encode(work),
            |work, tokens| {
                *done += work.text.len() as u64;
                let to = match (work.side, &mut *validation) {
                    (Side::Validation, Some(validation)) => &mut validation.tokens,
                    _ => &mut *train,
                };
                if matches!(work.of, TextOrigin::Start) {
                    how.begin(to)?;
                }
                Ok(to.write(&tokens?)?)
            },
        )
    }

    fn finish(mut self) -> Result<TokenizedTexts, PrepareError> {
        self.run()?;
        if self.how.lines.is_some() {
            // A number follows the last row, as a token follows the last sample of a text.
            self.train.write(&[0])?;
            self.validation.as_mut().map_or(Ok(()), |validation| validation.tokens.write(&[0]))?;
        }
        let train = self.train.finish()?;
        Ok(TokenizedTexts { train, validation: self.validation.map(ValidationFiles::finish).transpose()? })
    }
}
