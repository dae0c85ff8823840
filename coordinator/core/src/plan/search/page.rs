//! A choice as one HTML file that needs nothing but a browser.

use std::fmt::Write as _;

use super::print::KINDS;
use super::saved::parameters;
use super::{Choice, Weighed};
use crate::hardware::Machines;
use crate::plan::print::mebibytes;
use crate::plan::{Plan, PlanError, pipeline, svg};
use crate::spec::{OpenKeys, resolved_yaml};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#24292f;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}\
td,th{padding:.25rem .75rem .25rem 0;text-align:left;vertical-align:top}th{color:#57606a;font-weight:normal}\
.bar{display:flex;width:36rem;max-width:60vw;height:1.1rem;background:#e4e7eb}.bar span{display:block}\
pre{background:#f6f8fa;padding:1rem;overflow:auto}.key span{display:inline-block;width:.9rem;height:.9rem;\
margin:0 .4rem 0 1rem;vertical-align:-.1rem}";

/// Colours of the kinds of memory, in their order.
const COLOURS: [&str; 5] = ["#3f72c8", "#8fd0a8", "#f0b95a", "#b58ad6", "#e07b7b"];

impl Choice {
    /// The pipeline's schedule as a picture.
    ///
    /// # Errors
    /// Never for a choice out of [`super::choose`].
    pub fn picture(&self) -> Result<String, PlanError> {
        let assignments = pipeline::slowest(&self.spec)?;
        Ok(svg(&[&Plan { assignments, spares: Vec::new() }]))
    }

    /// The page.
    ///
    /// # Errors
    /// As [`Choice::picture`].
    pub fn page(&self, cluster: &Machines, open: &OpenKeys) -> Result<String, PlanError> {
        let mut out = String::new();
        let name = escaped(&self.spec.name);
        let _ = write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Plan of {name}</title>\n\
             <style>{STYLE}</style></head><body>\n<h1>Plan of {name}</h1>\n<p>{} parameters on {}: <b>{}</b></p>\n<table>\n",
            parameters(&self.spec),
            escaped(&cluster.words()),
            escaped(&self.best.settings.words()),
        );
        for (title, words) in self.summary(cluster, open) {
            let _ = writeln!(out, "<tr><th>{title}</th><td>{}</td></tr>", escaped(&words));
        }
        out.push_str("</table>\n<h2>Memory of each worker</h2>\n");
        bars(&mut out, &self.best, self.limit);
        if !self.others.is_empty() {
            out.push_str("<h2>Other layouts</h2>\n<table>\n");
            for other in &self.others {
                let (words, reason) = (escaped(&other.settings.words()), escaped(&other.reason));
                let _ = writeln!(out, "<tr><td>{words}</td><td>{reason}</td></tr>");
            }
            out.push_str("</table>\n");
        }
        let _ = writeln!(out, "<h2>Schedule</h2>\n{}", self.picture()?);
        let job = resolved_yaml(&self.spec).unwrap_or_default();
        let _ = write!(out, "<h2>Job</h2>\n<pre>{}</pre>\n</body></html>\n", escaped(&job));
        Ok(out)
    }
}

fn bars(out: &mut String, best: &Weighed, limit: u64) {
    out.push_str("<p class=\"key\">");
    for ((_, name, _), colour) in KINDS.iter().zip(COLOURS) {
        let _ = write!(out, "<span style=\"background:{colour}\"></span>{name}");
    }
    out.push_str("</p>\n<table>\n");
    for (rank, memory) in best.memory.iter().enumerate() {
        let _ = write!(out, "<tr><th>pipeline {rank}</th><td><div class=\"bar\">");
        for ((_, name, bytes), colour) in KINDS.iter().zip(COLOURS) {
            let share = 100.0 * bytes(memory) as f64 / limit.max(1) as f64;
            let title = format!("{name} {}", mebibytes(bytes(memory)));
            let _ = write!(
                out,
                "<span title=\"{title}\" style=\"width:{share:.2}%;background:{colour}\"></span>"
            );
        }
        let (used, all) = (mebibytes(memory.tensor_bytes()), mebibytes(limit));
        let _ = writeln!(out, "</div></td><td>{used} of {all}</td></tr>");
    }
    out.push_str("</table>\n");
}

/// A text between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
