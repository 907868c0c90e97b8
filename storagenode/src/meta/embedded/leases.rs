//! Leases: in memory, by monotonic time. Their keys are in the file.

use std::{collections::HashMap, time::Duration};

use crate::meta::LeaseId;

/// All leases. There are few (one a node, one a long upload), so they are searched one by one.
#[derive(Default)]
pub(super) struct Leases {
    leases: HashMap<LeaseId, Lease>,
}

struct Lease {
    ttl: Duration,
    deadline: Duration,
    /// Its end was decided; it is forgotten when its keys are gone from the file.
    ended: bool,
}

impl Leases {
    /// `false` if the id is taken.
    pub(super) fn grant(&mut self, id: LeaseId, ttl: Duration, now: Duration) -> bool {
        if self.leases.contains_key(&id) {
            return false;
        }
        self.leases.insert(id, Lease { ttl, deadline: now.saturating_add(ttl), ended: false });
        true
    }

    /// `false` if it has ended.
    pub(super) fn renew(&mut self, id: LeaseId, now: Duration) -> bool {
        match self.leases.get_mut(&id) {
            Some(lease) if !lease.ended => {
                lease.deadline = now.saturating_add(lease.ttl);
                true
            }
            _ => false,
        }
    }

    pub(super) fn is_live(&self, id: LeaseId) -> bool {
        self.leases.get(&id).is_some_and(|lease| !lease.ended)
    }

    /// Decides its end. `false` if there is no such lease (any more).
    pub(super) fn end(&mut self, id: LeaseId) -> bool {
        self.leases.get_mut(&id).map(|lease| lease.ended = true).is_some()
    }

    /// Its keys are gone.
    pub(super) fn forget(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }

    /// Leases whose keys must go now, in order of their ids.
    pub(super) fn due(&self, now: Duration) -> Vec<LeaseId> {
        let due = |lease: &Lease| lease.ended || lease.deadline <= now;
        let mut ids: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| due(lease)).map(|(id, _)| *id).collect();
        ids.sort_by_key(|id| id.0);
        ids
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.leases.values().map(|lease| if lease.ended { Duration::ZERO } else { lease.deadline }).min()
    }
}
