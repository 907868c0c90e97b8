//! Simulation: the real code on seams that lose, tear, reorder and forget, driven by one seed.

pub mod cluster;
pub mod content;
pub mod disk;
pub mod env;
pub mod leftovers;
pub mod life;
pub mod linear;
pub mod memory;
pub mod meta;
pub mod network;
pub mod plants;
pub mod store;
pub mod story;
