//! A plan as a person reads it: the ranks, what each holds and needs, and the grid of the schedule.

use std::collections::BTreeSet;
use std::fmt;

use coxswain_types::assignment::{Recompute, Stage};
use coxswain_types::axis::AXES;
use coxswain_types::job::{Block, Precision, Schedule};
use coxswain_types::params::ParameterRow;
use coxswain_types::{Assignment, WorkerId};

use super::{Memory, Plan};
use crate::columns::aligned;

/// Characters of a row of the grid, where no screen's width is given (`{:80}`). The rest of a long step looks
/// the same; `{:#}` prints it.
const GRID_WIDTH: usize = 96;

/// Characters before and after a row of the grid: `pipeline 12 ` and ` … 123 more`.
const BESIDE_GRID: usize = 23;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.assignments.first() else { return f.write_str("a plan without ranks") };
        head_line(f, first)?;
        let memory = self.memory();
        let rows = self.assignments.iter().zip(&memory).map(|(a, memory)| rank_row(a, memory));
        table(f, &rows.collect::<Vec<_>>())?;
        super::breakdown::print(f, &memory)?;
        if !self.spares.is_empty() {
            let names: Vec<_> = self.spares.iter().map(|WorkerId(name)| name.as_str()).collect();
            writeln!(f, "spare: {} (every rank is taken)", names.join(", "))?;
        }
        writeln!(f)?;
        let width = f.width().map_or(GRID_WIDTH, |screen| screen.saturating_sub(BESIDE_GRID));
        f.write_str(&self.grid(if f.alternate() { None } else { Some(width) }))
    }
}

impl Plan {
    /// The model's parameters, each counted once.
    pub fn parameters(&self) -> u64 {
        let rows = self.assignments.iter().flat_map(|a| &a.parameters);
        rows.filter(|row| row.saves).map(ParameterRow::elements).sum()
    }
}

/// A schedule as people call it.
pub(super) fn schedule_name(schedule: Schedule) -> String {
    match schedule {
        Schedule::GPipe => "GPipe".to_owned(),
        Schedule::OneFOneB => "1F1B".to_owned(),
        Schedule::Interleaved { chunks } => format!("interleaved 1F1B, {chunks} stages a rank"),
        Schedule::ZbH1 => "ZB-H1".to_owned(),
        Schedule::Custom { chunks: 1 } => "custom".to_owned(),
        Schedule::Custom { chunks } => format!("custom, {chunks} stages a rank"),
    }
}

/// A number of things, with their noun.
pub(crate) fn counted(n: impl Into<u64>, one: &str, many: &str) -> String {
    let n = n.into();
    format!("{n} {}", if n == 1 { one } else { many })
}

fn head_line(f: &mut fmt::Formatter<'_>, a: &Assignment) -> fmt::Result {
    let (layout, train) = (&a.spec.layout, &a.spec.train);
    let parts = [
        format!("job {}", a.job),
        format!("generation {}", a.generation),
        AXES.map(|axis| format!("{} {}", axis.name, layout.ways(&axis))).join(" x "),
        counted(a.world, "worker", "workers"),
        counted(a.threads, "thread each", "threads each"),
    ];
    let more = [
        (train.precision != Precision::Fp32).then(|| train.precision.name().to_owned()),
        layout.sequence_parallel.then(|| "sequence parallel".to_owned()),
        layout.zero.then(|| "ZeRO-1".to_owned()),
    ];
    let parts: Vec<_> = parts.into_iter().chain(more.into_iter().flatten()).collect();
    writeln!(f, "{}", parts.join(" · "))?;
    let rows = a.spec.model.all_layers();
    let tokens =
        u64::from(train.global_micro_batches) * u64::from(train.micro_batch_size) * u64::from(train.sequence);
    let parts = [
        counted(rows, "layer", "layers"),
        format!(
            "{} of {} x {} tokens",
            counted(train.global_micro_batches, "micro-batch", "micro-batches"),
            train.micro_batch_size,
            train.sequence
        ),
        counted(train.gradient_groups, "gradient group", "gradient groups"),
        format!("{tokens} tokens a step"),
    ];
    writeln!(f, "{}", parts.join(" · "))
}

const COLUMNS: [&str; 9] =
    ["rank", "data", "pipeline", "tensor", "worker", "holds", "recomputes", "params", "peak tensors"];
/// The columns of words start at the left, those of numbers end at the right.
const WORDS: [bool; 9] = [false, false, false, false, true, true, true, false, false];

/// The column that is printed only where a rank recomputes something, and what it says else.
const RECOMPUTES: usize = 6;
const NOTHING: &str = "nothing";

fn rank_row(a: &Assignment, memory: &Memory) -> [String; 9] {
    [
        a.rank.to_string(),
        a.data_index.to_string(),
        a.pipeline_index.to_string(),
        a.tensor_index.to_string(),
        a.worker.to_string(),
        holds(a),
        recomputes(a),
        millions(held_parameters(a)),
        mebibytes(memory.tensor_bytes()),
    ]
}

/// Parameters of a rank, each counted once.
pub(super) fn held_parameters(a: &Assignment) -> u64 {
    let mut seen = BTreeSet::new();
    let rows = a.parameters.iter().filter(|row| seen.insert((&row.name, row.offset)));
    rows.map(ParameterRow::elements).sum()
}

/// The parts of the model on a rank, stage by stage.
pub(super) fn holds(a: &Assignment) -> String {
    let stage = |stage: &Stage| {
        let layers = format!("layers {}..{}", stage.layers.start, stage.layers.end);
        let parts = [stage.embedding.then_some("embed"), Some(&layers), stage.head.then_some("head")];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    a.stages.iter().map(stage).collect::<Vec<_>>().join(", ")
}

/// How many layers of a rank are computed again.
fn recomputes(a: &Assignment) -> String {
    let modes: Vec<_> = a.stages.iter().flat_map(|stage| &stage.recompute).collect();
    let what = match modes.iter().find(|mode| ***mode != Recompute::Nothing) {
        None => return NOTHING.to_owned(),
        Some(Recompute::Block(Block::Attention)) => "attention of ",
        Some(Recompute::Block(Block::Ffn)) => "ffn of ",
        Some(_) => "",
    };
    let count = modes.iter().filter(|mode| ***mode != Recompute::Nothing).count();
    format!("{what}{count} of {}", counted(modes.len() as u64, "layer", "layers"))
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[[String; 9]]) -> fmt::Result {
    // A column that says the same of every rank in every plan but a few is left out of the others.
    let idle = rows.iter().all(|row| row[RECOMPUTES] == NOTHING);
    let shown: Vec<usize> = (0..COLUMNS.len()).filter(|column| !idle || *column != RECOMPUTES).collect();
    let titles = COLUMNS.map(str::to_owned);
    let cells = |row: &[String; 9]| shown.iter().map(|&column| row[column].clone()).collect::<Vec<_>>();
    let lines: Vec<_> = std::iter::once(&titles).chain(rows).map(cells).collect();
    f.write_str(&aligned(&lines, |at| !WORDS[shown[at]]))
}

fn millions(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1}K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        _ => format!("{:.2}B", n as f64 / 1e9),
    }
}

/// Bytes for people, in MiB, or in GiB from 1024 MiB on.
pub(crate) fn mebibytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
