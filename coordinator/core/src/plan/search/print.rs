//! A choice as a person reads it: ten lines, memory by rank, and the layouts that lost.

use std::fmt::{self, Write as _};

use coxswain_types::JobSpec;
use coxswain_types::job::Precision;

use super::reason::seconds;
use super::{Choice, RunnerUp, Weighed};
use crate::columns::aligned;
use crate::hardware::Machines;
use crate::plan::Memory;
use crate::plan::print::{counted, mebibytes};
use crate::spec::OpenKeys;

/// Characters of a bar of memory.
const BAR: usize = 40;

/// The kinds of memory in a bar: their letters, names and bytes.
pub(super) type MemoryKind = (char, &'static str, fn(&Memory) -> u64);

pub(super) const KINDS: [MemoryKind; 5] = [
    ('W', "weights", |memory| memory.weights_bytes),
    ('G', "gradients", |memory| memory.gradients_bytes),
    ('O', "optimizer", |memory| memory.optimizer_bytes),
    ('C', "copies", |memory| memory.copies_bytes),
    ('A', "activations", |memory| memory.activations_bytes),
];

/// StageTimes of the critical path that are named.
const PATH: usize = 4;

/// What the run costs to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToTheEnd {
    /// Steps that are left.
    pub steps: u64,
    /// Seconds.
    pub seconds: f64,
    /// The price, where the hosts have one.
    pub price: Option<f64>,
}

impl Choice {
    /// What all steps of the job take.
    pub fn to_the_end(&self, cluster: &Machines) -> ToTheEnd {
        let steps = self.spec.train.steps;
        let seconds = steps as f64 * self.best.prediction.step;
        let price = cluster.price_per_hour(self.spec.layout.world()).map(|hour| hour * seconds / 3600.0);
        ToTheEnd { steps, seconds, price }
    }

    /// The choice in words. `open` is what was left to it.
    pub fn text(&self, cluster: &Machines, open: &OpenKeys) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, cluster, open);
        text
    }

    fn write(&self, out: &mut String, cluster: &Machines, open: &OpenKeys) -> fmt::Result {
        let (spec, best) = (&self.spec, &self.best);
        writeln!(out, "{} on {}: {}", spec.name, cluster.words(), best.settings.words())?;
        let rows = self.summary(cluster, open);
        let width = rows.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
        for (title, words) in rows {
            writeln!(out, "  {title:<width$}  {words}")?;
        }
        writeln!(out)?;
        out.push_str(&bars(best, self.limit));
        if !self.others.is_empty() {
            writeln!(out, "\nother layouts")?;
            let row = |other: &RunnerUp| ["  ".to_owned() + &other.settings.words(), other.reason.clone()];
            out.push_str(&aligned(&self.others.iter().map(row).collect::<Vec<_>>(), |_| false));
        }
        Ok(())
    }

    /// The facts of the choice, each with its title.
    pub(super) fn summary(&self, cluster: &Machines, open: &OpenKeys) -> Vec<(&'static str, String)> {
        let (spec, best) = (&self.spec, &self.best);
        let predicted = &best.prediction;
        let mut rows = vec![(
            "step",
            format!(
                "{} · {} tokens/s · MFU {:.1} % · idle {:.1} %",
                seconds(predicted.step),
                grouped(predicted.tokens_per_second()),
                100.0 * predicted.mfu,
                100.0 * predicted.idle
            ),
        )];
        let end = self.to_the_end(cluster);
        let price = end.price.map_or(String::new(), |price| format!(", price {price:.2}"));
        let steps = counted(end.steps, "step", "steps");
        rows.push(("to the end", format!("{steps} in {}{price}", seconds(end.seconds))));
        rows.push(("batch", batch(spec)));
        let fullest = best.memory.iter().map(Memory::tensor_bytes).max().unwrap_or(0);
        rows.push((
            "memory",
            format!("{} of {} on the fullest worker", mebibytes(fullest), mebibytes(self.limit)),
        ));
        rows.push(("stages", stages(best)));
        let path = predicted
            .path
            .iter()
            .take(PATH)
            .map(|share| format!("{} {:.0} %", share.what, 100.0 * share.seconds / predicted.step));
        rows.push(("waits for", path.collect::<Vec<_>>().join(", ")));
        let workers = cluster.devices();
        if spec.layout.world() < workers {
            let used = format!("{} of {workers}; more would not make a step faster", spec.layout.world());
            rows.push(("workers", used));
        }
        if let Some(numbers) = self.numbers(open) {
            rows.push(("numbers", numbers));
        }
        if let Some(exactness) = &self.exactness {
            rows.push(("exactness", exactness.clone()));
        }
        let [shapes, weighed] = self.shapes;
        if shapes > 1 {
            let rest = if weighed < shapes { "; the others cannot be faster" } else { "" };
            rows.push((
                "searched",
                format!("{}, {weighed} weighed{rest}", counted(shapes, "shape", "shapes")),
            ));
        }
        rows
    }

    /// What was chosen that the numbers depend on.
    pub(super) fn numbers(&self, open: &OpenKeys) -> Option<String> {
        let settings = &self.best.settings;
        let mut keys = Vec::new();
        if open.micro_batch_size {
            keys.push(format!("train.micro_batch_size {}", settings.micro_batch_size));
        }
        if open.reduction {
            keys.push("train.reduction fast".to_owned());
        } else if open.gradient_groups {
            keys.push(format!("train.gradient_groups {}", settings.gradient_groups));
        }
        if let (true, Some(shards)) = (open.tensor_shards, settings.tensor_shards) {
            keys.push(format!("train.tensor_shards {shards}"));
        }
        let last = keys.pop()?;
        let all = if keys.is_empty() { last } else { format!("{} and {last}", keys.join(", ")) };
        Some(format!("chosen: {all}; losses depend on them, so the job keeps them in every later layout"))
    }
}

fn batch(spec: &JobSpec) -> String {
    let train = &spec.train;
    format!(
        "{} of {} x {} tokens in {}, {}",
        counted(train.global_micro_batches, "micro-batch", "micro-batches"),
        train.micro_batch_size,
        train.sequence,
        match train.precision {
            Precision::Fp32 => "fp32",
            low => low.name(),
        },
        counted(train.gradient_groups, "gradient group", "gradient groups")
    )
}

/// Layers of each stage, as a list where they differ.
fn stages(best: &Weighed) -> String {
    let layers = &best.layers;
    let again: u32 = best.again.iter().sum();
    let again = if again > 0 {
        format!("; {} computed again", counted(again, "layer", "layers"))
    } else {
        String::new()
    };
    let text = match (layers.first(), layers.last()) {
        (Some(first), Some(last))
            if layers.iter().all(|count| count == first) || first == last && layers.len() == 1 =>
        {
            format!(
                "{} of {}",
                counted(layers.len() as u64, "stage", "stages"),
                counted(*first, "layer", "layers")
            )
        }
        _ => {
            let list: Vec<_> = layers.iter().map(u32::to_string).collect();
            format!("{} stages of {} layers", layers.len(), list.join(", "))
        }
    };
    text + &again
}

/// A bar of memory for each pipeline rank; neighbours that are alike share one.
fn bars(best: &Weighed, limit: u64) -> String {
    let mut rows = Vec::new();
    let mut first = 0;
    for same in best.memory.chunk_by(|a, b| a == b) {
        let last = first + same.len() - 1;
        let name = if first == last { format!("{first}") } else { format!("{first}-{last}") };
        rows.push([format!("  pipeline {name}"), bar(&same[0], limit), mebibytes(same[0].tensor_bytes())]);
        first = last + 1;
    }
    let kinds: Vec<_> = KINDS
        .iter()
        .filter(|(.., bytes)| best.memory.iter().any(|memory| bytes(memory) > 0))
        .map(|(letter, name, _)| format!("{letter} {name}"))
        .collect();
    format!("memory of each worker ({}; . free)\n{}", kinds.join(", "), aligned(&rows, |column| column == 2))
}

/// Letters in the share of the memory that each kind has.
fn bar(memory: &Memory, limit: u64) -> String {
    let (mut bar, mut sum) = (String::from("["), 0_u64);
    let place = |bytes: u64| (bytes as f64 * BAR as f64 / limit.max(1) as f64).round() as usize;
    for (letter, _, bytes) in KINDS {
        let start = place(sum);
        sum += bytes(memory);
        bar.extend(std::iter::repeat_n(letter, place(sum).min(BAR) - start.min(BAR)));
    }
    bar.extend(std::iter::repeat_n('.', (BAR + 1).saturating_sub(bar.len())));
    bar + "]"
}

/// A count with commas between thousands.
fn grouped(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
