//! Progress and cancellation of long work.

/// How far the preparation of a job's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreparationProgress {
    /// What is being done.
    pub phase: PreparationPhase,
    /// How much of it is done, in the phase's units.
    pub done: u64,
    /// How much of it there is.
    pub total: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreparationPhase {
    /// Texts are read, in bytes.
    Reading,
    /// Their words are counted, in bytes of text.
    Words,
    /// The tokenizer learns, in tokens of its vocabulary.
    Merges,
    /// Texts become tokens, in bytes of text.
    Encoding,
}

impl std::fmt::Display for PreparationProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PreparationProgress { phase, done, total } = *self;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let mut of_bytes =
            |what: &str| write!(f, "{what}: {:.1} of {:.1} MB", megabytes(done), megabytes(total));
        match phase {
            PreparationPhase::Reading => of_bytes("reading the text"),
            PreparationPhase::Words => of_bytes("counting the words of the text"),
            PreparationPhase::Merges => write!(f, "training the tokenizer: {done} of {total} tokens"),
            PreparationPhase::Encoding => of_bytes("tokenizing the text"),
        }
    }
}

/// The work was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("preparing the data was stopped")]
pub struct Stopped;

/// Called with progress from any thread; an error stops the work.
pub type Watch<'a> = &'a (dyn Fn(PreparationProgress) -> Result<(), Stopped> + Sync);
