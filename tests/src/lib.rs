//! Whole clusters of real processes on one machine.
