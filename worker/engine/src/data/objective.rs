//! Training objectives: for each, the row that it makes of a window of the tokens.

use coxswain_files::hash::draw;
use coxswain_types::JobSpec;
use coxswain_types::framing::Framing;
use coxswain_types::job::Lengths;
use coxswain_types::model::Head;

use super::batch::SampleRow;
use super::corrupt::SpanCorruption;
use super::masking::Masking;

/// What a token is trained to tell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Objective {
    /// The token after it.
    Next,
    /// Itself, where it is hidden (arXiv 1810.04805).
    MaskedLm(Masking),
    /// What was taken out of the text that its encoder reads.
    SpanCorruption(SpanCorruption),
    /// The class of the text, which the first token is asked for.
    Class,
    /// The answer after its prompt.
    Answer,
    /// The answer to what its encoder reads.
    Reply {
        /// What a decoder's text begins with.
        start: u32,
        /// How many tokens of a row are the prompt's.
        prompt_len: usize,
    },
}

/// A stretch of the tokens, of which a row is made. One without tokens makes a row without targets.
#[derive(Clone, Debug)]
pub(super) struct TextWindow<'w> {
    /// Draws are a function of it.
    pub(super) sample: u64,
    /// The text and the token after it.
    pub(super) tokens: &'w [i64],
    /// The document of each token of the text.
    pub(super) documents: Vec<u32>,
}

impl<'w> TextWindow<'w> {
    /// Documents end with `end_of_text`, where they are told apart.
    pub(super) fn new(sample: u64, tokens: &'w [i64], end_of_text: Option<u32>) -> TextWindow<'w> {
        let mut window = TextWindow { sample, tokens, documents: Vec::new() };
        window.documents = match end_of_text {
            Some(end) => documents_of(window.text(), end),
            None => vec![0; window.text().len()],
        };
        window
    }

    /// The text.
    pub(super) fn text(&self) -> &'w [i64] {
        match self.tokens {
            [text @ .., _] => text,
            [] => &[],
        }
    }
}

impl Objective {
    /// The objective of a job. `words` says of each token whether it begins a word, where whole words are hidden.
    pub(super) fn of(spec: &JobSpec, framing: &Framing, words: Option<Vec<bool>>) -> Objective {
        let (train, vocab) = (&spec.train, spec.model.vocab);
        let lengths = Lengths::of(&spec.model, train);
        let end_of_text = framing.end;
        let mask = framing.sentinels.map_or(vocab - 1, |sentinels| sentinels.first);
        let start = framing.decoder_begin().first().copied().unwrap_or(end_of_text);
        // A draw apart from those of samples, dropout and initial values.
        let key = draw(train.seed, u64::from(b'm'));
        match spec.model.head {
            _ if train.pairs && lengths.source > 0 => {
                Objective::Reply { start, prompt_len: lengths.source as usize }
            }
            _ if train.pairs => Objective::Answer,
            _ if lengths.source > 0 => Objective::SpanCorruption(SpanCorruption {
                key,
                corruption: train.corruption,
                share: train.mask_rate,
                mask,
                end_of_text,
                start,
                lengths,
            }),
            Head::MaskedLm { .. } => {
                // Of a vocabulary of our own all tokens but the last are text.
                let text = if mask == vocab - 1 { mask } else { vocab };
                Objective::MaskedLm(Masking { key, rate: train.mask_rate, mask, text, words })
            }
            Head::Lm => Objective::Next,
            Head::Pooled { .. } => Objective::Class,
        }
    }

    /// How many targets a row has whose text is this long.
    pub(super) fn targets(&self, sequence: usize) -> usize {
        match self {
            Objective::Class => 1,
            Objective::Next
            | Objective::MaskedLm(_)
            | Objective::SpanCorruption(_)
            | Objective::Answer
            | Objective::Reply { .. } => sequence,
        }
    }

    /// The row of a window.
    pub(super) fn row(&self, window: &TextWindow<'_>) -> SampleRow {
        match self {
            Objective::Next => next(window),
            Objective::MaskedLm(masking) => masking.row(window),
            Objective::SpanCorruption(corruptor) => corruptor.row(window),
            Objective::Class => class(window),
            Objective::Answer => answer(window),
            Objective::Reply { start, prompt_len } => reply(window, *start, *prompt_len),
        }
    }
}

fn next(window: &TextWindow<'_>) -> SampleRow {
    let targets = window.tokens.get(1..).unwrap_or_default().to_vec();
    SampleRow { own: Some(window.documents.clone()), ..SampleRow::of(window.text().to_vec(), targets) }
}

fn class(window: &TextWindow<'_>) -> SampleRow {
    let (weight, class, text) = labelled(window.text());
    let read = Some(text.len() as u32);
    SampleRow { weight: Some(weight), read, ..SampleRow::of(text.to_vec(), vec![class]) }
}

fn answer(window: &TextWindow<'_>) -> SampleRow {
    let (weight, ids, targets) = answered(window.text());
    let own = Some(window.documents.clone());
    SampleRow { weight: Some(weight), own, ..SampleRow::of(ids, targets) }
}

fn reply(window: &TextWindow<'_>, start: u32, prompt_len: usize) -> SampleRow {
    let (weight, prompt, answer) = replied(window.text(), prompt_len);
    let begun = std::iter::once(i64::from(start)).chain(answer.iter().copied());
    let ids = begun.take(answer.len()).collect();
    SampleRow {
        weight: Some(weight),
        source: prompt.to_vec(),
        read: Some(prompt.len() as u32),
        ..SampleRow::of(ids, answer.to_vec())
    }
}

/// The weight, inputs and targets of a row of pairs that stand one after the other: of the prompt's
/// tokens only the last has a target, the answer's first.
fn answered(row: &[i64]) -> (u32, Vec<i64>, Vec<i64>) {
    let [weight, prompt, answer, tokens @ ..] = row else { return (0, Vec::new(), Vec::new()) };
    let all = &tokens[..((prompt + answer) as usize).min(tokens.len())];
    let targets = all.iter().enumerate().skip(1);
    let targets = targets.map(|(at, id)| if at as i64 >= *prompt { *id } else { -1 }).collect();
    (*weight as u32, all[..all.len().saturating_sub(1)].to_vec(), targets)
}

/// The weight, the prompt and the answer of a row of pairs that stand apart.
fn replied(row: &[i64], field: usize) -> (u32, &[i64], &[i64]) {
    let [weight, prompt, answer, tokens @ ..] = row else { return (0, &[], &[]) };
    let (one, other) = tokens.split_at(field.min(tokens.len()));
    (*weight as u32, &one[..(*prompt as usize).min(one.len())], &other[..(*answer as usize).min(other.len())])
}

/// The weight and the class of a row of a labelled file, and its tokens; none of an empty row.
fn labelled(row: &[i64]) -> (u32, i64, &[i64]) {
    match row {
        [weight, class, len, tokens @ ..] => {
            (*weight as u32, *class, &tokens[..(*len as usize).min(tokens.len())])
        }
        _ => (0, -1, &[]),
    }
}

/// The document of each token: one ends with the end of text.
fn documents_of(tokens: &[i64], end_of_text: u32) -> Vec<u32> {
    let mut document = 0;
    let of = tokens.iter().map(|token| {
        let own = document;
        document += u32::from(*token == i64::from(end_of_text));
        own
    });
    of.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_end_with_the_end_of_text() {
        let of = documents_of(&[1, 2, 9, 3, 9, 4], 9);
        assert_eq!(of, [0, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn answers_alone_are_asked_for() {
        assert_eq!(answered(&[9, 2, 2, 7, 8, 5, 0, 0]), (9, vec![7, 8, 5], vec![-1, 5, 0]));
        assert_eq!(answered(&[]), (0, vec![], vec![]));
        assert_eq!(replied(&[9, 2, 1, 7, 8, 0, 5, 0, 0], 3), (9, [7, 8].as_slice(), [5].as_slice()));
        assert_eq!(replied(&[], 3), (0, [].as_slice(), [].as_slice()));
    }

    #[test]
    fn a_labelled_row_ends_where_it_says() {
        assert_eq!(labelled(&[4, 2, 3, 7, 8, 9, 0, 0]), (4, 2, [7, 8, 9].as_slice()));
        assert_eq!(labelled(&[]), (0, -1, [].as_slice()));
        assert_eq!(labelled(&[4, 1, 9, 7]), (4, 1, [7].as_slice()));
    }
}
