//! One process, one device: runs what it is assigned.
fn main() {}
