//! What each rank's memory is for, as a table.

use std::fmt;

use super::Memory;
use super::memory::RUNTIME;
use super::print::mebibytes;

/// Names of the columns, and what they count. A column of nothing is left out.
type Column = (&'static str, fn(&Memory) -> u64);

static COLUMNS: [Column; 6] = [
    ("weights", |memory| memory.weights_bytes),
    ("gradients", |memory| memory.gradients_bytes),
    ("optimizer", |memory| memory.optimizer_bytes),
    ("copies", |memory| memory.copies_bytes),
    ("activations", |memory| memory.activations_bytes),
    ("tensors", Memory::tensor_bytes),
];

/// One line for neighbouring ranks whose memory is the same.
pub(super) fn print(f: &mut fmt::Formatter<'_>, ranks: &[Memory]) -> fmt::Result {
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|(_, bytes)| ranks.iter().any(|memory| bytes(memory) > 0)).collect();
    let titles = ["memory of"].into_iter().chain(columns.iter().map(|(title, _)| *title)).chain(["resident"]);
    let mut rows = vec![titles.map(str::to_owned).collect::<Vec<_>>()];
    let mut first = 0;
    for same in ranks.chunk_by(|a, b| a == b) {
        let last = first + same.len() - 1;
        let name = if first == last { format!("rank {first}") } else { format!("ranks {first}-{last}") };
        let resident = same[0].resident_bytes();
        let cells = columns.iter().map(|(_, bytes)| mebibytes(bytes(&same[0])));
        let resident = format!("{} to {}", whole(*resident.start()), whole(*resident.end()));
        rows.push([name].into_iter().chain(cells).chain([resident]).collect());
        first = last + 1;
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    writeln!(f)?;
    for row in &rows {
        write!(f, "{:<width$}", row[0], width = width(0))?;
        for (column, cell) in row.iter().enumerate().skip(1) {
            write!(f, "  {cell:>width$}", width = width(column))?;
        }
        writeln!(f)?;
    }
    writeln!(
        f,
        "tensors are counted; the runtime (program, libtorch, its scratch) adds {} to {} of resident memory",
        whole(*RUNTIME.start()),
        whole(*RUNTIME.end())
    )
}

fn whole(bytes: u64) -> String {
    let mib = bytes >> 20;
    if mib < 1024 { format!("{mib} MiB") } else { mebibytes(bytes) }
}
