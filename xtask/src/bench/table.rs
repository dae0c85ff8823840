//! What `bench` prints: a table for people, JSON for programs.

use serde_json::{Value, json};

use super::median;
use super::shape::BenchShape;

/// One side of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measurement {
    /// Tokens a second, over all processes.
    pub(super) tokens_per_second: f64,
    /// Peak resident memory of each process, in MiB, by rank.
    pub(super) peak_mib: Vec<u64>,
}

/// A row of the table.
pub(super) struct BenchMeasured {
    /// The row's name.
    pub(super) row: &'static str,
    /// Coxswain.
    pub(super) ours: Measurement,
    /// PyTorch.
    pub(super) peer: Measurement,
}

impl BenchMeasured {
    fn ratio(&self) -> f64 {
        self.ours.tokens_per_second / self.peer.tokens_per_second
    }
}

/// The median speed of some rounds, and the worst peak of each process.
pub(super) fn median_of(rounds: Vec<Measurement>) -> Measurement {
    let processes = rounds.iter().map(|round| round.peak_mib.len()).max().unwrap_or(0);
    let worst = |rank: usize| rounds.iter().filter_map(|round| round.peak_mib.get(rank)).max().copied();
    let peak_mib = (0..processes).filter_map(worst).collect();
    let speeds = rounds.iter().map(|round| round.tokens_per_second).collect();
    Measurement { tokens_per_second: median(speeds).unwrap_or(0.0), peak_mib }
}

/// The table, in Markdown, aligned so that it reads without a renderer.
pub(super) fn text(rows: &[BenchMeasured]) -> String {
    let mut cells = vec![
        ["row", "ours tok/s", "PyTorch tok/s", "ratio", "ours peak MiB", "PyTorch peak MiB"]
            .map(str::to_owned),
    ];
    for row in rows {
        let peaks = |of: &Measurement| of.peak_mib.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        cells.push([
            row.row.to_owned(),
            format!("{:.0}", row.ours.tokens_per_second),
            format!("{:.0}", row.peer.tokens_per_second),
            format!("{:.2}", row.ratio()),
            peaks(&row.ours),
            peaks(&row.peer),
        ]);
    }
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut lines: Vec<String> = Vec::new();
    for (index, row) in cells.iter().enumerate() {
        let padded = row.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        lines.push(format!("|{}", padded.collect::<String>()));
        if index == 0 {
            lines.push(format!("|{}", widths.map(|width| format!("{}|", "-".repeat(width + 2))).concat()));
        }
    }
    lines.join("\n") + "\n"
}

/// The same as JSON, with the shape that was measured.
pub(super) fn json(shape: &BenchShape, rows: &[BenchMeasured]) -> Value {
    let side =
        |of: &Measurement| json!({ "tokens_per_second": of.tokens_per_second, "peak_mib": of.peak_mib });
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| json!({ "row": row.row, "ours": side(&row.ours), "pytorch": side(&row.peer), "ratio": row.ratio() }))
        .collect();
    json!({ "shape": shape.json(), "rows": rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(tokens_per_second: f64, peak_mib: &[u64]) -> Measurement {
        Measurement { tokens_per_second, peak_mib: peak_mib.to_vec() }
    }

    #[test]
    fn the_table_lines_up() {
        let rows = [
            BenchMeasured {
                row: "single",
                ours: measurement(530.4, &[1600]),
                peer: measurement(520.0, &[1700]),
            },
            BenchMeasured {
                row: "dp2",
                ours: measurement(700.0, &[1500, 1501]),
                peer: measurement(600.0, &[1800, 1802]),
            },
        ];
        expect_test::expect![[r"
            | row    | ours tok/s | PyTorch tok/s | ratio | ours peak MiB | PyTorch peak MiB |
            |--------|------------|---------------|-------|---------------|------------------|
            | single | 530        | 520           | 1.02  | 1600          | 1700             |
            | dp2    | 700        | 600           | 1.17  | 1500, 1501    | 1800, 1802       |
        "]]
        .assert_eq(&text(&rows));
    }

    #[test]
    fn rounds_give_the_median_speed_and_the_worst_peak() {
        let rounds = vec![measurement(3.0, &[5, 9]), measurement(1.0, &[7, 8]), measurement(2.0, &[6, 6])];
        assert_eq!(median_of(rounds), measurement(2.0, &[7, 9]));
    }
}
