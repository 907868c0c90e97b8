//! Background work. Each worker is a loop of one shape: look, decide (pure), do a bounded amount, wait.
//!
//! * [`repair`] runs on every node: brings this node's groups up to date from the other members.
//! * [`scrub`] runs on every node: reads its disk again, by and by.
//! * [`compact`] runs on every node: gives back what garbage takes on its disk.
//! * [`truth`] runs on the coordinator: whether everything that the metadata names is on some disk.
//! * [`sweep`] runs on the coordinator: what uploads left behind.
//! * [`collect`] and [`remove`] run on the coordinator: chunks of deleted generations, files of deleted volumes.

pub mod collect;
pub mod compact;
pub(crate) mod inventories;
pub mod records;
pub mod remove;
pub mod repair;
pub mod scrub;
pub mod sweep;
pub mod truth;

pub use repair::Repair;
