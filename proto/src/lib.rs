//! The wire form of what coordinator and worker agree on.
