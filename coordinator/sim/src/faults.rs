//! The families of faults: what each is called, and how often each has happened.

/// A kind of thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultFamily {
    /// A worker's process is killed; its peers see their connections close.
    Kill,
    /// A worker's machine is gone without a word.
    Vanish,
    /// A worker is asked to stop, and says so.
    Terminate,
    /// A worker's process is stopped for a while, and goes on.
    Pause,
    /// A worker computes several times slower for a while.
    Slow,
    /// A second process takes a worker's name while the first one lives.
    Zombie,
    /// A worker with another libtorch, with none, or from another cluster.
    Liar,
    /// Nothing passes between a worker and the coordinator, in one direction or both.
    Cut,
    /// Nothing passes between two workers for a while.
    PeerCut,
    /// The connection of two workers breaks.
    PeerReset,
    /// All messages of some workers are late together.
    Clog,
    /// A worker's connection to the coordinator breaks.
    Reset,
    /// A message is lost.
    Drop,
    /// A message comes twice.
    Duplicate,
    /// What a worker said on a connection that broke comes after what it says on the next.
    Late,
    /// A message takes much longer than others.
    Delay,
    /// The coordinator dies between two effects.
    Crash,
    /// The coordinator's machine dies while the journal is written, and a part of an entry stays.
    Torn,
    /// The coordinator's process is stopped for a while, and goes on.
    Stall,
    /// The disk of the journal is full.
    DiskFull,
    /// The disk of the journal fails.
    DiskError,
    /// A worker cannot write its part of a checkpoint.
    SaveFails,
    /// The tokens of a job cannot be made ready.
    PrepareFails,
    /// The metrics of a job cannot be written.
    MetricsFail,
    /// Clocks go faster or slower than time.
    Drift,
    /// A user cancels a job.
    Cancel,
    /// An engine does not end when it is told to, and its process ends in its place.
    Stuck,
    /// A user drains a worker.
    Drain,
    /// The device of a worker that is at work fails, and its process ends.
    Break,
}

impl FaultFamily {
    /// All of them.
    pub const ALL: [FaultFamily; 29] = [
        FaultFamily::Kill,
        FaultFamily::Vanish,
        FaultFamily::Terminate,
        FaultFamily::Pause,
        FaultFamily::Slow,
        FaultFamily::Zombie,
        FaultFamily::Liar,
        FaultFamily::Cut,
        FaultFamily::PeerCut,
        FaultFamily::PeerReset,
        FaultFamily::Clog,
        FaultFamily::Reset,
        FaultFamily::Drop,
        FaultFamily::Duplicate,
        FaultFamily::Late,
        FaultFamily::Delay,
        FaultFamily::Crash,
        FaultFamily::Torn,
        FaultFamily::Stall,
        FaultFamily::DiskFull,
        FaultFamily::DiskError,
        FaultFamily::SaveFails,
        FaultFamily::PrepareFails,
        FaultFamily::MetricsFail,
        FaultFamily::Drift,
        FaultFamily::Cancel,
        FaultFamily::Stuck,
        FaultFamily::Drain,
        FaultFamily::Break,
    ];

    /// What it is called on the command line.
    pub fn name(self) -> String {
        let name = format!("{self:?}");
        let mut words = String::new();
        for letter in name.chars() {
            if letter.is_uppercase() && !words.is_empty() {
                words.push('-');
            }
            words.extend(letter.to_lowercase());
        }
        words
    }

    /// The family of a name.
    pub fn of_name(name: &str) -> Option<FaultFamily> {
        FaultFamily::ALL.into_iter().find(|family| family.name() == name)
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Some of the families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families(u32);

impl Families {
    /// Adds one.
    pub fn with(self, family: FaultFamily) -> Families {
        Families(self.0 | family.bit())
    }

    /// Takes some away.
    pub fn without(self, others: Families) -> Families {
        Families(self.0 & !others.0)
    }

    /// Whether this one is among them.
    pub fn has(self, family: FaultFamily) -> bool {
        self.0 & family.bit() != 0
    }

    /// Those among them.
    pub fn list(self) -> Vec<FaultFamily> {
        FaultFamily::ALL.into_iter().filter(|family| self.has(*family)).collect()
    }
}

/// How often each family has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; FaultFamily::ALL.len()]);

impl Counts {
    /// Counts one.
    pub fn count(&mut self, family: FaultFamily) {
        self.0[family as usize] += 1;
    }

    /// How often this one happened.
    pub fn of(&self, family: FaultFamily) -> u64 {
        self.0[family as usize]
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    /// How often any happened.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
