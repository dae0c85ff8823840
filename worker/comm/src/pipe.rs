//! Sends that are awaited late, so that compute goes on while they travel.

use std::collections::VecDeque;

use coxswain_native::TorchError;
use coxswain_native::net::Transfer;

/// Sends in flight, oldest first. Each keeps its tensor alive until it is awaited.
#[derive(Debug)]
pub struct Pipe {
    sends: VecDeque<Transfer>,
    in_flight_max: usize,
}

impl Pipe {
    /// No sends yet. More than `in_flight_max` and the oldest is awaited, for its memory: a bound
    /// that the schedule's own lead over the neighbour does not reach costs no time.
    pub fn new(in_flight_max: usize) -> Pipe {
        Pipe { sends: VecDeque::new(), in_flight_max }
    }

    /// Takes charge of a send.
    pub fn push(&mut self, send: Transfer) -> Result<(), TorchError> {
        self.sends.push_back(send);
        while self.sends.len() > self.in_flight_max {
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
