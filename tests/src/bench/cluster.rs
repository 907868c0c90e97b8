//! What is measured: four nodes in three zones on a three-member etcd, or one alone, and volumes, which come and go with
//! the cases.

use std::{
    cell::Cell,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use cairn_client::{Client, ClientConfig, CreateVolume, ListOptions, Pem, StatusResponse};
use cairn_node::env::{Disk as _, real::RealDisk};

use super::{
    CHUNK_BYTES, Setup, blocking,
    load::percentile_ms,
    report::{Copies, Listing},
    usage::Meter,
};
use crate::{
    cairn::{CairnCluster, ClusterOptions},
    etcd::EtcdCluster,
    scratch::Scratch,
    tools::Tools,
};

/// Names in a page of a listing: as many as a server gives at most.
const PAGE: u32 = 1_000;
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
/// A node gives up on a copy after five seconds; then it is repair's business.
const STRAGGLERS_WITHIN: Duration = Duration::from_secs(6);
const EMPTY_WITHIN: Duration = Duration::from_secs(300);

/// The running cluster.
pub struct Bed {
    /// Before etcd: it ends first.
    cluster: CairnCluster,
    pub meter: Meter,
    pub setup: Setup,
    _etcd: Option<EtcdCluster>,
    _metadata: Scratch,
}

pub async fn start_etcd(tools: Tools) -> Result<EtcdCluster> {
    blocking(move || EtcdCluster::start(&tools, 3).context("etcd does not start")).await
}

impl Bed {
    /// Without etcd, the metadata is embedded in the one node.
    pub async fn start(setup: Setup, etcd: Option<EtcdCluster>, folder: &Path) -> Result<Self> {
        let metadata = Scratch::new("bench-metadata")?;
        let url = match &etcd {
            Some(etcd) => etcd.database_url("/bench"),
            None => format!("embedded://{}", metadata.path().join("metadata").display()),
        };
        let available = RealDisk.space(folder)?.available_bytes.to_string();
        // As in production, but that deleted content goes at once: it would fill the disk.
        let options = ClusterOptions::new(setup.zones(), url)
            .with("CAPACITY", available) // else the reserve is a part of a disk that may be full
            .with("LEASE_SECONDS", "10")
            .with("REPAIR_SECONDS", "5")
            .with("TICK_SECONDS", "1")
            .with("COLLECT_AFTER_TICKS", "1");
        let cluster = CairnCluster::start(options).await;
        let nodes = (0..cluster.len()).map(|index| cluster.process(index).pid()).collect();
        let meter = Meter::new(nodes, folder)?;
        let bed = Self { cluster, meter, setup, _etcd: etcd, _metadata: metadata };
        bed.wait_settled().await?;
        Ok(bed)
    }

    /// Stops every node in order and starts it again.
    pub async fn restart_nodes(&mut self, folder: &Path) -> Result<()> {
        (0..self.cluster.len()).for_each(|index| self.cluster.stop(index));
        (0..self.cluster.len()).for_each(|index| self.cluster.restart(index));
        let nodes = (0..self.cluster.len()).map(|index| self.cluster.process(index).pid()).collect();
        self.meter = Meter::new(nodes, folder)?;
        self.wait_settled().await
    }

    /// A client with connections of its own to every node, set up for so many transfers at a time.
    pub fn client(&self, streams: usize) -> Client {
        let endpoints: Vec<_> = (0..self.cluster.len()).map(|index| self.cluster.grpc(index)).collect();
        let ca = Pem::File(self.cluster.secrets().authority_certificate.clone());
        let mut config = ClientConfig::new(endpoints, ca).with_token(self.cluster.token());
        config.parallel_transfers = streams;
        Client::connect(config).expect("a configuration that the cluster itself made")
    }

    pub async fn create_volume(&self, name: &str) -> Result<()> {
        let volume = CreateVolume {
            name: name.to_owned(),
            copies: Some(self.setup.copies() as u32),
            chunk_size_bytes: Some(CHUNK_BYTES as u32),
        };
        self.client(1).create_volume(volume).await.with_context(|| format!("volume {name}"))?;
        Ok(())
    }

    /// Deletes a volume with its files, and waits until they have left every disk.
    pub async fn remove_volume(&self, name: String) -> Result<()> {
        self.client(1).delete_volume(&name, true).await.with_context(|| format!("volume {name}"))?;
        // Their space is given back a little later: the next case is not to pay for that.
        let used = Cell::new(None);
        let empty = |status: &StatusResponse| {
            let before = used.replace(Some(status.nodes.iter().map(|node| node.used_bytes).sum::<u64>()));
            let gone = status.collecting == 0 && status.nodes.iter().all(|node| node.chunks == 0);
            gone && before == used.get()
        };
        self.wait("deleted files to leave the disks", EMPTY_WITHIN, empty).await
    }

    /// Counts copies, just after `files` files of `file_bytes` were acknowledged: a majority of each chunk's are there.
    pub async fn copies(&self, files: u64, file_bytes: u64) -> Result<Copies> {
        let (chunks, wanted) = (files * file_bytes.div_ceil(CHUNK_BYTES), self.setup.copies());
        let client = self.client(1);
        let begun = Instant::now();
        let mut at_end = None;
        loop {
            let copies: u64 = client.status().await?.nodes.iter().map(|node| node.chunks).sum();
            let at_end = *at_end.get_or_insert((copies as f64 / chunks as f64).min(wanted as f64));
            let all = copies >= wanted * chunks;
            if all || begun.elapsed() > STRAGGLERS_WITHIN {
                return Ok(Copies { at_end, all_after_s: all.then(|| begun.elapsed().as_secs_f64()) });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lists a volume from its first name to its last one.
    pub async fn list(&self, volume: &str) -> Result<Listing> {
        let options = ListOptions { page_size: PAGE, ..ListOptions::default() };
        let mut listing = self.client(1).list(volume, options);
        let (mut names, mut times) = (0, Vec::new());
        let begun = Instant::now();
        loop {
            let asked = Instant::now();
            let Some(page) = listing.next_page().await? else { break };
            times.push(asked.elapsed());
            names += page.files.len() as u64;
        }
        let names_per_s = names as f64 / begun.elapsed().as_secs_f64();
        times.sort_unstable();
        Ok(Listing {
            setup: self.setup,
            names,
            names_per_s,
            page_names: PAGE,
            page_p50_ms: percentile_ms(&times, 50),
        })
    }

    /// Waits until every copy is where it should be.
    pub async fn wait_settled(&self) -> Result<()> {
        let settled = |status: &StatusResponse| {
            status.placement_groups > 0 && status.settled == status.placement_groups
        };
        self.wait("every placement group to settle", SETTLED_WITHIN, settled).await
    }

    async fn wait(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&StatusResponse) -> bool,
    ) -> Result<()> {
        let client = self.client(1);
        let begun = Instant::now();
        loop {
            let status = client.status().await?;
            if wanted(&status) {
                return Ok(());
            }
            if begun.elapsed() > limit {
                bail!("waited {limit:?} for {what}; the cluster says {status:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
