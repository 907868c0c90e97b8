//! Room on the disk (R16): clients' writes stop at the reserve, repair at half of it, compaction at a quarter, and deletes never.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::Purpose;
use crate::env::{Clock, DiskSpace};

/// Keeps count of the room.
pub struct Space {
    limit_bytes: Option<u64>,
    reserve_percent: u8,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    disk: DiskSpace,
    /// Allocated for the open segment and not written yet: no longer available on the disk, but ours to use.
    room: u64,
    /// Bytes of records and headers, without what was given back.
    used: u64,
    /// Promised to chunks that are not written yet.
    pending: u64,
    /// The largest of clients' chunks that were refused since there was last room for it; 0 if none was.
    refused: u64,
    /// When one was refused last.
    refused_at: Option<Duration>,
}

/// A refusal counts for so long, even if there is room for the chunk again: a file needs room for all of its chunks, and what an
/// upload stored of them is given back when it fails.
const REFUSAL_COUNTS: Duration = Duration::from_secs(60);

/// Room promised to one chunk; given back when dropped.
pub struct Admitted {
    space: Arc<Space>,
    bytes: u64,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.space.state.lock().pending -= self.bytes;
    }
}

impl State {
    fn free(&self, capacity: u64) -> u64 {
        let free = capacity.saturating_sub(self.used).min(self.disk.available_bytes + self.room);
        free.saturating_sub(self.pending)
    }
}

impl Space {
    pub fn new(
        limit_bytes: Option<u64>,
        reserve_percent: u8,
        clock: Arc<dyn Clock>,
        disk: DiskSpace,
        used: u64,
    ) -> Arc<Self> {
        let state = State { disk, room: 0, used, pending: 0, refused: 0, refused_at: None };
        Arc::new(Self { limit_bytes, reserve_percent, clock, state: Mutex::new(state) })
    }

    fn capacity(&self, disk: DiskSpace) -> u64 {
        self.limit_bytes.map_or(disk.total_bytes, |limit| limit.min(disk.total_bytes))
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.capacity(self.state.lock().disk)
    }

    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used
    }

    /// What clients may still write.
    pub fn writable_bytes(&self) -> u64 {
        let state = self.state.lock();
        let capacity = self.capacity(state.disk);
        state.free(capacity).saturating_sub(self.reserve(capacity, Purpose::Write))
    }

    /// Whether clients are refused: there is nothing left for them, or less than the last one wanted, or they were refused just now.
    pub fn is_out_of_room(&self) -> bool {
        let writable = self.writable_bytes();
        let mut state = self.state.lock();
        if writable >= state.refused {
            state.refused = 0;
        }
        let now = self.clock.monotonic();
        let just_now = state.refused_at.is_some_and(|at| now.saturating_sub(at) < REFUSAL_COUNTS);
        writable == 0 || state.refused > 0 || just_now
    }

    fn reserve(&self, capacity: u64, purpose: Purpose) -> u64 {
        let reserve = capacity / 100 * u64::from(self.reserve_percent);
        match purpose {
            Purpose::Write => reserve,
            Purpose::Repair => reserve / 2,
            Purpose::Compact => reserve / 4,
        }
    }

    /// Promises room for a chunk; `None` if that would eat the reserve.
    pub fn admit(self: &Arc<Self>, bytes: u64, purpose: Purpose) -> Option<Admitted> {
        let mut state = self.state.lock();
        let capacity = self.capacity(state.disk);
        if state.free(capacity) < bytes + self.reserve(capacity, purpose) {
            if purpose == Purpose::Write {
                state.refused = state.refused.max(bytes);
                state.refused_at = Some(self.clock.monotonic());
            }
            return None;
        }
        state.pending += bytes;
        Some(Admitted { space: self.clone(), bytes })
    }

    /// Notes `written` bytes more, what the open segment still has, and what the disk says now if it says it.
    pub fn wrote(&self, written: u64, room: u64, disk: Option<DiskSpace>) {
        let mut state = self.state.lock();
        state.used += written;
        state.room = room;
        state.disk = disk.unwrap_or(state.disk);
    }

    /// The open segment takes nothing more.
    pub fn no_room(&self) {
        self.state.lock().room = 0;
    }

    /// Notes bytes given back to the disk.
    pub fn freed(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
    }

    /// Notes what the disk says now.
    pub fn look(&self, disk: DiskSpace) {
        self.state.lock().disk = disk;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::paused::paused;

    fn space_of(limit_bytes: Option<u64>, reserve_percent: u8, used: u64) -> Arc<Space> {
        Space::new(limit_bytes, reserve_percent, paused().clock, DISK, used)
    }

    const DISK: DiskSpace = DiskSpace { total_bytes: 10_000, available_bytes: 5_000 };

    #[tokio::test(start_paused = true)]
    async fn writes_stop_at_the_reserve_and_repair_at_half_of_it() {
        let space = space_of(Some(1_000), 8, 0);
        assert_eq!(space.writable_bytes(), 920);
        let first = space.admit(900, Purpose::Write).unwrap();
        assert!(space.admit(21, Purpose::Write).is_none());
        assert!(space.admit(61, Purpose::Repair).is_none());
        let second = space.admit(60, Purpose::Repair).unwrap();
        assert!(space.is_out_of_room());
        drop((first, second));
        assert!(space.is_out_of_room(), "somebody was refused just now");
        tokio::time::advance(REFUSAL_COUNTS).await;
        assert!(!space.is_out_of_room());
        assert!(space.admit(920, Purpose::Write).is_some());
    }

    /// A chunk may be longer than what is left, and then nothing is written although something could be.
    #[tokio::test(start_paused = true)]
    async fn a_node_is_out_of_room_while_the_largest_refused_chunk_would_be_refused() {
        let space = space_of(Some(1_000), 8, 900);
        assert!(!space.is_out_of_room(), "20 are left, and nobody wanted more");
        assert!(space.admit(100, Purpose::Write).is_none() && space.admit(50, Purpose::Write).is_none());
        assert!(space.admit(100, Purpose::Repair).is_none());
        tokio::time::advance(REFUSAL_COUNTS).await;
        assert!(space.is_out_of_room());
        space.freed(79);
        assert!(space.is_out_of_room(), "99 are left");
        space.freed(1);
        assert!(!space.is_out_of_room());
        space.wrote(50, 0, None);
        assert!(!space.is_out_of_room(), "and nobody was refused since");
    }

    /// A file of several chunks: the first is stored, the next refused, and the first given back.
    #[tokio::test(start_paused = true)]
    async fn a_node_is_out_of_room_while_files_are_refused_of_which_one_chunk_would_fit() {
        let space = space_of(Some(1_000), 8, 860);
        for _ in 0..10 {
            let first = space.admit(40, Purpose::Write).expect("it fits");
            assert!(space.admit(40, Purpose::Write).is_none());
            drop(first);
            tokio::time::advance(REFUSAL_COUNTS / 2).await;
            assert!(space.is_out_of_room());
        }
        tokio::time::advance(REFUSAL_COUNTS / 2).await;
        assert!(!space.is_out_of_room(), "nobody wants any more");
    }

    #[tokio::test(start_paused = true)]
    async fn others_on_the_disk_count_too() {
        let space = space_of(None, 10, 100);
        assert_eq!(space.capacity_bytes(), 10_000);
        assert_eq!(space.writable_bytes(), 4_000);
        space.wrote(50, 200, Some(DiskSpace { available_bytes: 2_000, ..DISK }));
        assert_eq!((space.used_bytes(), space.writable_bytes()), (150, 1_200));
        space.freed(100);
        space.look(DiskSpace { available_bytes: 2_100, ..DISK });
        assert_eq!((space.used_bytes(), space.writable_bytes()), (50, 1_300));
        assert_eq!(space_of(Some(u64::MAX), 8, 0).capacity_bytes(), 10_000);
    }
}
