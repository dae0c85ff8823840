//! Text to train on: the same on every machine, with enough order in it to be learnt.

const WORDS: [&str; 24] = [
    "the", "river", "carries", "a", "small", "boat", "under", "old", "bridges", "where", "children", "wave",
    "and", "someone", "sings", "of", "harbours", "far", "away", "while", "evening", "comes", "slowly",
    "down",
];

/// `lines` lines of twelve words, each chosen by its neighbour and a counter.
pub fn text(lines: usize) -> String {
    let mut state = 12345_u64;
    let mut word = 0;
    let mut text = String::new();
    for _ in 0..lines {
        for place in 0..12 {
            // The constants are Knuth's; only the high bits are used.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let jump = [1, 1, 1, 2, 5, 7][(state >> 33) as usize % 6];
            word = (word + jump) % WORDS.len();
            text += WORDS[word];
            text += if place == 11 { ".\n" } else { " " };
        }
    }
    text
}
