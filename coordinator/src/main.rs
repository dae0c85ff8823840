//! The coordinator of a training cluster.
fn main() {}
