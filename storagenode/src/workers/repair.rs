//! Repair: every node brings itself up to date from the other members of its groups, by comparing inventories.
//!
//! A pass asks each live member, for every group shared with it, for count and digest of what it holds. Where these are
//! equal the two agree. Where they differ, the member's inventory is fetched, and what this node lacks is copied:
//! tombstones first, then chunks. What the member lacks it fetches itself, in its own pass. A group is *settled* at this
//! node when every member is alive and agreed with it in the latest pass (R3, between sweeps).

pub mod plan;
pub mod run;

pub use run::{Repair, RepairOptions, Settled};
