//! What interrupted a job, and what that cost: out of its events, from the oldest to the newest.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event_line::EventLine;

/// A generation that ended before its job did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Disruption {
    /// When, in milliseconds since the epoch.
    pub(crate) at_ms: u64,
    pub(crate) generation: Option<u64>,
    pub(crate) cause: String,
    /// Whether it was asked for, such as a drained worker: then no step is lost.
    pub(crate) planned: bool,
    /// The last step that was recorded before it, once the job has gone on.
    pub(crate) step: Option<u64>,
    /// How long no generation trained, once the next one does.
    pub(crate) lost_s: Option<f64>,
    /// How many steps were taken again.
    pub(crate) again: Option<u64>,
    /// Where the next generation found its state: `memory`, `checkpoint` or `initial`.
    pub(crate) origin: Option<String>,
}

/// What all of them cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Losses {
    pub(crate) interruptions: u64,
    pub(crate) seconds: f64,
    pub(crate) steps: u64,
}

impl Losses {
    pub(crate) fn of(all: &[Disruption]) -> Losses {
        Losses {
            interruptions: all.iter().filter(|one| !one.planned).count() as u64,
            // A sum of nothing would be -0.
            seconds: all.iter().filter_map(|one| one.lost_s).fold(0.0, |sum, lost_s| sum + lost_s),
            steps: all.iter().filter_map(|one| one.again).sum(),
        }
    }
}

/// Whether [`disruptions`] are made of events of this kind.
pub(crate) fn counts(kind: &str) -> bool {
    matches!(kind, "interrupted" | "regrouped" | "begun")
}

/// The interruptions among the events of one job.
pub(crate) fn disruptions(events: &[EventLine]) -> Vec<Disruption> {
    let mut all: Vec<Disruption> = Vec::new();
    for event in events {
        let number = |name: &str| event.fields.get(name).and_then(Value::as_u64);
        match event.kind.as_str() {
            "interrupted" | "regrouped" => all.push(Disruption {
                at_ms: event.at_ms,
                generation: event.generation,
                cause: event.text.clone(),
                planned: event.kind == "regrouped",
                step: number("step"),
                lost_s: None,
                again: None,
                origin: None,
            }),
            "begun" => {
                // A generation that was interrupted before it trained lost time too, until the next one was.
                let (mut until_ms, mut again) = (event.at_ms, number("again"));
                let from = number("step").zip(again).map(|(step, again)| step + again);
                for one in all.iter_mut().rev().take_while(|one| one.lost_s.is_none()) {
                    one.lost_s = Some(until_ms.saturating_sub(one.at_ms) as f64 / 1000.0);
                    one.again = again.replace(0);
                    one.step = one.step.or(from);
                    one.origin = event.fields.get("origin").and_then(Value::as_str).map(str::to_owned);
                    until_ms = one.at_ms;
                }
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(at_ms: u64, kind: &str, generation: u64, fields: Value) -> EventLine {
        let Value::Object(fields) = fields else { panic!("an object") };
        EventLine {
            at_ms,
            kind: kind.to_owned(),
            job: Some("a-1".to_owned()),
            generation: Some(generation),
            worker: None,
            text: format!("{kind} {generation}"),
            fields,
        }
    }

    #[test]
    fn an_interruption_lasts_until_a_generation_trains() {
        let events = [
            event(0, "formed", 1, json!({})),
            event(100, "begun", 1, json!({"step": 0, "origin": "initial", "again": 0})),
            event(5000, "interrupted", 1, json!({})),
            event(5500, "formed", 2, json!({})),
            event(6000, "interrupted", 2, json!({})),
            event(8000, "begun", 3, json!({"step": 40, "origin": "checkpoint", "again": 7})),
            event(9000, "regrouped", 3, json!({"step": 60})),
            event(9250, "begun", 4, json!({"step": 60, "origin": "memory", "again": 0})),
            event(9900, "interrupted", 4, json!({})),
        ];
        let found = disruptions(&events);
        let told: Vec<_> =
            found.iter().map(|one| (one.generation, one.planned, one.step, one.lost_s, one.again)).collect();
        let expected = [
            (Some(1), false, Some(47), Some(1.0), Some(0)),
            (Some(2), false, Some(47), Some(2.0), Some(7)),
            (Some(3), true, Some(60), Some(0.25), Some(0)),
            (Some(4), false, None, None, None),
        ];
        assert_eq!(told, expected);
        assert_eq!(Losses::of(&found), Losses { interruptions: 3, seconds: 3.25, steps: 7 });
    }
}
