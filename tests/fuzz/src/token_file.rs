//! Any bytes are a token file and the list of its digests that can be read as far as they fit, or are refused.

use std::path::Path;

use coxswain_files::atomic::digest_bytes;
use coxswain_files::{OpenTokenFile, Samples};
use coxswain_types::assignment;

use crate::folder;

/// Reads a line with the path of the token file, a line with the number of its tokens, the 32 bytes of its list of
/// digests, and its tokens.
pub fn run(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let (Some(path), Some(count), Some(rest)) = (lines.next(), lines.next(), lines.next()) else { return };
    let (Ok(path), Ok(count)) = (std::str::from_utf8(path), std::str::from_utf8(count)) else { return };
    let (list, tokens) = rest.split_at(rest.len().min(32));
    let mut file = assignment::TokenFile {
        path: path.to_owned(),
        tokens: count.parse().unwrap_or(tokens.len() as u64 / 4),
        digest: digest_bytes(list),
    };
    folder::with(&[("t", tokens), ("t.digests", list)], |folder| {
        read(folder, &file);
        file.path = "t".to_owned();
        read(folder, &file);
    });
}

fn read(folder: &Path, named: &assignment::TokenFile) {
    let Ok(file) = OpenTokenFile::open(&folder.into(), named) else { return };
    let mut all = vec![0; usize::try_from(file.len()).expect("an open file's tokens")];
    let whole = file.read(0, &mut all).is_ok();
    let samples = Samples::new(file.len(), 3, 1);
    for sample in 0..samples.windows().min(9) {
        let part = file.read(samples.start(sample), &mut [0; 3]);
        assert!(part.is_ok() || !whole, "{part:?}");
    }
}
