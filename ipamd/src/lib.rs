//! The daemon of one node: owns its ENIs, their addresses, and every kernel object that pods need.
//!
//! `node` decides (events in, effects out, synchronous); everything else does what it says, or tells it what happened.

pub mod cloud;
pub mod config;
