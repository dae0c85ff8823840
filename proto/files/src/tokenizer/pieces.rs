//! Pieces of a text that comes bit by bit. The pieces depend on the text alone, not on how it comes.

/// Text is encoded in pieces of about this size, as the library keeps some 50 bytes for each byte.
const PIECE_BYTES: usize = 1 << 16;

/// The largest piece: a text is cut here even where there is no place whose tokens do not depend on it.
const MAX_PIECE_BYTES: usize = 1 << 18;

/// A tokenizer from elsewhere may look at a whole text at once, so a text of at most this size is one piece.
/// The library takes about 100 MB for one.
const MAX_WHOLE_BYTES: usize = 1 << 20;

/// Where a text is cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum TextCut {
    /// Where the words of a byte-level tokenizer end: into pieces of at least so many bytes, and of at most
    /// so many and a letter.
    Words { least: usize, most: usize },
    /// Before the start of a line, where the text is longer than this.
    Lines { most: usize },
}

impl TextCut {
    /// For a tokenizer that was trained here.
    pub(super) const OWN: TextCut = TextCut::Words { least: PIECE_BYTES, most: MAX_PIECE_BYTES };
    /// For any other.
    pub(super) const ELSEWHERE: TextCut = TextCut::Lines { most: MAX_WHOLE_BYTES };

    /// The length of the first piece of `text`; `None` where more of the text could change it.
    fn first(self, text: &str) -> Option<usize> {
        let len = match self {
            TextCut::Words { least, most } => piece_len(text, least, most),
            TextCut::Lines { most } => line_len(text, most),
        };
        (len < text.len()).then_some(len)
    }
}

/// Cuts a text that comes bit by bit.
#[derive(Debug)]
pub(crate) struct Cutter {
    cut: TextCut,
    text: String,
    /// How much of `text` was given as pieces.
    given: usize,
}

impl Cutter {
    pub(super) fn new(cut: TextCut) -> Cutter {
        Cutter { cut, text: String::new(), given: 0 }
    }

    /// Adds the next bit of the text.
    pub(crate) fn push(&mut self, text: &str) {
        self.text.drain(..self.given);
        self.given = 0;
        self.text.push_str(text);
    }

    /// The next piece that no later text can change.
    pub(crate) fn piece(&mut self) -> Option<&str> {
        let rest = &self.text[self.given..];
        let len = self.cut.first(rest)?;
        self.given += len;
        Some(&rest[..len])
    }

    /// The last piece, once the text has ended and [`Cutter::piece`] gives no more. Another text may follow.
    pub(crate) fn last(&mut self) -> Option<String> {
        self.text.drain(..self.given);
        self.given = 0;
        let text = std::mem::take(&mut self.text);
        (!text.is_empty()).then_some(text)
    }
}

/// Cuts a text into pieces that encode to the same tokens as the whole.
///
/// A cut lies before white space that follows something else: no token reaches across such a place, because a
/// token holds white space only in front or nothing else, and nothing looks back over it. Where there is no
/// such place for [`MAX_PIECE_BYTES`] the cut is made anyway, and a token less reaches across it.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> + Send {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(TextCut::OWN.first(rest).unwrap_or(rest.len()));
        rest = after;
        Some(piece)
    })
}

/// The length of the first piece of at least `least` bytes, and of at most `most` and a letter.
pub(super) fn piece_len(text: &str, least: usize, most: usize) -> usize {
    let start = text.floor_char_boundary(least.saturating_sub(4));
    let mut blank = true;
    for (at, letter) in text[start..].char_indices().map(|(at, letter)| (start + at, letter)) {
        if at >= most || (letter.is_whitespace() && !blank && at >= least) {
            return at;
        }
        blank = letter.is_whitespace();
    }
    text.len()
}

/// The length of the first piece of at most `most` bytes: all of the text; else up to the last line that
/// starts with a letter; else up to the last blank.
fn line_len(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    let most = text.floor_char_boundary(most);
    let follows = |at: usize| text[at..].chars().next();
    let lines = text[..most].rmatch_indices('\n').map(|(at, _)| at + 1);
    let mut starts = lines.filter(|at| follows(*at).is_some_and(|letter| !letter.is_whitespace()));
    let blank = || text[..most].rfind(char::is_whitespace).filter(|at| *at > 0);
    starts.next().or_else(blank).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(cut: TextCut, text: &str, chunk: usize) -> Vec<String> {
        let (mut cutter, mut found, mut rest) = (Cutter::new(cut), Vec::new(), text);
        while !rest.is_empty() {
            let (now, after) = rest.split_at(rest.ceil_char_boundary(chunk.min(rest.len())));
            cutter.push(now);
            while let Some(piece) = cutter.piece() {
                found.push(piece.to_owned());
            }
            rest = after;
        }
        found.extend(cutter.last());
        found
    }

    proptest! {
        #[test]
        fn pieces_do_not_depend_on_how_a_text_comes(
            text in "([a-c]|[ \n]|é|\u{1F6A3}){0,80}", least in 1usize..12, more in 0usize..12, chunk in 1usize..20,
        ) {
            for how in [TextCut::Words { least, most: least + more }, TextCut::Lines { most: least + 4 }] {
                let whole = cut(how, &text, usize::MAX);
                prop_assert_eq!(&whole.concat(), &text);
                prop_assert!(whole.iter().all(|piece| !piece.is_empty() && piece.len() <= least + more + 7));
                prop_assert_eq!(cut(how, &text, chunk), whole);
            }
        }
    }

    #[test]
    fn the_pieces_of_a_text_in_memory_are_those_of_a_stream() {
        let blanks = "gr\u{f6}\u{df}e, a bc\n".repeat(20_000);
        let none = "gr\u{f6}\u{df}e".repeat(400_000);
        for text in [&blanks, &none, &(none.clone() + &blanks)] {
            let pieces: Vec<&str> = pieces(text).collect();
            for chunk in [1 << 20, 99_991] {
                assert!(cut(TextCut::OWN, text, chunk) == pieces, "{} bytes by {chunk}", text.len());
            }
            assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() <= MAX_PIECE_BYTES + 4));
        }
    }

    #[test]
    fn a_text_for_a_tokenizer_from_elsewhere_is_cut_at_lines() {
        for (text, pieces) in [
            ("ab\ncd\n", &["ab\ncd\n"][..]),
            ("ab\ncd\nefg", &["ab\ncd\n", "efg"]),
            ("ab\ncd\n\n\nefg", &["ab\n", "cd\n\n\n", "efg"]),
            ("abcd efgh", &["abcd", " efgh"]),
            ("abcdefghi", &["abcdef", "ghi"]),
        ] {
            assert_eq!(cut(TextCut::Lines { most: 6 }, text, 100), pieces, "{text:?}");
        }
    }
}
