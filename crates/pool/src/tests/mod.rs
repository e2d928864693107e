//! Tests of the allocator as a whole.

mod automatic;
mod behaviour;
mod cards;
mod examples;
mod kit;
mod lag;
mod model;
mod plans;
mod prefixes;
mod properties;
mod room;
