//! The C++ shim over libtorch.
