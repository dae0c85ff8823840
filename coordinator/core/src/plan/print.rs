//! A plan as a person reads it: the ranks, what each holds and needs, and the grid of the schedule.

use std::fmt;
use std::ops::Range;

use coxswain_types::params::ParameterRow;
use coxswain_types::schedule::{Action, Kind};
use coxswain_types::{Assignment, WorkerId};

use super::timeline::{idle_share, timeline};
use super::{Memory, Plan};

/// Characters of a row of the grid: as many as fit on a screen. The rest of a long step looks the
/// same.
const GRID_WIDTH: usize = 96;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.assignments.first() else { return f.write_str("a plan without ranks") };
        head_line(f, first)?;
        let rows = self.assignments.iter().zip(&self.memory).map(|(a, memory)| rank_row(a, memory));
        table(f, &rows.collect::<Vec<_>>())?;
        if !self.spares.is_empty() {
            let names: Vec<_> = self.spares.iter().map(|WorkerId(name)| name.as_str()).collect();
            writeln!(f, "spare: {} (every rank is taken)", names.join(", "))?;
        }
        writeln!(f)?;
        self.grid(f)
    }
}

impl Plan {
    /// The stages of the data rank with the most micro-batches: it sets the pace.
    pub(super) fn slowest_pipeline(&self) -> Vec<&Assignment> {
        let forwards = |a: &Assignment| a.train.iter().filter(|action| action.kind == Kind::Forward).count();
        let slowest = self.assignments.iter().rev().max_by_key(|a| forwards(a)).map_or(0, |a| a.data_index);
        let on_it = |a: &&Assignment| a.data_index == slowest && a.tensor_index == 0;
        self.assignments.iter().filter(on_it).collect()
    }

    /// The share of time that stages wait, where every compute action takes as long: (p - 1) / (m +
    /// p - 1) for p stages and m micro-batches of a data rank.
    pub fn bubble(&self) -> f64 {
        let lists: Vec<_> = self.slowest_pipeline().iter().map(|a| a.train.as_slice()).collect();
        idle_share(&timeline(&lists))
    }

    /// The model's parameters, each counted once.
    pub fn parameters(&self) -> u64 {
        let rows = self.assignments.iter().flat_map(|a| &a.parameters);
        rows.filter(|row| row.saves).map(ParameterRow::elements).sum()
    }

    fn grid(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pipeline = self.slowest_pipeline();
        let Some(first) = pipeline.first() else { return Ok(()) };
        let lists: Vec<_> = pipeline.iter().map(|a| a.train.as_slice()).collect();
        let rows = timeline(&lists);
        let Range { start, end } = micro_batches(first);
        let ranks = first.data_group.len();
        let whose =
            if ranks > 1 { format!("data rank {} of {ranks}, ", first.data_index) } else { String::new() };
        let (p, m) = (pipeline.len(), end - start);
        let bubble = 100.0 * idle_share(&rows);
        writeln!(
            f,
            "1F1B: {whose}micro-batches {start}..{end}, one column a forward or a backward; bubble {bubble:.0}% \
             = (p-1)/(m+p-1), p {p}, m {m}"
        )?;
        let cell = |action: &Option<Action>| action.map_or("·".to_owned(), |a| short(&a));
        let width = rows.iter().flatten().map(|action| cell(action).chars().count()).max().unwrap_or(1);
        let columns = GRID_WIDTH / (width + 1);
        for (a, row) in pipeline.iter().zip(&rows) {
            write!(f, "stage {:<2}", a.stage)?;
            let mut line = String::new();
            for action in row.iter().take(columns) {
                line.push_str(&format!(" {:<width$}", cell(action)));
            }
            match row.len().checked_sub(columns) {
                Some(more) if more > 0 => writeln!(f, "{line} … {more} more")?,
                _ => writeln!(f, "{}", line.trim_end())?,
            }
        }
        Ok(())
    }
}

/// The micro-batches of a rank.
pub(super) fn micro_batches(a: &Assignment) -> Range<u32> {
    let owned = a.runs.get(a.owned_runs.start as usize..a.owned_runs.end as usize).unwrap_or_default();
    owned.first().map_or(0, |run| run.start)..owned.last().map_or(0, |run| run.end)
}

fn short(action: &Action) -> String {
    action.to_string().trim_start_matches(|c: char| c.is_ascii_digit()).to_owned()
}

fn counted(n: impl Into<u64>, one: &str, many: &str) -> String {
    let n = n.into();
    format!("{n} {}", if n == 1 { one } else { many })
}

fn head_line(f: &mut fmt::Formatter<'_>, a: &Assignment) -> fmt::Result {
    let (layout, train) = (&a.spec.layout, &a.spec.train);
    let parts = [
        format!("job {}", a.job),
        format!("generation {}", a.generation),
        format!("pipeline {} x tensor {} x data {}", layout.pipeline, layout.tensor, layout.data),
        counted(a.world, "worker", "workers"),
        counted(a.threads, "thread each", "threads each"),
    ];
    writeln!(f, "{}", parts.join(" · "))?;
    let rows = a.spec.model.layers;
    let tokens = u64::from(train.micro_batches) * u64::from(train.micro_batch) * u64::from(train.sequence);
    let parts = [
        counted(rows, "layer", "layers"),
        format!(
            "{} of {} x {} tokens",
            counted(train.micro_batches, "micro-batch", "micro-batches"),
            train.micro_batch,
            train.sequence
        ),
        counted(train.reduction_runs, "reduction run", "reduction runs"),
        format!("{tokens} tokens a step"),
    ];
    writeln!(f, "{}", parts.join(" · "))
}

const COLUMNS: [&str; 8] = ["rank", "data", "stage", "tensor", "worker", "holds", "params", "peak memory"];
/// The columns of words start at the left, those of numbers end at the right.
const WORDS: [bool; 8] = [false, false, false, false, true, true, false, false];

fn rank_row(a: &Assignment, memory: &Memory) -> [String; 8] {
    let elements = a.parameters.iter().map(ParameterRow::elements).sum();
    [
        a.rank.to_string(),
        a.data_index.to_string(),
        a.stage.to_string(),
        a.tensor_index.to_string(),
        a.worker.to_string(),
        holds(a),
        millions(elements),
        mebibytes(memory.peak_bytes()),
    ]
}

/// The parts of the model on a stage.
pub(super) fn holds(a: &Assignment) -> String {
    let layers = format!("layers {}..{}", a.layers.start, a.layers.end);
    let parts = [a.embedding.then_some("embed"), Some(layers.as_str()), a.head.then_some("head")];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[[String; 8]]) -> fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(COLUMNS[column].len())
    };
    let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
    let titles = COLUMNS.map(str::to_owned);
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let gap = if column == 0 { "" } else { "  " };
            line.push_str(&if WORDS[column] {
                format!("{gap}{cell:<width$}")
            } else {
                format!("{gap}{cell:>width$}")
            });
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

fn millions(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1}K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        _ => format!("{:.2}B", n as f64 / 1e9),
    }
}

fn mebibytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
