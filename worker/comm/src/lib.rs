//! Tensors between processes.
