//! Truth (R3): whether everything that the metadata names is on some disk. Repair compares members with each other; if
//! all of them have lost the same thing they agree, and only the metadata knows better.
//!
//! The coordinator makes a pass after every change of the map, of a disk or of who is there, and at rest again and again:
//!
//! 1. Read all file records, and sum per group and number of copies the chunks that they name: count, and wrapping sum of
//!    the ids' hashes, as in the nodes' own summaries. Apart from these, the same for deleted generations that rest (R7):
//!    their chunks may be there.
//! 2. Ask the live nodes for their summaries. A group in which one holder has exactly what is named (or that and all that
//!    rests) lacks nothing. Any other is *doubtful*: uploads that go on or have failed leave more chunks than are named.
//! 3. For the doubtful groups, a bounded number of chunks at a time, read the records again for the ids, and the holders'
//!    inventories. A named chunk that no holder has makes its group *missing*, unless its file is gone by now (its
//!    record is read again; a generation that is gone never comes back). If every holder was asked, and their damaged
//!    copies do not make a whole one together, the file is *lost*.
//! 4. Publish `c/truth` if it changed, and each volume's count of files and bytes.
//!
//! What was found holds for the map and the disks that it was found with: a new disk makes it void, and so does a node that
//! starts anew for what it holds, since a start may find less on the disk; nothing there counts as settled until the next
//! pass. Whether everything can be read (`ClusterState::readable`) hangs on who is live, too. Records are read page by page
//! at one revision. The embedded store, and an etcd that is compacted meanwhile, do not keep it: there, a file that is renamed meanwhile may
//! be overlooked by one pass. That can hide a loss until the next, and never removes anything.

pub mod plan;
pub mod run;

pub use run::Truth;
