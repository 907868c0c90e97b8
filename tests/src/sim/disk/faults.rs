//! What a simulated disk can be made to do wrong, and what it counts.

/// Operations that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    /// Of a file.
    Sync,
    SyncFolder,
    Allocate,
    Create,
}

/// Makes operations fail, once or more often.
#[derive(Debug, Clone)]
pub struct Fault {
    pub operation: Operation,
    /// Only on paths that contain this.
    pub path: String,
    /// So many pass before.
    pub after: u64,
    /// So many fail.
    pub times: u64,
    pub os_error: i32,
}

/// How often things were done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    pub reads: u64,
    pub writes: u64,
    pub syncs: u64,
    pub folder_syncs: u64,
}
