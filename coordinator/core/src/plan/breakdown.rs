//! What each rank's memory is for, as a table.

use std::fmt;

use super::Memory;
use super::memory::RUNTIME;
use super::print::mebibytes;

/// Names of the columns, and what they count. A column of nothing is left out.
type Column = (&'static str, fn(&Memory) -> u64);

static COLUMNS: [Column; 7] = [
    ("weights", |memory| memory.parameters_bytes),
    ("gradients", |memory| memory.gradients_bytes),
    ("optimizer", |memory| memory.optimizer_bytes),
    ("copies", |memory| memory.copies_bytes),
    ("activations", |memory| memory.activations_bytes),
    ("runtime", |_| RUNTIME),
    ("resident", Memory::resident_bytes),
];

/// One line for neighbouring ranks whose memory is the same.
pub(super) fn print(f: &mut fmt::Formatter<'_>, ranks: &[Memory]) -> fmt::Result {
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|(_, bytes)| ranks.iter().any(|memory| bytes(memory) > 0)).collect();
    let titles: Vec<String> = std::iter::once("memory of")
        .chain(columns.iter().map(|(title, _)| *title))
        .map(str::to_owned)
        .collect();
    let mut rows = vec![titles];
    let mut first = 0;
    for same in ranks.chunk_by(|a, b| a == b) {
        let last = first + same.len() - 1;
        let name = if first == last { format!("rank {first}") } else { format!("ranks {first}-{last}") };
        let cells = columns.iter().map(|(_, bytes)| mebibytes(bytes(&same[0])));
        rows.push(std::iter::once(name).chain(cells).collect());
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
    writeln!(f, "runtime: what the process holds beside tensors, of which libtorch itself is the most")
}
