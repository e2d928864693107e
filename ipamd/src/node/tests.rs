//! The node, driven by events.
