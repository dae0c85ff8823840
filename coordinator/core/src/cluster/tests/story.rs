//! Stories with a cranked clock. A line is a time in milliseconds and what happens; the print is
//! each line with what follows from it.
//!
//! ```text
//! 0 submit demo pp=2 steps=4          0 prepared demo-1 resume=2     0 prepared demo-1 resume=2 with=libtorch-2.12
//! 0 w0 idle serves=demo-*             0 w1 g1 running step=3 reports=2..3 saved=2 published=2
//! 0 lost w1 its connection closed     0 w1 g1 failed: peer closed
//! 0 cancel demo-1 enough              0 w1 g1 cut-off: no answer     0 w1 g1 leaving: SIGTERM
//! 0 w1 g1 broken: CUDA error     0 w1 g1 damaged: model-g1-r001.safetensors has another digest
//! 0 cancel-now demo-1 enough
//! 0 drain w1 maintenance     0 w1 g1 running leaves=SIGTERM
//! 0 w1 g1 running doing=1F3 for=900 waits=0 last=1F2     0 w1 g1 running step=3 busy=900     0 explain demo-1
//! 0 w1 g2 running step=3 begun=memory
//! 0 planned (what was asked of a job whose name begins with `slow`)
//! 9000 paused 8000
//! 0 written late-1 3     0 synced late-1 4 (of a job whose name begins with `late`)
//! 0 tick     0 desired w0     0 jobs    0 submit demo wait steps=4 (waits when workers are lost)
//! 0 submit demo wait rebalance dp=2 (divides work anew)     0 submit demo minutes=1 (saves each minute)
//! ```

use std::collections::{BTreeMap, VecDeque};

use coxswain_types::activity::{Activity, EngineWork};
use coxswain_types::assignment::{PreparedData, Resume, TokenFile};
use coxswain_types::ids::{Generation, Rank, Step, WorkerId};
use coxswain_types::job::{
    CheckpointSpec, DataSpec, JobSpec, Layout, LossScale, ModelSpec, OnLoss, OptimizerKind, OptimizerSpec,
    Precision, RateSchedule, RecomputePolicy, RecoverySpec, Reduction, Schedule, TrainSpec,
};
use coxswain_types::status::{
    Begun, Fault, Origin, Pace, Phase, Published, Saved, SavedFile, StepReport, WorkerInfo, WorkerStatus,
};

use crate::cluster::{
    CancelWhen, CheckDepth, Cluster, Effect, Entry, Event, Planning, PreparedJob, Submission, Weight,
};

pub(super) fn spec(name: &str, layout: Layout, steps: u64) -> JobSpec {
    let model = ModelSpec::llama(4, 32, 4, 2, 64, 64);
    let optimizer = OptimizerSpec {
        kind: OptimizerKind::AdamW,
        momentum: 0.95,
        schedule: RateSchedule::Cosine,
        learning_rate: 1e-3,
        min_learning_rate: 1e-4,
        warmup_steps: 1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip_norm: 1.0,
    };
    let train = TrainSpec {
        steps,
        seed: 1,
        sequence: 16,
        micro_batch_size: 1,
        global_micro_batches: 4,
        gradient_groups: 4,
        threads: None,
        reduction: Reduction::Canonical,
        tensor_shards: None,
        precision: Precision::Fp32,
        loss_scale: LossScale { initial: 65536.0, growth_steps: 2000 },
        non_finite_max: 10,
        dropout: 0.0,
        attention_dropout: 0.0,
        recompute: RecomputePolicy::None,
        optimizer,
        validate_every: 0,
        parameter_norms: false,
        mask_rate: 0.15,
        corruption: coxswain_types::job::Corruption::Spans,
        separate_documents: false,
        whole_words: false,
        pairs: false,
        start_from: None,
    };
    JobSpec {
        name: name.to_owned(),
        model,
        data: DataSpec::Synthetic { tokens: 4096 },
        train,
        layout,
        actions: Vec::new(),
        checkpoint: CheckpointSpec { every: 2, every_minutes: 10, keep: 2 },
        recovery: RecoverySpec { on_loss: OnLoss::Fail, peer_replica: false, rebalance: false },
        priority: 0,
    }
}

fn report(step: u64) -> StepReport {
    StepReport {
        step,
        loss: 4.0,
        grad_norm: 1.0,
        learning_rate: 1e-3,
        tokens: 64,
        tokens_per_second: 640.0,
        step_seconds: 0.1,
        skipped: false,
        loss_scale: None,
        parameter_norms: BTreeMap::new(),
        validation: None,
    }
}

fn prepared(resume: Option<u64>, runtime: Option<&str>) -> PreparedJob {
    let train = TokenFile { path: "tokens".into(), tokens: 4096, digest: "t".into() };
    let resume = resume.map(|step| Resume {
        step: Step(step),
        path: format!("checkpoints/{step}"),
        digest: format!("m{step}"),
    });
    let threads = resume.as_ref().map(|_| 3);
    let runtime = resume.as_ref().map(|_| runtime.unwrap_or("libtorch 2.11").replace('-', " "));
    PreparedJob { data: PreparedData::of_tokens(train), threads, runtime, resume }
}

/// `key=value` among the words.
fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u64> {
    value(words, key).map(|text| text.parse().unwrap())
}

/// A worker named `wN`, or `wN'` for a newer process of that name, or `wN*` with another libtorch.
pub(super) fn info(name: &str) -> WorkerInfo {
    let id = name.trim_end_matches(['\'', '*']);
    let place: u32 = id[1..].parse().unwrap();
    WorkerInfo {
        id: WorkerId(id.to_owned()),
        incarnation: if name.ends_with('\'') { 2 } else { 1 },
        host: "alpha".to_owned(),
        pid: 100 + place,
        cores: 2,
        device: "cpu".to_owned(),
        runtime: if name.ends_with('*') { "libtorch 2.12" } else { "libtorch 2.11" }.to_owned(),
        serves: None,
    }
}

fn status(cluster: &Cluster, name: &str, words: &[&str], line: &str) -> WorkerStatus {
    let info = WorkerInfo { serves: value(words, "serves").map(str::to_owned), ..info(name) };
    let generation = words[0].strip_prefix('g').map_or(0, |g| g.parse().unwrap());
    let desired = cluster.desired(&info.id);
    let phase = match words.iter().find(|word| !word.starts_with('g') && !word.contains('=')).copied() {
        Some("idle") => Phase::Idle,
        Some("preparing") => Phase::Preparing,
        Some("running") => Phase::Running,
        Some("done") => Phase::Done,
        Some(word @ ("failed:" | "cut-off:" | "leaving:" | "broken:" | "damaged:" | "parted:")) => {
            Phase::Failed {
                message: line.split_once(": ").unwrap().1.to_owned(),
                fault: match word {
                    "failed:" => Fault::Own,
                    "leaving:" => Fault::Leaving,
                    "broken:" => Fault::Device,
                    "damaged:" => Fault::Checkpoint,
                    "parted:" => Fault::Path { peer: Rank(number(words, "from").unwrap() as u32) },
                    _ => Fault::Peer,
                },
            }
        }
        other => panic!("{other:?} in `{line}`"),
    };
    let reports = value(words, "reports").map_or(vec![], |range| {
        let (first, last) = range.split_once("..").unwrap();
        (first.parse().unwrap()..=last.parse().unwrap()).map(report).collect()
    });
    let file = |step| SavedFile { name: format!("{}-{step}", info.id), bytes: 1, digest: "d".into() };
    WorkerStatus {
        generation: Generation(generation),
        assignment_digest: desired.assignment_digest.filter(|_| desired.generation.0 == generation),
        phase,
        step: Step(number(words, "step").unwrap_or(0)),
        reports,
        saved: number(words, "saved").map(|step| Saved { step: Step(step), files: vec![file(step)] }),
        published: number(words, "published")
            .map(|step| Published { step: Step(step), digest: format!("m{step}") }),
        peak_tensor_bytes: 0,
        leaving: value(words, "leaves").map(str::to_owned),
        activity: value(words, "doing").map(|doing| Activity {
            step: Step(number(words, "step").unwrap_or(0) + 1),
            doing: EngineWork::Action(doing.parse().expect(doing)),
            for_ms: number(words, "for").unwrap_or(0),
            waits_for: number(words, "waits").map(|rank| Rank(rank as u32)),
            last: value(words, "last").map(|last| last.parse().expect(last)),
            still_ms: number(words, "still").unwrap_or(0),
        }),
        pace: number(words, "busy")
            .map(|busy_us| Pace { step: Step(number(words, "step").unwrap_or(0)), busy_us }),
        begun: value(words, "begun").map(|origin| Begun {
            step: Step(number(words, "step").unwrap_or(0)),
            origin: match origin {
                "memory" => Origin::Memory,
                "checkpoint" => Origin::Checkpoint,
                "initial" => Origin::Initial,
                other => panic!("{other} in `{line}`"),
            },
        }),
        info,
    }
}

fn event(cluster: &Cluster, verb: &str, words: &[&str], line: &str) -> Event {
    let rest = || words[1..].join(" ");
    match verb {
        "submit" => {
            let axis = |key| number(words, key).unwrap_or(1) as u32;
            let layout = Layout {
                pipeline: axis("pp"),
                tensor: axis("tp"),
                data: axis("dp"),
                schedule: Schedule::OneFOneB,
                sequence_parallel: false,
                zero: false,
            };
            let mut spec = spec(words[0], layout, number(words, "steps").unwrap());
            if words.contains(&"wait") {
                spec.recovery.on_loss = OnLoss::Wait;
            }
            spec.recovery.rebalance = words.contains(&"rebalance");
            spec.train.threads = number(words, "threads").map(|threads| threads as u32);
            if words.contains(&"shrink") {
                spec.recovery.on_loss = OnLoss::Shrink;
            }
            if let Some(minutes) = number(words, "minutes") {
                spec.checkpoint.every_minutes = minutes as u32;
            }
            spec.priority = value(words, "priority").map_or(0, |text| text.parse().unwrap());
            // Each job has a folder of its own.
            let directory = format!("/runs/{}", cluster.jobs().len());
            let job = cluster.next_job(words[0], &directory).unwrap();
            Event::Submitted(Box::new(Submission { job, spec, directory, chosen: None }))
        }
        "prepared" => {
            let found = prepared(number(words, "resume"), value(words, "with"));
            Event::Prepared { job: words[0].to_owned(), result: Ok(found) }
        }
        "unprepared" => Event::Prepared { job: words[0].to_owned(), result: Err(rest()) },
        "lost" => {
            let info = info(words[0]);
            Event::Lost { worker: info.id, incarnation: info.incarnation, why: rest() }
        }
        "cancel" | "cancel-now" => {
            let when = if verb == "cancel" { CancelWhen::AfterStep } else { CancelWhen::Now };
            Event::Cancelled { job: words[0].to_owned(), reason: rest(), when }
        }
        "drain" => Event::Drain { worker: info(words[0]).id, reason: rest() },
        "broken" => Event::Broken { job: words[0].to_owned(), reason: rest() },
        "dismiss" => Event::Dismissed { reason: words.join(" ") },
        "paused" => Event::Paused { for_ms: words[0].parse().unwrap() },
        "written" | "synced" => {
            let (job, step) = (words[0].to_owned(), Step(words[1].parse().unwrap()));
            Event::Written { job, step, synced: verb == "synced" }
        }
        "tick" => Event::Tick,
        name => Event::Seen { status: status(cluster, name, words, line) },
    }
}

fn effect_text(effect: &Effect) -> String {
    match effect {
        Effect::Record(entry) => format!("record {}", entry_text(entry)),
        Effect::Prepare { job, look: CheckDepth::Manifest } => format!("prepare {job}"),
        Effect::Prepare { job, look: CheckDepth::Whole } => format!("prepare {job}, looking at every byte"),
        Effect::Plan(planning) => format!("plan {}", planning.job),
        Effect::Wake(worker) => format!("wake {worker}"),
        Effect::Refuse { worker, incarnation, reason } => format!("refuse {worker}/{incarnation}: {reason}"),
        Effect::Report { job, report } => format!("report {job} step {}", report.step),
        Effect::Sync { job, step } => format!("sync {job} to step {step}"),
        Effect::Prune { job, newest, keep } => format!("prune {job} to {keep} up to {newest}"),
        Effect::Notice(notice) => {
            let weight = if notice.weight == Weight::Warning { "warn" } else { "info" };
            format!("{weight}: {}", notice.text)
        }
    }
}

pub(super) fn entry_text(entry: &Entry) -> String {
    match entry {
        Entry::Compacted { entries, .. } => format!("compacted {entries}"),
        Entry::Started { epoch } => format!("started {epoch}"),
        Entry::Submitted(submission) => format!("submitted {}", submission.job),
        Entry::Preparing { job, tries } => format!("preparing {job} try {tries}"),
        Entry::Prepared { job } => format!("prepared {job}"),
        Entry::Formed { job, generation, ranks, threads, from, .. } => {
            let ranks: Vec<_> = ranks.iter().map(|rank| rank.worker.0.as_str()).collect();
            format!("formed {job} g{generation} [{}] threads {threads} from {from}", ranks.join(" "))
        }
        Entry::Begun { job, generation, step, again, .. } => {
            format!("begun {job} g{generation} at step {step}, {again} again")
        }
        Entry::Stopping { job, generation, reason, .. } => format!("stopping {job} g{generation}: {reason}"),
        Entry::Saving { job, generation, after, .. } => {
            format!("saving {job} g{generation} after step {after}")
        }
        Entry::Cancelling { job, reason } => format!("cancelling {job}: {reason}"),
        Entry::Regrouped { job, generation, step, reason } => {
            format!("regrouped {job} g{generation} after step {step}: {reason}")
        }
        Entry::Noted { kind, .. } => format!("noted {}", kind.name()),
        Entry::Drained { worker, incarnation, reason } => format!("drained {worker}/{incarnation}: {reason}"),
        Entry::Interrupted { job, generation, reason } => {
            format!("interrupted {job} g{generation}: {reason}")
        }
        Entry::Committed { job, step, files, .. } => {
            let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
            format!("committed {job} step {step} [{}]", names.join(" "))
        }
        Entry::Published { job, checkpoint } => {
            format!("published {job} step {} {}", checkpoint.step, checkpoint.digest)
        }
        Entry::Ended { job, ending, .. } => format!("ended {job} {ending:?}"),
    }
}

fn desired_text(cluster: &Cluster, name: &str) -> String {
    let desired = cluster.desired(&info(name).id);
    let assignment = match (&desired.assignment_digest, &desired.assignment) {
        (None, _) => "idle",
        (Some(_), None) => "named",
        (Some(_), Some(_)) => "assignment",
    };
    format!(
        "g{} {assignment} run_to {} acknowledged {}{}{}{}",
        desired.generation,
        desired.run_to,
        desired.acknowledged,
        if desired.save_after > Step(0) {
            format!(" save after {}", desired.save_after)
        } else {
            String::new()
        },
        desired.publish.map_or(String::new(), |publish| format!(" publish {}", publish.step)),
        desired.leave.map_or(String::new(), |leave| format!(" leave: {}", leave.reason)),
    )
}

/// The plan, as the shell makes it.
fn planned(planning: &Planning) -> Event {
    Event::Planned { ticket: planning.ticket, result: planning.plan() }
}

/// Tells the story to `cluster`; a plan is made as soon as it is asked for, but that of a job named `slow`, which
/// comes with `planned`, and reports are written down as soon as they are there, but those of a job named `late`,
/// which are with `written`. Returns its print and what the journal holds.
pub(super) fn tell_to(cluster: &mut Cluster, story: &str) -> (String, Vec<Entry>) {
    let mut print = String::new();
    let mut journal = Vec::new();
    let mut plans: Vec<Planning> = Vec::new();
    for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
        print.push_str(&format!("{line}\n"));
        let words: Vec<_> = line.split_whitespace().collect();
        let (now_ms, verb, words) = (words[0].parse().unwrap(), words[1], &words[2..]);
        match verb {
            "desired" => print.push_str(&format!("    {}\n", desired_text(cluster, words[0]))),
            "explain" => {
                let text = cluster.explain(words[0], None).unwrap();
                let indented = text.lines().map(|line| format!("    {line}"));
                indented.for_each(|line| print.push_str(&format!("{}\n", line.trim_end())));
            }
            "deadline" => print.push_str(&format!("    {:?}\n", cluster.next_deadline_ms())),
            "jobs" => {
                for job in cluster.jobs() {
                    let (state, step, reason) = (job.state, job.step, job.reason);
                    print.push_str(&format!("    {} {state:?} step {step}: {reason}\n", job.job));
                }
            }
            _ => {
                let event = match verb {
                    "planned" => planned(&plans.remove(0)),
                    _ => event(cluster, verb, words, line),
                };
                let mut effects = VecDeque::from(cluster.handle(now_ms, event));
                let mut written: VecDeque<(String, Step, bool)> = VecDeque::new();
                while let Some(effect) = next_effect(cluster, now_ms, &mut effects, &mut written) {
                    match &effect {
                        Effect::Report { job, report } if !job.starts_with("late") => {
                            written.retain(|(of, _, synced)| of != job || *synced);
                            written.push_back((job.clone(), Step(report.step), false));
                        }
                        Effect::Sync { job, step } if !job.starts_with("late") => {
                            written.push_back((job.clone(), *step, true));
                        }
                        _ => {}
                    }
                    match effect {
                        Effect::Plan(planning) if planning.job.starts_with("slow") => {
                            print.push_str(&format!("    plan {}\n", planning.job));
                            plans.push(*planning);
                        }
                        Effect::Plan(planning) => effects.extend(cluster.handle(now_ms, planned(&planning))),
                        effect => {
                            print.push_str(&format!("    {}\n", effect_text(&effect)));
                            if let Effect::Record(entry) = effect {
                                journal.push(entry);
                            }
                        }
                    }
                }
            }
        }
    }
    (print, journal)
}

/// The next effect. After the last one the waiting reports are written, which may cause more.
fn next_effect(
    cluster: &mut Cluster,
    now_ms: u64,
    effects: &mut VecDeque<Effect>,
    written: &mut VecDeque<(String, Step, bool)>,
) -> Option<Effect> {
    while effects.is_empty() {
        let (job, step, synced) = written.pop_front()?;
        effects.extend(cluster.handle(now_ms, Event::Written { job, step, synced }));
    }
    effects.pop_front()
}

/// The print of a story that starts with nothing.
pub(super) fn tell(story: &str) -> String {
    tell_to(&mut Cluster::default(), story).0
}
