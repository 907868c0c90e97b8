//! A simulated world for the seams of `cairn_node::env`: one seed, one thread, paused time.
//!
//! The code under test is the real one; only what it stands on is ours, and worse than any hardware: see [`disk`].

pub mod disk;
pub mod env;
