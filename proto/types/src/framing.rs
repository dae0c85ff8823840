//! How a model frames a text: the tokens that stand around it, and those that mean something else than text.
//!
//! A model that was trained here has the framing of [`Framing::own`]; one that came from elsewhere has what its
//! files say. Data preparation, generation and classification frame texts by this value alone.

use serde::{Deserialize, Serialize};

use crate::job::{TrainSpec, reserved_tokens};
use crate::model::{Architecture, Head, ModelSpec};

/// The framing of a model's texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Framing {
    /// Stand before a text: a document, a prompt, what an encoder reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begin: Vec<u32>,
    /// Stand after a whole text, such as BERT's `[SEP]` and T5's `</s>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub close: Vec<u32>,
    /// Ends a document and an answer.
    #[serde(default)]
    pub end: u32,
    /// Further tokens at which generation stops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<u32>,
    /// The tokens that stand for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinels: Option<Sentinels>,
    /// What a decoder behind an encoder begins with: its start, and what it is made to write next. `end`, where
    /// it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decoder_start: Vec<u32>,
    /// The token that the model's files name as a text's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<u32>,
    /// The token that the model's files name as padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<u32>,
    /// The most tokens that the model was made to read at once, where something says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<u32>,
}

/// Tokens that stand for other tokens: `[MASK]`, or T5's `<extra_id_0>` and those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentinels {
    /// The first one; the others have the ids below it.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl Sentinels {
    /// The one that stands for the `index`th span: a single one stands for all of them. `None` where there are
    /// several, but not as many.
    pub fn at(&self, index: u32) -> Option<u32> {
        match self.count {
            1 => Some(self.first),
            count => (index < count).then(|| self.first.saturating_sub(index)),
        }
    }

    /// Whether a token is one of them.
    pub fn contains(&self, id: u32) -> bool {
        id <= self.first && self.first - id < self.count
    }
}

impl Framing {
    /// The framing of a job's own texts, whose tokenizer has `end` between documents.
    pub fn own(model: &ModelSpec, train: &TrainSpec, end: u32) -> Framing {
        let one_if = |is: bool| if is { vec![end] } else { Vec::new() };
        let count = reserved_tokens(model, train);
        Framing {
            begin: one_if(matches!(model.head, Head::Pooled { .. })),
            close: one_if(model.architecture == Architecture::EncoderDecoder),
            end,
            sentinels: (count > 0).then(|| Sentinels { first: model.vocab.saturating_sub(1), count }),
            ..Framing::default()
        }
    }

    /// A text that stands by itself, in at most `longest` tokens: its end is cut, and the frame stays.
    pub fn whole(&self, text: &[u32], longest: Option<u32>) -> Vec<u32> {
        let most = longest.map_or(usize::MAX, |most| most as usize);
        let room = most.saturating_sub(self.begin.len() + self.close.len()).min(text.len());
        let mut framed = [&self.begin, &text[..room], &self.close].concat();
        framed.truncate(most);
        framed
    }

    /// Whether generation stops at a token.
    pub fn stops_at(&self, id: u32) -> bool {
        id == self.end || self.stops.contains(&id)
    }

    /// What a decoder behind an encoder begins with.
    pub fn decoder_begin(&self) -> &[u32] {
        if self.decoder_start.is_empty() { std::slice::from_ref(&self.end) } else { &self.decoder_start }
    }

    /// All of its tokens, each with what it is.
    pub fn tokens(&self) -> Vec<(&'static str, u32)> {
        let lists = [
            ("a text's first tokens", &self.begin),
            ("a text's last tokens", &self.close),
            ("the ends of a text", &self.stops),
            ("the decoder's first tokens", &self.decoder_start),
        ];
        let lists = lists.into_iter().flat_map(|(what, ids)| ids.iter().map(move |id| (what, *id)));
        let single = [
            ("the end of a text", Some(self.end)),
            ("the mask", self.sentinels.map(|sentinels| sentinels.first)),
            ("bos_token_id", self.bos),
            ("pad_token_id", self.pad),
        ];
        lists.chain(single.into_iter().filter_map(|(what, id)| Some((what, id?)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_inside_its_frame() {
        let framing = Framing { begin: vec![1], close: vec![2, 3], ..Framing::default() };
        assert_eq!(framing.whole(&[7, 8, 9], None), [1, 7, 8, 9, 2, 3]);
        assert_eq!(framing.whole(&[7, 8, 9], Some(5)), [1, 7, 8, 2, 3]);
        assert_eq!(framing.whole(&[7, 8, 9], Some(2)), [1, 2]);
        assert_eq!(framing.whole(&[], Some(9)), [1, 2, 3]);
    }

    #[test]
    fn spans_have_the_sentinels_that_there_are() {
        let mask = Sentinels { first: 9, count: 1 };
        assert_eq!((mask.at(0), mask.at(5)), (Some(9), Some(9)));
        let extra = Sentinels { first: 9, count: 3 };
        assert_eq!((extra.at(2), extra.at(3)), (Some(7), None));
        assert_eq!([6, 7, 9, 10].map(|id| extra.contains(id)), [false, true, true, false]);
    }
}
