//! Text from tokens that come one by one, each looked at a bounded number of times.

use std::str;

use super::Tokenizer;

/// How many tokens may wait for the rest of a character, of a tokenizer whose bytes are not known. A character is of
/// four bytes at most; what is longer is not a character.
const MAX_WAITING: usize = 8;

/// The text of tokens that come one by one.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes that begin a character, of a tokenizer that was trained here.
    bytes: Vec<u8>,
    /// The last tokens, of any other: those that gave the last text, and those that have given none yet.
    ids: Vec<u32>,
    given: usize,
}

impl<'a> TextStream<'a> {
    /// An empty text.
    pub fn new(tokenizer: &'a Tokenizer) -> TextStream<'a> {
        TextStream { tokenizer, bytes: Vec::new(), ids: Vec::new(), given: 0 }
    }

    /// The text completed by `id`: whole characters, and U+FFFD for invalid bytes. All of these together are [`Tokenizer::decode`] of all tokens, but for a character that is not whole.
    pub fn push(&mut self, id: u32) -> String {
        match &self.tokenizer.own {
            Some(own) => {
                self.bytes.extend(own.spelling.get(id as usize).into_iter().flatten());
                whole(&mut self.bytes)
            }
            None => self.push_elsewhere(id),
        }
    }

    /// Decoders look at the tokens around them (a first blank goes, a mark joins two pieces): the text of a token is
    /// what it adds to that of the ones before it.
    fn push_elsewhere(&mut self, id: u32) -> String {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.given]);
        let after = self.tokenizer.decode(&self.ids);
        let may_wait = self.ids.len() - self.given <= MAX_WAITING;
        if may_wait && (after.ends_with('\u{fffd}') || after.len() <= before.len()) {
            return String::new();
        }
        let same: usize =
            before.chars().zip(after.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let text = after[same..].to_owned();
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        text
    }
}

/// Removes complete characters and invalid bytes from the front.
fn whole(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        let (valid, error) = match str::from_utf8(bytes) {
            Ok(valid) => (valid.len(), None),
            Err(error) => (error.valid_up_to(), Some(error)),
        };
        text.push_str(&String::from_utf8_lossy(&bytes[..valid]));
        let wrong = error.and_then(|error| error.error_len());
        bytes.drain(..valid + wrong.unwrap_or(0));
        if wrong.is_none() {
            return text;
        }
        text.push('\u{fffd}');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn own() -> &'static Tokenizer {
        static OWN: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
        OWN.get_or_init(|| {
            Tokenizer::train(&[&"gr\u{f6}\u{df}e \u{1F6A3}\u{1F6A3} bl\u{e4}tter ".repeat(9)], 300).unwrap()
        })
    }

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = TextStream::new(tokenizer);
        ids.iter().map(|id| stream.push(*id)).collect()
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_whole(
            text in "[a-c \u{e4}\u{f6}\u{20ac}\u{1F6A3}]{0,24}", noise in prop::collection::vec(0u32..300, 0..8), at in 0usize..24,
        ) {
            let mut ids = own().encode(&text).unwrap();
            prop_assert_eq!(streamed(own(), &ids), text);
            // Any tokens: bytes that are not characters too, but for what waits for its rest at the end.
            ids.splice(at.min(ids.len())..at.min(ids.len()), noise);
            let (pieces, whole) = (streamed(own(), &ids), own().decode(&ids));
            let rest = whole.strip_prefix(&pieces);
            prop_assert!(rest.is_some_and(|rest| rest.chars().all(|c| c == '\u{fffd}')), "{pieces:?} of {whole:?}");
        }
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let ids: Vec<u32> = own().own.as_ref().unwrap().encode_bytes("\u{20ac}x").collect();
        let mut stream = TextStream::new(own());
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(pieces, ["", "", "\u{20ac}", "x"]);
    }

    #[test]
    fn a_tokenizer_from_elsewhere_streams_too() {
        let json = String::from_utf8(own().to_bytes()).unwrap();
        let json = json.replace("\"add_prefix_space\": false", "\"add_prefix_space\": true");
        let foreign = Tokenizer::from_elsewhere(json.as_bytes()).unwrap();
        for text in [" gr\u{f6}\u{df}e \u{1F6A3} a \u{20ac}", " x"] {
            let ids = foreign.encode(text).unwrap();
            assert_eq!(streamed(&foreign, &ids), foreign.decode(&ids));
        }
        // Bytes that are never a character do not pile up.
        let half = own().own.as_ref().unwrap().byte_ids[0xff];
        let mut stream = TextStream::new(&foreign);
        (0..100).for_each(|_| {
            stream.push(half);
        });
        assert!(stream.ids.len() <= 3 * MAX_WAITING, "{}", stream.ids.len());
    }
}
