//! What a worker says of itself and what is wanted of it. Both are levels, not edges: any message
//! may be lost or repeated, and the newest tells all.

use std::collections::BTreeMap;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::activity::Activity;
use crate::ids::{Generation, Rank, Step, WorkerId};

/// What a worker is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its name.
    pub id: WorkerId,
    /// Grows each time a process starts under the same name (nanoseconds since the epoch at its start).
    pub incarnation: u64,
    /// The machine it runs on.
    pub host: String,
    /// Its process id, for people.
    pub pid: u32,
    /// Cores that the machine has.
    pub cores: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// The libtorch it is linked to and what the processor offers it, as one comparable text.
    pub runtime: String,
    /// The jobs that it may be given: one id, or a beginning of ids with `*` behind it; all where it is
    /// `None`. The coordinator knows this of a worker, which says nothing of it itself.
    pub serves: Option<String>,
}

impl WorkerInfo {
    /// Whether it may be given this job.
    pub fn serves(&self, job: &str) -> bool {
        self.serves.as_deref().is_none_or(|jobs| id_matches(jobs, job))
    }
}

/// Whether `jobs`, one id or a beginning of ids with `*` behind it, has this one among them.
pub fn id_matches(jobs: &str, job: &str) -> bool {
    jobs.strip_suffix('*').map_or(jobs == job, |beginning| job.starts_with(beginning))
}

/// How far a worker has come with its assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has no assignment.
    Idle,
    /// It joins groups, builds its stage and loads values.
    Preparing,
    /// It trains.
    Running,
    /// It has taken the last step and its checkpoint is committed.
    Done,
    /// It could not go on.
    Failed {
        /// What happened, for people.
        message: String,
        /// Whose fault it is.
        fault: Fault,
    },
}

/// Whose fault it is that a worker could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its own: another try would fail in the same way.
    Own,
    /// A peer's: an exchange with it failed.
    Peer,
    /// The network's between this rank and that one: nothing came back. Both may be well.
    Path {
        /// The rank that did not answer.
        peer: Rank,
    },
    /// No fault: it was asked to stop, and leaves.
    Leaving,
    /// Its device's or its memory's: libtorch failed. The process ends, since neither can be trusted any more.
    Device,
    /// The checkpoint's: a file of the checkpoint to resume from is damaged.
    Checkpoint,
}

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Who it is.
    pub info: WorkerInfo,
    /// The generation of its assignment.
    pub generation: Generation,
    /// The digest of its assignment, if it has one.
    pub assignment_digest: Option<String>,
    /// How far it has come.
    pub phase: Phase,
    /// Steps that it has applied.
    pub step: Step,
    /// Lead rank only: steps that the coordinator has not acknowledged yet, oldest first.
    pub reports: Vec<StepReport>,
    /// The shard files it wrote for the oldest checkpoint that it does not know to be decided.
    pub saved: Option<Saved>,
    /// Lead rank only: the newest checkpoint whose manifest it has published.
    pub published: Option<Published>,
    /// The most bytes that tensors took at once.
    pub peak_tensor_bytes: u64,
    /// It was asked to stop, and why: it wants its place to be taken at a step's end, and works until then.
    pub leaving: Option<String>,
    /// What its engine does now.
    pub activity: Option<Activity>,
    /// How long its newest step took it.
    pub pace: Option<Pace>,
    /// Where its assignment began to train, once it has.
    pub begun: Option<Begun>,
}

impl WorkerStatus {
    /// Of a worker that has nothing to do and heard of `generation` last.
    pub fn idle(info: WorkerInfo, generation: Generation) -> WorkerStatus {
        WorkerStatus {
            info,
            generation,
            assignment_digest: None,
            phase: Phase::Idle,
            step: Step(0),
            reports: Vec::new(),
            saved: None,
            published: None,
            peak_tensor_bytes: 0,
            leaving: None,
            activity: None,
            pace: None,
            begun: None,
        }
    }
}

/// The state that a generation began to train from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Steps taken in it.
    pub step: Step,
    /// Where it was.
    pub origin: Origin,
}

/// Where a generation found its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nowhere: the initial values.
    Initial,
    /// In a checkpoint.
    Checkpoint,
    /// In the memory of its ranks.
    Memory,
}

/// How long a step took a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Which step.
    pub step: Step,
    /// The time in which it waited for no other rank, in microseconds.
    pub busy_us: u64,
}

/// One step, as the lead rank saw it in the closing exchange.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step that was taken, counted from 1.
    pub step: u64,
    /// Mean loss per token, in nats. Not finite in some skipped steps.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// The global gradient norm before clipping. Not finite in some skipped steps.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// The rate that was used.
    pub learning_rate: f64,
    /// Tokens of the step.
    pub tokens: u64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Seconds that the step took.
    pub step_seconds: f64,
    /// Whether no weight was changed, because the loss or a gradient was not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub skipped: bool,
    /// What the loss was multiplied by, in fp16.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss_scale: Option<f64>,
    /// The gradient norm of each parameter before clipping, where the job asks for them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default, deserialize_with = "numbers_or_nulls")]
    pub parameter_norms: BTreeMap<String, f64>,
    /// The validation loss, after steps that were followed by an evaluation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation: Option<ValidationResult>,
}

/// A number that JSON may have had no word for: it writes NaN and the infinities as null, and null
/// is read as NaN.
fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn numbers_or_nulls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let numbers = BTreeMap::<String, Option<f64>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|(name, number)| (name, number.unwrap_or(f64::NAN))).collect())
}

/// The validation loss. Written out, it shows its perplexity too.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct ValidationResult {
    /// Mean loss per token, in nats.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// The loss of the whole text over its bytes, in bits; NaN where tokens are asked for that see what
    /// follows them.
    #[serde(deserialize_with = "number_or_null")]
    pub bits_per_byte: f64,
    /// The share of validation lines classified correctly; `None` unless the job has classes.
    #[serde(default)]
    pub accuracy: Option<f64>,
}

impl ValidationResult {
    /// `exp(loss)`: among how many equally likely tokens the model hesitates.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

impl Serialize for ValidationResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut validation =
            serializer.serialize_struct("ValidationResult", 3 + usize::from(self.accuracy.is_some()))?;
        validation.serialize_field("loss", &self.loss)?;
        validation.serialize_field("perplexity", &self.perplexity())?;
        validation.serialize_field("bits_per_byte", &self.bits_per_byte)?;
        if let Some(accuracy) = self.accuracy {
            validation.serialize_field("accuracy", &accuracy)?;
        }
        validation.end()
    }
}

/// A rank's part of a checkpoint, on disk and synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// After which step.
    pub step: Step,
    /// Its files.
    pub files: Vec<SavedFile>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// Its name inside the checkpoint's folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its blake3 digest, in hex.
    pub digest: String,
}

/// A manifest that readers can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// After which step.
    pub step: Step,
    /// The manifest's blake3 digest, in hex.
    pub digest: String,
}

/// What is wanted of a worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DesiredState {
    /// The directive's number, which grows when it changes; the least that all ranks have seen rules.
    pub revision: u64,
    /// The generation it belongs to.
    pub generation: Generation,
    /// The digest of the wanted assignment; `None` wants the worker idle.
    pub assignment_digest: Option<String>,
    /// The assignment itself, as JSON, while the worker does not name its digest.
    pub assignment: Option<String>,
    /// Train up to this step.
    pub run_to: Step,
    /// Save after the first step from this one on, where nothing as new is saved.
    pub save_after: Step,
    /// Lead rank only: publish the manifest of this checkpoint.
    pub publish: Option<Publish>,
    /// Checkpoints up to this step are decided: what a rank saved later may be told.
    pub decided: Step,
    /// Lead rank only: reports up to this step have been recorded.
    pub acknowledged: Step,
    /// That the worker should end its process.
    pub leave: Option<Leave>,
}

/// What is asked of all ranks of a run. Of those that they have seen the one with the least revision rules, from
/// the next step on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Directive {
    /// The number of what is asked for.
    pub revision: u64,
    /// Train up to this step.
    pub run_to: Step,
    /// Save after the first step from this one on, where nothing as new is saved.
    pub save_after: Step,
}

impl Directive {
    /// Before anything was asked for.
    pub const NONE: Directive = Directive { revision: 0, run_to: Step(u64::MAX), save_after: Step(0) };
}

impl DesiredState {
    /// What is asked of all ranks.
    pub fn directive(&self) -> Directive {
        Directive { revision: self.revision, run_to: self.run_to, save_after: self.save_after }
    }
}

/// Why a worker should end its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// What for: the process says so by its exit code.
    pub cause: LeaveCause,
    /// The reason, for people.
    pub reason: String,
}

/// What a worker's process ends for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveCause {
    /// A user drained it.
    Drained,
    /// The coordinator ends, and with it all work.
    Dismissed,
    /// It was asked to stop, and said so ([`WorkerStatus::leaving`]).
    Asked,
    /// The coordinator does not take this process, or not any more; another process may do better.
    Refused,
}

/// A checkpoint that has been decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// After which step.
    pub step: Step,
    /// The files of all ranks, by name.
    pub files: Vec<SavedFile>,
}
