//! The daemon's decisions in virtual time: one node in a world that plays foul ([`history`]), and thousands of nodes on one
//! account's token buckets ([`fleet`]).

pub mod fleet;
pub mod history;
mod rng;

/// An instance type that the table lacks.
#[derive(Debug, thiserror::Error)]
#[error("there is no instance type {0:?}")]
pub struct UnknownType(pub String);
