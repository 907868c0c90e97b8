//! Where chunks belong: ids, placement groups, the cluster map, and the solver that fills it.
//!
//! Pure: no I/O, no clock, no randomness of its own. Vocabulary:
//!
//! * A [`Generation`] is one immutable version of a file; a [`ChunkId`] is a generation and an index.
//! * The [`hash`](ChunkId::hash) of a chunk id is xxh3-64; its top `pg_bits` bits are the placement group ([`PgId`]),
//!   so doubling the number of groups splits each in place and moves nothing.
//! * A [`ClusterMap`] says, for each group, the ordered members that should hold its chunks. A volume with `n` copies
//!   uses the first `n` of them.
//! * [`assign`] makes a map from nodes; [`check`] judges a map without knowing how it was made.

mod assign;
mod check;
mod ids;
mod map;

pub use assign::{AssignError, assign, pg_bits_for};
pub use check::{Fault, check};
pub use ids::{ChunkId, Generation, Incarnation, NodeId, ParseIdError, PgId, VolumeId};
pub use map::{ClusterMap, MAX_COPIES, MAX_PG_BITS, MapError, MemberNode, Members, PAGE_PGS};
