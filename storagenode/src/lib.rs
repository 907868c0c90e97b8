//! Cairn's storage node, as a library: the binary, the local supervisor and the tests run the same code.
//!
//! Dependencies point down: `api` → `files` → `replication` → `chunks`, `meta`; everything reaches the world outside
//! through [`env`]. See `docs/ARCHITECTURE.md` for a byte's way through these modules.

pub mod api;
pub mod chunks;
pub mod cluster;
pub mod env;
pub mod files;
pub mod meta;
pub mod node;
pub mod replication;
pub mod workers;
