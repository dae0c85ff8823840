//! What a worker's process does about what it hears from the coordinator, its engine, its user and the clock.
//! Pure: an input and the time give actions as values. Sockets, threads and words for people are the caller's.
//!
//! Reading order:
//! - [`Agent`] (`agent.rs`): inputs to actions.
//! - [`AgentInput`], [`AgentAction`] (`messages.rs`): what goes in and comes out.
//! - `assignment.rs`: the assignment at hand, what the worker says of it and what is
//!   asked of it.
//! - `contact.rs`: how the worker stands with the coordinator, and how long it looks for it.
//! - [`Departure`], [`StopRequest`], [`AgentError`] (`departure.rs`): why the process ends.

mod agent;
mod assignment;
mod contact;
mod departure;
mod messages;

pub use agent::{Agent, AgentSettings, time_to_end_ms};
pub use departure::{AgentError, Departure, StopRequest};
pub use messages::{AgentAction, AgentInput, AgentNotice, CoordinatorNews, EngineNews, Publication};

#[cfg(test)]
mod tests;
