//! The daemon of one node: owns its ENIs, their addresses, and every kernel object that pods need.
//!
//! The crate `node` decides (events in, effects out, synchronous); everything else does what it says, or tells it what happened.

pub mod checkpoint;
pub mod clock;
pub mod cloud;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod generate;
pub mod grpc;
pub mod helper;
pub mod hold;
pub mod install;
pub mod max_pods;
pub mod metrics;
pub mod server;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tools;

mod app;
mod checkpointing;
mod cloud_tasks;
mod estate;
pub mod host;
mod listening;
mod lock;
mod memory;
mod queue;
mod readers;
mod start;
mod stop;
mod web;
mod workers;

pub use node;
pub use node::families;
