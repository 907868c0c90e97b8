//! Cairn's storage node, as a library: the binary, the local supervisor and the tests run the same code.
//!
//! Dependencies point down: `api` → `files` → `replication` → `chunks`, `meta`; everything reaches the world outside
//! through [`env`]. See `docs/ARCHITECTURE.md` for a byte's way through these modules.

// Unit tests may use clocks and files directly; what they test may not (see clippy.toml).
#![cfg_attr(test, allow(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod api;
pub mod chunks;
pub mod cluster;
pub mod config;
pub mod env;
pub mod files;
pub mod meta;
pub mod metrics;
pub mod node;
pub mod replication;
pub mod run;
pub mod secrets;
pub mod tls;
pub mod warnings;
pub mod workers;

/// The wire types, for programs that serve beside a node.
pub use cairn_proto::v1 as proto;
