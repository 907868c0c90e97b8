//! The sweep (R2): what uploads left behind that were never committed, and never came to bury it, is found and removed.
//!
//! It must never remove a chunk that a record names, or that a commit may still name. What a commit may name is bounded by
//! the *sweep epoch*: every generation carries the epoch in which it was minted, and a commit compares the epoch and wants its
//! generation's to be the present one or the one before; an upload that takes longer holds an `upload/<generation>` key, made under
//! the same rule. So once sweep *n* has raised the epoch to *n*, a generation of epoch ≤ *n* − 2 is named by a record, or held by
//! an upload key, or it will never be named.
//!
//! The coordinator sweeps every 360 ticks:
//!
//! 1. Raise `c/epoch` to *n*, together with `c/sweep` (unfinished). A coordinator that finds it unfinished goes on from here.
//! 2. As in the comparison (`workers/truth`): sum per group what records name, of epoch ≤ *n* − 2, and ask the nodes for the sums
//!    of what is on their disks, whole or not. Where they agree, nothing is left behind: two sums a group.
//! 3. Elsewhere, a bounded number of chunks at a time: list the inventories, and strike out what is named. The scan that strikes
//!    out reads `upload/` first, then the records page by page beside a watch that begins at the first page's revision, then
//!    `collect/`. The watch is read up to a marker written behind the last page. So a file that moves between two pages
//!    is seen, and so is an upload that is committed, or a file that is deleted, meanwhile. A watch that is lost: start the sweep again.
//! 4. What is left of a generation gets `quarantine/<generation>`. Found again by another sweep, 1,440 ticks later or more,
//!    it is queued for collection like a deleted file. One that is not found any more is let go; one that a record names
//!    after all is let go too, with an alarm, since that must not happen.
//!
//! While the metadata store may be an older copy of itself (R10) there is no sweep: after a restoration everything newer than
//! the backup looks left behind.

pub mod plan;
pub mod run;

pub use run::Sweep;
