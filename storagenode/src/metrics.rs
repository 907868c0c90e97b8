//! What a node counts, in OpenMetrics form.
//!
//! One [`Metrics`] is made per node and handed to whoever has something to count. Labels hold methods and error codes
//! only, never names of files, volumes, clients or peers: so the numbers may be read without a token.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which door a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interface {
    Grpc,
    Http,
}

impl Interface {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub interface: &'static str,
    pub method: &'static str,
    /// `OK`, or the name of the [`cairn_proto::v1::ErrorCode`].
    pub code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabels {
    pub interface: &'static str,
    pub method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InterfaceLabels {
    pub interface: &'static str,
}

/// Counters and gauges of one node.
pub struct Metrics {
    registry: Registry,
    /// Requests ended, by method and outcome.
    pub requests: Family<RequestLabels, Counter>,
    pub request_seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    /// Content of files received from, and sent to, clients.
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// Uploads and downloads going on.
    pub open_streams: Gauge,
    pub connections: Family<InterfaceLabels, Gauge>,
    /// Connections closed at once because too many were open.
    pub connections_refused: Counter,
    pub store_capacity_bytes: Gauge,
    pub store_used_bytes: Gauge,
    pub store_index_bytes: Gauge,
    pub chunks: Gauge,
    pub chunks_damaged: Gauge,
    pub tombstones: Gauge,
    /// Copies of chunks fetched from other nodes because this one lacked them.
    pub repair_copies: Counter,
    /// Frames or copies found damaged, here or at a peer.
    pub corrupt_copies: Counter,
    /// Bytes of segments that were mostly garbage, and are removed.
    pub compacted_bytes: Counter,
    /// Placement groups that this node is a member of, and those of them that it has found complete.
    pub placement_groups: Gauge,
    pub placement_groups_settled: Gauge,
    pub lost_files: Gauge,
    /// Calls of the metadata store that failed.
    pub meta_errors: Counter,
    /// Generations whose chunks were collected after their deletion (coordinator only).
    pub collected_generations: Counter,
    /// 1 while this node is the coordinator.
    pub coordinator: Gauge,
}

fn request_histogram() -> Histogram {
    // 1 ms to about 65 s.
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("cairn"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(request_histogram),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            open_streams: Gauge::default(),
            connections: Family::default(),
            connections_refused: Counter::default(),
            store_capacity_bytes: Gauge::default(),
            store_used_bytes: Gauge::default(),
            store_index_bytes: Gauge::default(),
            chunks: Gauge::default(),
            chunks_damaged: Gauge::default(),
            tombstones: Gauge::default(),
            repair_copies: Counter::default(),
            corrupt_copies: Counter::default(),
            compacted_bytes: Counter::default(),
            placement_groups: Gauge::default(),
            placement_groups_settled: Gauge::default(),
            lost_files: Gauge::default(),
            meta_errors: Counter::default(),
            collected_generations: Counter::default(),
            coordinator: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Requests ended, by method and outcome", self.requests.clone());
        r.register_with_unit(
            "request",
            "Time from a request's header to the end of its answer",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        r.register_with_unit(
            "received",
            "File content received from clients",
            Unit::Bytes,
            self.bytes_in.clone(),
        );
        r.register_with_unit("sent", "File content sent to clients", Unit::Bytes, self.bytes_out.clone());
        r.register("open_streams", "Uploads and downloads going on", self.open_streams.clone());
        r.register("connections", "Open connections", self.connections.clone());
        r.register(
            "connections_refused",
            "Connections closed at once because too many were open",
            self.connections_refused.clone(),
        );
        let store = [
            ("store_capacity", "Size of the chunk store", &self.store_capacity_bytes),
            ("store_used", "Bytes of the chunk store in use", &self.store_used_bytes),
            ("store_index", "Memory that the index of chunks and tombstones takes", &self.store_index_bytes),
        ];
        for (name, help, gauge) in store {
            r.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
        let gauges = [
            ("chunks", "Chunks held", &self.chunks),
            ("chunks_damaged", "Chunks of which only a part can be read", &self.chunks_damaged),
            ("tombstones", "Deletions of chunks remembered", &self.tombstones),
            ("placement_groups", "Placement groups this node is a member of", &self.placement_groups),
            ("placement_groups_settled", "Of those, found complete", &self.placement_groups_settled),
            (
                "lost_files",
                "Files with content that no disk has any more, as last compared",
                &self.lost_files,
            ),
            ("coordinator", "1 while this node is the coordinator", &self.coordinator),
        ];
        for (name, help, gauge) in gauges {
            r.register(name, help, gauge.clone());
        }
        let counters = [
            ("repair_copies", "Chunks fetched because this node lacked them", &self.repair_copies),
            ("corrupt_copies", "Copies of chunks found damaged", &self.corrupt_copies),
            (
                "compacted_bytes",
                "Bytes of segments that were mostly garbage, given back",
                &self.compacted_bytes,
            ),
            ("meta_errors", "Calls of the metadata store that failed", &self.meta_errors),
            (
                "collected_generations",
                "Deleted generations whose chunks are gone",
                &self.collected_generations,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
    }

    /// Counts a request that ended.
    pub fn request_ended(
        &self,
        interface: Interface,
        method: &'static str,
        code: &'static str,
        took: Duration,
    ) {
        let interface = interface.as_str();
        self.requests.get_or_create(&RequestLabels { interface, method, code }).inc();
        self.request_seconds.get_or_create(&MethodLabels { interface, method }).observe(took.as_secs_f64());
    }

    /// Everything as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.request_ended(Interface::Grpc, "Upload", "OK", Duration::from_millis(3));
        metrics.request_ended(Interface::Http, "GET file", "FILE_NOT_FOUND", Duration::from_millis(1));
        metrics.bytes_in.inc_by(17);
        metrics.store_used_bytes.set(4096);
        let text = metrics.encode();
        for line in [
            r#"cairn_requests_total{interface="grpc",method="Upload",code="OK"} 1"#,
            r#"cairn_requests_total{interface="http",method="GET file",code="FILE_NOT_FOUND"} 1"#,
            r#"cairn_request_seconds_count{interface="grpc",method="Upload"} 1"#,
            "cairn_received_bytes_total 17",
            "cairn_store_used_bytes 4096",
            "cairn_placement_groups_settled 0",
            "cairn_lost_files 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
