//! The actions of a step and their text form.
//!
//! An action prints as its stage, its kind and its micro-batch: `2F0`, `1SEND_F3`, `0RECV_B1`.
//! The order of a list is the order in which a worker starts the actions. A receive is *posted*
//! where it stands in the list and awaited by the compute action that needs it; a send is started
//! where it stands and awaited when its buffer is reused. The lists are made by the plan.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::MicroBatch;

/// What an action does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `F`: forward.
    Forward,
    /// `B`: backward, for inputs and weights.
    Backward,
    /// `I`: backward for the input only; weight gradients are deferred.
    Input,
    /// `W`: the deferred weight gradients.
    Weight,
    /// `RECV_F`: post the receive of the previous stage's activations.
    RecvForward,
    /// `SEND_F`: send activations to the next stage.
    SendForward,
    /// `RECV_B`: post the receive of the next stage's gradient.
    RecvBackward,
    /// `SEND_B`: send the gradient to the previous stage.
    SendBackward,
}

impl Kind {
    const ALL: [(Kind, &'static str); 8] = [
        (Kind::RecvForward, "RECV_F"),
        (Kind::SendForward, "SEND_F"),
        (Kind::RecvBackward, "RECV_B"),
        (Kind::SendBackward, "SEND_B"),
        (Kind::Forward, "F"),
        (Kind::Backward, "B"),
        (Kind::Input, "I"),
        (Kind::Weight, "W"),
    ];
}

/// One action of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Action {
    /// The pipeline stage that does it.
    pub stage: u32,
    /// What it does.
    pub kind: Kind,
    /// For which micro-batch of the step.
    pub micro_batch: MicroBatch,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Kind::ALL.iter().find(|(kind, _)| kind == self).map_or("?", |(_, text)| text))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.stage, self.kind, self.micro_batch)
    }
}

/// A text that is not an action.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an action; actions look like 2F0, 1SEND_F3 or 0RECV_B1")]
pub struct NotAnAction(String);

impl FromStr for Action {
    type Err = NotAnAction;

    fn from_str(text: &str) -> Result<Action, NotAnAction> {
        let error = || NotAnAction(text.to_owned());
        let letters = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (stage, rest) = text.split_at(letters);
        let (kind, micro_batch) = Kind::ALL
            .iter()
            .find_map(|(kind, name)| rest.strip_prefix(name).map(|rest| (*kind, rest)))
            .ok_or_else(error)?;
        Ok(Action {
            stage: stage.parse().map_err(|_| error())?,
            kind,
            micro_batch: MicroBatch(micro_batch.parse().map_err(|_| error())?),
        })
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Action, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_parse_back_from_their_text() {
        for text in ["2F0", "0B13", "1I4", "3W11", "1SEND_F3", "0RECV_B1", "10RECV_F2", "3SEND_B7"] {
            assert_eq!(text.parse::<Action>().unwrap().to_string(), text);
        }
        for text in ["", "F0", "2X0", "2F", "SEND_F", "2F0 "] {
            assert_eq!(text.parse::<Action>(), Err(NotAnAction(text.to_owned())));
        }
    }
}
