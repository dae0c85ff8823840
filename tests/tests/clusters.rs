//! The tests that start clusters of processes and may run beside others, in one binary: a binary that holds libtorch
//! takes seconds to link and half a second to list its tests. What measures times, and what has ranks as threads of its
//! own process, is a binary of its own.

#[path = "architectures.rs"]
mod architectures;
#[path = "convergence.rs"]
mod convergence;
#[path = "coordinator.rs"]
mod coordinator;
#[path = "estimates.rs"]
mod estimates;
#[path = "exits.rs"]
mod exits;
#[path = "finetune.rs"]
mod finetune;
#[path = "gpu.rs"]
mod gpu;
#[path = "layouts.rs"]
mod layouts;
#[path = "ledger.rs"]
mod ledger;
#[path = "manifests.rs"]
mod manifests;
#[path = "memory.rs"]
mod memory;
#[path = "models.rs"]
mod models;
#[path = "modes.rs"]
mod modes;
#[path = "nodes.rs"]
mod nodes;
#[path = "page.rs"]
mod page;
#[path = "pods.rs"]
mod pods;
#[path = "starting.rs"]
mod starting;
#[path = "verify.rs"]
mod verify;
#[path = "writing.rs"]
mod writing;
