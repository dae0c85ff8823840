//! Sends that are awaited late, so that compute goes on while they travel.

use std::collections::VecDeque;

use coxswain_native::TorchError;
use coxswain_native::net::Transfer;

/// Sends in flight, oldest first. Each keeps its tensor alive until it is awaited.
#[derive(Debug, Default)]
pub struct Pipe {
    sends: VecDeque<Transfer>,
}

impl Pipe {
    /// How many sends may be in flight before the oldest is awaited. A stage runs ahead of its
    /// neighbour by its number of warm-up micro-batches, which is below the number of stages; this
    /// many keep any sensible pipeline from waiting and still bound the memory.
    pub const IN_FLIGHT_MAX: usize = 32;

    /// Takes charge of a send.
    pub fn push(&mut self, send: Transfer) -> Result<(), TorchError> {
        self.sends.push_back(send);
        while self.sends.len() > Self::IN_FLIGHT_MAX {
            self.wait_oldest()?;
        }
        Ok(())
    }

    /// Waits for all sends.
    pub fn drain(&mut self) -> Result<(), TorchError> {
        while !self.sends.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }

    fn wait_oldest(&mut self) -> Result<(), TorchError> {
        self.sends.pop_front().map_or(Ok(()), Transfer::wait)
    }
}
