//! What is counted, each with a type of its own where a mix-up would cost a run.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counted! {
    /// A formation of workers. Generations only grow; what carries an older one is refused.
    Generation(u64)
}
counted! {
    /// A worker's place in a generation, `0..world`.
    Rank(u32)
}
counted! {
    /// A number of optimizer steps taken. Step 0 has seen no data.
    Step(u64)
}
counted! {
    /// A micro-batch of a step, `0..train.global_micro_batches`, the same in every layout.
    MicroBatch(u32)
}

impl Rank {
    /// The rank as an index into lists that run over ranks.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Step {
    /// The step that follows.
    pub fn next(self) -> Step {
        Step(self.0 + 1)
    }
}

/// A worker process. The name is the worker's own choice and is unique in a cluster; a process
/// that is started again under the same name is told apart by its incarnation
/// ([`crate::status::WorkerStatus::incarnation`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub String);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
