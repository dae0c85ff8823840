//! The certificate as people keep it.

use std::fmt;

use super::bound::said;
use super::{Bound, Certificate, CertificateHead, CertificateRow, Deviation, ONE};
use crate::columns::aligned;

/// Columns of the table.
const COLUMNS: usize = 6;

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(f, &self.head)?;
        writeln!(f)?;
        table(f, &self.layouts)?;
        writeln!(f)?;
        let differing = self.layouts.iter().filter(|row| row.differences.parameter_norm.other_bits > 0);
        for row in differing {
            let parameter = said(&row.differences.parameter_norm);
            let first = said_or_same(&row.differences.first_parameter_norm);
            writeln!(f, "{}: largest difference of a parameter's gradient norm: {parameter}", row.layout)?;
            writeln!(f, "{}: in the first step: {first}", row.layout)?;
        }
        for row in &self.layouts {
            if let Bound::Close { reason, .. } = &row.bound {
                writeln!(f, "{}: bits are not promised: {reason}", row.layout)?;
            }
        }
        for (row, broken) in self.layouts.iter().filter_map(|row| Some((row, row.broken.as_ref()?))) {
            writeln!(f, "{}: BROKEN: {broken}", row.layout)?;
        }
        let broken: Vec<_> =
            self.layouts.iter().filter(|row| row.broken.is_some()).map(|row| row.layout.as_str()).collect();
        match broken.as_slice() {
            [] => writeln!(f, "holds: {} of {}", self.layouts.len(), self.layouts.len()),
            names => {
                writeln!(f, "does not hold: {} of {}: {}", names.len(), self.layouts.len(), names.join(", "))
            }
        }
    }
}

fn head(f: &mut fmt::Formatter<'_>, head: &CertificateHead) -> fmt::Result {
    let sets = head.sets.iter().map(|set| format!(" --set {set}")).collect::<String>();
    let reference = if head.reference == ONE { "one process" } else { &head.reference };
    let reason = head.reference_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let held = if head.strict { "the same bits in every layout (--strict)" } else { "what each row says" };
    writeln!(f, "Certificate: does the layout change the numbers?")?;
    writeln!(f)?;
    let rows = [
        ("job", format!("{} ({}{sets})", head.job, head.file)),
        ("model", format!("{} parameters, {}", thousands(head.parameters), head.precision)),
        ("runs", format!("{} steps of {} tokens", head.steps, thousands(head.step_tokens))),
        ("runtime", format!("{}, on {}", head.runtime, head.device)),
        ("threads", format!("{} for each worker ({})", head.threads.number, head.threads.origin)),
        ("reference", format!("{reference}{reason}")),
        ("held to", held.to_owned()),
    ];
    rows.iter().try_for_each(|(key, value)| writeln!(f, "{key:<10} {value}"))
}

fn table(f: &mut fmt::Formatter<'_>, rows: &[CertificateRow]) -> fmt::Result {
    let titles =
        ["layout", "loss", "gradient norm", "of a parameter", "final tensors", "verdict"].map(str::to_owned);
    let mut lines: Vec<[String; COLUMNS]> = vec![titles];
    lines.extend(rows.iter().map(cells));
    f.write_str(&aligned(&lines, |_| false))
}

fn cells(row: &CertificateRow) -> [String; COLUMNS] {
    let found = &row.differences;
    let tensors = match found.other_tensors {
        0 => format!("same bits ({})", found.tensors),
        other => format!("{other} of {} differ", found.tensors),
    };
    let verdict = match (&row.broken, &row.bound) {
        (Some(_), _) => "BROKEN".to_owned(),
        (None, Bound::Bits) => "bitwise".to_owned(),
        (None, Bound::Close { .. }) if row.bitwise => "bitwise, though not promised".to_owned(),
        (None, Bound::Close { loss, first_parameter_norm, .. }) => {
            let twin = row.twin.as_ref().map(|twin| format!(", the bits of {twin}")).unwrap_or_default();
            format!("within {loss:e} (loss), {first_parameter_norm:e} (first norms){twin}")
        }
    };
    [
        row.layout.clone(),
        said_or_same(&found.loss),
        said_or_same(&found.gradient_norm),
        said_or_same(&Deviation { parameter: None, ..found.parameter_norm.clone() }),
        tensors,
        verdict,
    ]
}

fn said_or_same(difference: &Deviation) -> String {
    if difference.other_bits == 0 { "same bits".to_owned() } else { said(difference) }
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
