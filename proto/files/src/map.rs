//! A file as memory: the crate's only unsafe code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A file that was written once, mapped for reading.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps a file that was written by [`crate::atomic`].
    ///
    /// # Errors
    /// Those of mapping the file.
    pub(crate) fn of(file: &File) -> io::Result<Map> {
        // SAFETY: a mapping is sound as long as the file beneath it is neither changed nor cut. This one
        // is opened for reading and mapped read-only, and the files that this is used for are written
        // under another name and appear by rename (`crate::atomic`): what is prepared anew is another
        // inode, and no code of ours opens a finished file for writing. Only a foreign program that
        // edits a run's data folder in place could break that, and the folder belongs to the run.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Map(map))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
