//! The largest part of a job's layout that fewer workers than it needs can take, with the same numbers.
//!
//! Data ranks are given up first: the others hold all weights, and nothing moves. Then pipeline ranks: layers
//! are cut anew. The tensor axis and whatever else bits depend on stay as they are.

use coxswain_types::JobSpec;
use coxswain_types::job::{Layout, Reduction, Schedule};

use super::sketch;

/// How many of the largest layouts are tried, each of which takes a plan. Beside them those are tried that cut the
/// pipeline evenly: where a budget keeps the largest from working, these may need less of each rank.
const MAX_TRIES: usize = 8;

/// A layout for the workers at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The layout.
    pub layout: Layout,
    /// What of the job's own layout it is, for people; empty where it is all of it.
    pub reason: String,
}

impl Fit {
    /// The job's own layout.
    pub fn own(spec: &JobSpec) -> Fit {
        Fit { layout: spec.layout, reason: String::new() }
    }

    /// The job in this layout.
    pub fn spec(&self, spec: &JobSpec) -> JobSpec {
        let mut spec = JobSpec { layout: self.layout, ..spec.clone() };
        if !matches!(self.layout.schedule, Schedule::Custom { .. }) {
            spec.actions.clear();
        }
        spec
    }
}

/// The largest layout that `available` workers can take and that has more than `least` ranks; `None` where
/// there is none.
pub fn fitting(spec: &JobSpec, available: u32, least: u32) -> Option<Fit> {
    let own = spec.layout;
    let pipelines = (1..=own.pipeline).rev();
    let layouts = pipelines.flat_map(|pipeline| {
        // Another number of data ranks is another order of sums under `fast`.
        let fewest = if spec.train.reduction == Reduction::Fast { own.data } else { 1 };
        (fewest..=own.data).rev().map(move |data| Layout { pipeline, data, ..own })
    });
    let fits = |layout: &Layout| layout.world() <= available && layout.world() > least;
    let layouts: Vec<Layout> = layouts.filter(fits).collect();
    let (largest, others) = layouts.split_at(MAX_TRIES.min(layouts.len()));
    // The first of each pipeline has the most data ranks.
    let even = others.chunk_by(|a, b| a.pipeline == b.pipeline).filter_map(|same| same.first());
    let even = even.filter(|layout| own.pipeline.is_multiple_of(layout.pipeline));
    largest.iter().chain(even).find_map(|&layout| {
        let kept = Fit { layout, reason: describe(&own, &layout, None) };
        if layout == own {
            return Some(kept);
        }
        let plain = Layout { schedule: Schedule::OneFOneB, ..layout };
        let why = match own.schedule {
            Schedule::Custom { .. } => "its own list of actions is for its whole layout",
            _ => "the job's schedule does not work with as few ranks",
        };
        let plain = Fit { layout: plain, reason: describe(&own, &plain, Some(why)) };
        let custom = matches!(own.schedule, Schedule::Custom { .. });
        [kept, plain].into_iter().skip(usize::from(custom)).find(|fit| works(&fit.spec(spec)))
    })
}

/// Whether there is a plan: a budget of memory may not be met by fewer ranks.
fn works(spec: &JobSpec) -> bool {
    sketch(spec, spec.layout.world()).is_ok()
}

fn describe(own: &Layout, layout: &Layout, plain: Option<&str>) -> String {
    let mut parts = Vec::new();
    if layout.data != own.data {
        parts.push(format!("{} of {} data ranks", layout.data, own.data));
    }
    if layout.pipeline != own.pipeline {
        parts.push(format!("{} of {} pipeline ranks", layout.pipeline, own.pipeline));
    }
    if let Some(why) = plain {
        parts.push(format!("schedule 1f1b, since {why}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use expect_test::expect;

    use super::*;
    use crate::spec::{JobText, parse};

    const JOB: &str = "
name: tiny
model: {layers: 6, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, global_micro_batches: 6}
";

    fn spec(sets: &[(&str, &str)]) -> JobSpec {
        let sets: Vec<_> = sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        parse(&JobText { source: "job.yaml", text: JOB, sets: &sets, base: Path::new("/") }).unwrap()
    }

    #[test]
    fn data_ranks_go_first_and_then_pipeline_ranks() {
        let rows: [(&str, &[(&str, &str)]); 7] = [
            ("pp2 dp3", &[("layout", "{pipeline: 2, data: 3, zero: 1}")]),
            ("pp3", &[("layout", "{pipeline: 3, schedule: zb-h1}")]),
            ("pp2 dp2 tp2", &[("layout", "{pipeline: 2, data: 2, tensor: 2}")]),
            ("pp3 interleaved", &[("layout", "{pipeline: 3, schedule: interleaved}")]),
            ("pp2 dp2 fast", &[("layout", "{pipeline: 2, data: 2}"), ("train.reduction", "fast")]),
            (
                "custom",
                &[("layout", "{pipeline: 1, data: 2, schedule: custom, actions: '0F0,0B0,0F1,0B1,0F2,0B2'}")],
            ),
            ("budget", &[("layout", "{pipeline: 3}"), ("train.recompute", "{budget: 420 KiB}")]),
        ];
        let mut print = String::new();
        for (name, sets) in rows {
            let spec = spec(sets);
            for available in 0..=spec.layout.world() {
                let fit = fitting(&spec, available, 0);
                let text = fit.map_or("none".to_owned(), |fit| {
                    let Layout { pipeline, tensor, data, schedule, zero, .. } = fit.layout;
                    let zero = if zero { " zero" } else { "" };
                    format!("pp{pipeline} tp{tensor} dp{data}{zero} {schedule:?}  {}", fit.reason)
                });
                writeln!(print, "{name:<16} {available}  {}", text.trim_end()).unwrap();
            }
        }
        expect![[r#"
            pp2 dp3          0  none
            pp2 dp3          1  pp1 tp1 dp1 zero OneFOneB  1 of 3 data ranks, 1 of 2 pipeline ranks
            pp2 dp3          2  pp2 tp1 dp1 zero OneFOneB  1 of 3 data ranks
            pp2 dp3          3  pp2 tp1 dp1 zero OneFOneB  1 of 3 data ranks
            pp2 dp3          4  pp2 tp1 dp2 zero OneFOneB  2 of 3 data ranks
            pp2 dp3          5  pp2 tp1 dp2 zero OneFOneB  2 of 3 data ranks
            pp2 dp3          6  pp2 tp1 dp3 zero OneFOneB
            pp3              0  none
            pp3              1  pp1 tp1 dp1 ZbH1  1 of 3 pipeline ranks
            pp3              2  pp2 tp1 dp1 ZbH1  2 of 3 pipeline ranks
            pp3              3  pp3 tp1 dp1 ZbH1
            pp2 dp2 tp2      0  none
            pp2 dp2 tp2      1  none
            pp2 dp2 tp2      2  pp1 tp2 dp1 OneFOneB  1 of 2 data ranks, 1 of 2 pipeline ranks
            pp2 dp2 tp2      3  pp1 tp2 dp1 OneFOneB  1 of 2 data ranks, 1 of 2 pipeline ranks
            pp2 dp2 tp2      4  pp2 tp2 dp1 OneFOneB  1 of 2 data ranks
            pp2 dp2 tp2      5  pp2 tp2 dp1 OneFOneB  1 of 2 data ranks
            pp2 dp2 tp2      6  pp2 tp2 dp1 OneFOneB  1 of 2 data ranks
            pp2 dp2 tp2      7  pp2 tp2 dp1 OneFOneB  1 of 2 data ranks
            pp2 dp2 tp2      8  pp2 tp2 dp2 OneFOneB
            pp3 interleaved  0  none
            pp3 interleaved  1  pp1 tp1 dp1 Interleaved { chunks: 2 }  1 of 3 pipeline ranks
            pp3 interleaved  2  pp2 tp1 dp1 Interleaved { chunks: 2 }  2 of 3 pipeline ranks
            pp3 interleaved  3  pp3 tp1 dp1 Interleaved { chunks: 2 }
            pp2 dp2 fast     0  none
            pp2 dp2 fast     1  none
            pp2 dp2 fast     2  pp1 tp1 dp2 OneFOneB  1 of 2 pipeline ranks
            pp2 dp2 fast     3  pp1 tp1 dp2 OneFOneB  1 of 2 pipeline ranks
            pp2 dp2 fast     4  pp2 tp1 dp2 OneFOneB
            custom           0  none
            custom           1  pp1 tp1 dp1 OneFOneB  1 of 2 data ranks, schedule 1f1b, since its own list of actions is for its whole layout
            custom           2  pp1 tp1 dp2 Custom { chunks: 1 }
            budget           0  none
            budget           1  none
            budget           2  none
            budget           3  pp3 tp1 dp1 OneFOneB
        "#]].assert_eq(&print);
    }

    #[test]
    fn what_is_found_is_more_than_there_is() {
        let spec = spec(&[("layout", "{pipeline: 2, data: 3}")]);
        assert_eq!(fitting(&spec, 5, 4), None);
        assert_eq!(fitting(&spec, 5, 3).unwrap().layout.world(), 4);
        assert_eq!(fitting(&spec, 9, 4), Some(Fit::own(&spec)));
    }
}
