//! Stable names of refusals, for programs. Messages may be worded anew in any version; a code keeps its meaning,
//! and one that is no longer given is not given another meaning.
//!
//! A code names what kind of thing is wrong; a fault of the job file names its key beside it.

/// The codes with their names and meanings, each in one place.
macro_rules! codes {
    ($($code:ident $name:literal $meaning:literal;)+) => {
        /// A stable name of a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $code,)+
        }

        impl ErrorCode {
            /// All codes, in the order of the reference.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$code,)+];

            /// The name, such as `job.key.unknown`.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$code => $name,)+ }
            }

            /// What is wrong.
            pub fn meaning(self) -> &'static str {
                match self { $(ErrorCode::$code => $meaning,)+ }
            }
        }
    };
}

codes! {
    TextTooLong "job.text.too-long" "The job file, with all `--set` values, has too many bytes.";
    TextSyntax "job.text.syntax" "The job file or a `--set` value is not the YAML that job files are written in.";
    TooManySets "job.set.too-many" "Too many `--set` values.";
    SetPath "job.set.path" "A `--set` value is not PATH=VALUE, or its path leads to no place of a job file.";
    KeyTwice "job.key.twice" "A key is given twice.";
    KeyUnknown "job.key.unknown" "A key is not known.";
    KeyMissing "job.key.missing" "A key is missing that has no default.";
    KeyNeeded "job.key.needed" "A key is missing that another choice of the job needs.";
    KeyMisplaced "job.key.misplaced" "A key is given that goes with another choice only.";
    ValueType "job.value.type" "A value is of another type than the key takes, or an unknown word.";
    ValueRange "job.value.range" "A key never takes this value, whatever the other keys are.";
    ValueConflict "job.value.conflict" "A value does not go with those of other keys.";
    PresetUnknown "job.preset.unknown" "No preset has this name.";
    LayoutOpen "job.layout.open" "A key of `layout` is `auto` where the layout has to be chosen already.";
    LayoutUnfit "plan.layout.unfit" "No layout of the job fits the given workers and their memory.";
    ClusterUnknown "plan.cluster" "The machines to plan for are not described as a cluster file is, or are not known.";
    Unwritable "job.unwritable" "A job cannot be written out. Please report it.";
    WorkersWrong "job.workers" "`--workers` is not the number of workers that the layout needs.";
    TextUnreadable "data.text.unreadable" "A text of the job cannot be read, or is not text.";
    TextsTooLarge "data.text.too-large" "The texts have more bytes than can be prepared.";
    TextsMissing "data.text.missing" "The job names no text.";
    WorkersTooFew "plan.workers.too-few" "The layout needs more workers than there are.";
    WorkerTwice "plan.worker.twice" "Two workers have one name.";
    ScheduleBroken "plan.schedule.broken" "The schedule in `layout.actions` would hang, leave work out or do it twice.";
    BudgetUnmet "plan.memory.budget" "A worker cannot stay within the budget of `train.recompute`, even if every layer is computed again.";
    PlanTooLarge "plan.too-large" "Planning the job would take too long or too much memory.";
    AssignmentTooLong "plan.assignment.too-long" "A rank's assignment is too large for one message.";
    PlannerFault "plan.fault" "The planner has a fault. Please report it.";
    QueueFull "submit.queue.full" "The queue is full.";
    DirectoryTaken "submit.directory.taken" "Another job that is not over writes to the same folder.";
    AccessUser "access.user" "The call is of another user of the machine, and the coordinator takes those of its own.";
    AccessCertificateMissing "access.certificate.missing" "The call needs a certificate.";
    AccessCertificateRevoked "access.certificate.revoked" "The caller's certificate was revoked.";
    AccessCertificateExpired "access.certificate.expired" "The caller's certificate has expired.";
    AccessRole "access.role" "The caller's role may not make this call.";
    AccessJob "access.job" "The caller may not touch this job.";
    AccessRate "access.rate" "The caller makes too many calls.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect_file;

    use super::ErrorCode;

    #[test]
    fn names_are_unique_and_plain() {
        let names: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        let plain = |c: char| c.is_ascii_lowercase() || matches!(c, '.' | '-');
        assert!(names.iter().all(|name| name.contains('.') && name.chars().all(plain)), "{names:?}");
    }

    #[test]
    fn the_page_lists_every_code() {
        let row = |code: &ErrorCode| format!("| `{}` | {} |\n", code.name(), code.meaning());
        let table = ErrorCode::ALL.iter().map(row).collect::<String>();
        let table = format!("| Code | What is wrong |\n|---|---|\n{}", table.trim_end());
        let page = include_str!("../../../docs/errors.md");
        expect_file!["../../../docs/errors.md"].assert_eq(&crate::spec::page_with(page, &[("codes", table)]));
    }
}
