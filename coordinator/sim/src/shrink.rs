//! A failing history becomes a short one: families, workers, jobs, incidents and events are taken away for
//! as long as the same rule is still broken.

use crate::faults::Families;
use crate::run::{SimOutcome, run};
use crate::swarm::SimCase;

/// How many histories a search may try.
const MAX_TRIES: u32 = 400;

/// Lines of a story that are printed from its end.
const MAX_LINES: usize = 60;

/// The least case found that breaks `rule`.
pub fn shrink(case: &SimCase, rule: &str) -> SimCase {
    let mut search = Search { best: case.clone(), rule, tries: 0 };
    search.families();
    search.sizes();
    search.incidents();
    search.events();
    search.families();
    search.best
}

struct Search<'a> {
    best: SimCase,
    rule: &'a str,
    tries: u32,
}

impl Search<'_> {
    /// Takes a smaller case if it breaks the same rule.
    fn take(&mut self, smaller: SimCase) -> bool {
        if self.tries >= MAX_TRIES || smaller == self.best {
            return false;
        }
        self.tries += 1;
        let broken = run(&smaller, false).violation.is_some_and(|violation| violation.rule == self.rule);
        if broken {
            self.best = smaller;
        }
        broken
    }

    fn families(&mut self) {
        for family in crate::faults::FaultFamily::ALL {
            let without = self.best.without.with(family);
            self.take(SimCase { without, ..self.best.clone() });
        }
    }

    fn sizes(&mut self) {
        for number in 1..=8 {
            if self.take(SimCase { jobs: Some(number), ..self.best.clone() }) {
                break;
            }
        }
        for number in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32] {
            if self.take(SimCase { workers: Some(number), ..self.best.clone() }) {
                break;
            }
        }
    }

    /// The safety phase ends as early as it can.
    fn events(&mut self) {
        let (mut low, mut high) = (0, run(&self.best, false).events);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.take(SimCase { events: Some(middle), ..self.best.clone() }) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
    }

    /// Leaves incidents out, halves first.
    fn incidents(&mut self) {
        let mut size = run(&self.best, false).incidents.len().div_ceil(2);
        while size > 0 {
            let happened = run(&self.best, false).incidents;
            for part in happened.chunks(size) {
                let skip = self.best.skip.iter().chain(part).copied().collect();
                self.take(SimCase { skip, ..self.best.clone() });
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }
}

/// What a person reads of a history that broke a rule.
pub fn story(case: &SimCase) -> String {
    let outcome = run(case, true);
    let SimOutcome { events, story, violation, .. } = outcome;
    let mut text = String::new();
    if story.len() > MAX_LINES {
        text.push_str(&format!("        ... ({} lines before)\n", story.len() - MAX_LINES));
    }
    for line in &story[story.len().saturating_sub(MAX_LINES)..] {
        text.push_str(line);
        text.push('\n');
    }
    if let Some(violation) = violation {
        text.push_str(&format!(
            "rule {} is broken after {events} events: {}\n",
            violation.rule, violation.text
        ));
    }
    text.push_str(&format!("again: {}\n", case.command()));
    text
}

/// Families by their names on the command line.
///
/// # Errors
/// A name that none has.
pub fn families(names: &[String]) -> Result<Families, String> {
    let mut families = Families::default();
    for name in names {
        let family = crate::faults::FaultFamily::of_name(name);
        families = families.with(family.ok_or_else(|| format!("no family of faults is called {name}"))?);
    }
    Ok(families)
}
