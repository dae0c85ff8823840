//! Bugs that the simulator plants in the core, one at a time, to see that its rules catch each (`cargo xtask sim
//! --mutations`). A bug has a name here and stands where it would be made: [`planted!`] is `true` there while that bug
//! is planted. Without the feature `mutations` it is the constant `false`, and the compiler leaves the bug out.

/// Whether the bug of this name is planted.
macro_rules! planted {
    ($bug:ident) => {
        cfg!(feature = "mutations") && $crate::planted::is($crate::planted::Bug::$bug)
    };
}

macro_rules! bugs {
    ($($bug:ident $what:literal)*) => {
        /// What can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $bug,)*
        }

        #[cfg(feature = "mutations")]
        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug),*];

            /// What it breaks.
            pub fn what(self) -> &'static str {
                match self {
                    $(Bug::$bug => $what,)*
                }
            }
        }
    };
}

bugs! {
    // What the journal holds.
    CancelNotRecorded "That a job is cancelled and ends after a step is not written down."
    CommittedNotRecorded "A commit is not written down."
    EndedNotRecorded "The end of a job is not written down."
    EpochNotRecorded "A start is not written down, so directives of two starts have the same numbers."
    FormedNotRecorded "A generation is not written down."
    InterruptedNotRecorded "An interruption is not written down."
    PublishedNotRecorded "A published checkpoint is not written down."
    RegroupedNotRecorded "A regrouping is not written down."
    SaveNotRecorded "That ranks shall save is not written down."
    StopNotRecorded "A stop of a generation is not written down."
    SubmittedNotRecorded "A job is accepted and not written down."
    RanksInWrongOrder "The ranks are written down in another order than they have."
    WakeBeforeRecord "A desired state is sent before what it follows from is on disk."
    // What a restart makes of it.
    CancelLostAtBoot "A restart forgets that a job at work was cancelled."
    CommitLostAtBoot "A restart forgets a commit that is not yet published."
    DrainLostAtBoot "A restart forgets whom users drained."
    EndLostAtBoot "A restart starts jobs again that are over."
    GenerationResetAtBoot "A restart counts generations from 1 again."
    IncarnationLostAtBoot "A restart forgets the newest process of each name."
    InterruptionLostAtBoot "A restart takes up a generation that was given up."
    PublishedLostAtBoot "A restart publishes again what is published."
    StopLostAtBoot "A restart forgets that a generation shall stop."
    ThreadsLostAtBoot "A restart forgets with how many threads a job computes."
    ReturnWaitsForever "A coordinator that is started again waits for lost workers without end."
    // Who is here.
    DrainLostWithStream "A drain is forgotten when the worker counts as lost."
    IncarnationForgotten "The newest process of a name is forgotten with its member."
    LeaseNotRenewed "What a worker says does not renew its lease."
    LeaseOffByOne "A lease that ends now has not ended: the timer is due again at once."
    LeaseTooShort "A lease is a second shorter than it is said to be."
    LeaseWithoutTimer "No timer is set for leases."
    ReplacedKeepsSeat "A newer process of a name takes the place of the one that was formed."
    StaleIncarnation "An older process of a name is taken in."
    // What is wanted of workers.
    DecidedLost "Workers are not told which checkpoints are decided."
    NoWorkerLeaves "A coordinator that ends does not send its workers away."
    DirectiveNotRepeated "A directive that was lost is not sent again."
    DirectiveOfAnother "A worker is sent the assignment of the next rank."
    // Steps and checkpoints.
    AckCountedTwice "What a rank says twice counts as said by two ranks."
    AcknowledgedAhead "A step is acknowledged that was not recorded."
    AnyPublishCounts "A manifest counts that was not asked for."
    CheckpointBeforeMetrics "A checkpoint is committed before the reports of its steps are on disk."
    CommitWithMissingRank "A checkpoint is committed when the first rank has written."
    DoneTooEarly "A job is done before its last checkpoint can be read."
    PruneTooEarly "Old checkpoints are let go before the new one is written down."
    PruneTooMuch "One checkpoint less is kept than was asked for."
    ResumeForgotten "A job that is gathered again starts anew."
    // Losses and ends.
    BrokenDeviceEndsJob "A device that breaks ends the job."
    CancelIgnored "A job that runs cannot be cancelled."
    CancelledGoesOn "A cancelled job that stopped is gathered again."
    ComplaintNeverJudged "What a rank complains of is never believed."
    AttemptsNeverCounted "A job that is interrupted again and again never ends."
    AttemptsNeverForgiven "Interruptions count though there are new steps between them."
    ShrinksWithoutLeave "A job that says nothing of it goes on with fewer workers."
    // Who works for which job.
    OneWorkerForTwoJobs "A worker that is at work for one job is given to another."
    PlanOutlivesWorker "A plan is followed though one of its workers is not free any more."
    RebalanceUnasked "Work is divided anew in jobs that do not ask for it."
    RuntimesMixed "Workers with different libtorch compute together."
}

#[cfg(feature = "mutations")]
mod at_run_time {
    use std::sync::OnceLock;

    use super::Bug;

    static PLANTED: OnceLock<Bug> = OnceLock::new();

    impl Bug {
        /// Its name on command lines, such as `lease-too-short`.
        pub fn name(self) -> String {
            let mut name = String::new();
            for letter in format!("{self:?}").chars() {
                if letter.is_ascii_uppercase() && !name.is_empty() {
                    name.push('-');
                }
                name.push(letter.to_ascii_lowercase());
            }
            name
        }

        /// The bug of this name.
        pub fn named(name: &str) -> Option<Bug> {
            Bug::ALL.iter().copied().find(|bug| bug.name() == name)
        }
    }

    /// Plants a bug in this process, which keeps the first one to its end.
    pub fn plant(bug: Bug) {
        PLANTED.get_or_init(|| bug);
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(&bug)
    }
}

#[cfg(feature = "mutations")]
pub(crate) use at_run_time::is;
#[cfg(feature = "mutations")]
pub use at_run_time::plant;

#[cfg(not(feature = "mutations"))]
pub(crate) fn is(_: Bug) -> bool {
    false
}
