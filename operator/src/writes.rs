//! Counts what the operator does, for `/metrics`: at rest, only the Lease is written.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Objects created, changed or deleted in Kubernetes, the Lease and Events aside.
    pub writes: AtomicU64,
    pub status_writes: AtomicU64,
    pub events: AtomicU64,
    pub lease_writes: AtomicU64,
    pub reconciles: AtomicU64,
    pub failures: AtomicU64,
    /// 1 while this process leads.
    pub leading: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// In Prometheus' text format.
    pub fn to_text(&self) -> String {
        let all: [(&str, &str, &str, &AtomicU64); 7] = [
            (
                "cairn_operator_writes_total",
                "counter",
                "Objects written or deleted in Kubernetes",
                &self.writes,
            ),
            ("cairn_operator_status_writes_total", "counter", "Statuses written", &self.status_writes),
            ("cairn_operator_events_total", "counter", "Events published", &self.events),
            (
                "cairn_operator_lease_writes_total",
                "counter",
                "Renewals of the leader's Lease",
                &self.lease_writes,
            ),
            ("cairn_operator_reconciles_total", "counter", "Looks at a resource", &self.reconciles),
            ("cairn_operator_failures_total", "counter", "Looks that ended with an error", &self.failures),
            ("cairn_operator_leading", "gauge", "1 while this process leads", &self.leading),
        ];
        all.iter().fold(String::new(), |mut text, (name, kind, help, value)| {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}");
            text
        })
    }
}
