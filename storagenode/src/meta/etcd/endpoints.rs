//! Which member is asked, and the connections to the members.
//!
//! Each member has a connection of its own, and all calls go to one member until it fails: with etcd-client's own
//! balancing over all members, a dead one, failing at once, would keep getting its share of the requests, and nobody could
//! tell to which member a lost request went.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use parking_lot::Mutex;

use super::errors::Failure;
use crate::{
    env::{Disk, Env, OpenMode},
    meta::url::{EtcdAddress, EtcdTls},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pings on connections in use find peers that are gone without a word. etcd takes offence at one in less than 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// No certificate file is larger.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// Why what `DATABASE_URL` says cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error("the file {path}, named by DATABASE_URL, cannot be read: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("etcd cannot be used as DATABASE_URL says: {0}")]
    Client(String),
}

/// Whether a member must have a leader to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leader {
    Required,
    /// For stale reads, which work without a quorum.
    NotRequired,
}

/// All members.
pub(super) struct Endpoints {
    env: Env,
    tls: Option<EtcdTls>,
    members: Vec<Member>,
    /// Index of the member that is asked now.
    current: AtomicUsize,
}

struct Member {
    url: String,
    leader_required: Mutex<Slot>,
    leader_not_required: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    client: Option<Client>,
    /// Counts clients, so that a failure of an old one is not blamed on a new one.
    epoch: u64,
}

/// A client and where it came from.
pub(super) struct Picked {
    pub client: Client,
    member: usize,
    leader: Leader,
    epoch: u64,
}

impl Endpoints {
    pub(super) async fn new(env: Env, address: EtcdAddress) -> Result<Self, OptionsError> {
        let scheme = if address.tls.is_some() { "https" } else { "http" };
        let member = |host: &String| Member {
            url: format!("{scheme}://{host}"),
            leader_required: Mutex::default(),
            leader_not_required: Mutex::default(),
        };
        let members: Vec<Member> = address.hosts.iter().map(member).collect();
        // Nodes begin at different members.
        let current = AtomicUsize::new(env.random.below(members.len() as u64) as usize);
        let endpoints = Self { env, tls: address.tls, members, current };
        // Mistakes in files show at the start, not with the first request.
        for member in 0..endpoints.members.len() {
            endpoints.connect(member, Leader::Required).await?;
        }
        Ok(endpoints)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Between half of `longest` and all of it.
    pub(super) fn jitter(&self, longest: Duration) -> Duration {
        let half = longest / 2;
        half + Duration::from_millis(self.env.random.below(half.as_millis() as u64 + 1))
    }

    /// The member to ask now.
    pub(super) async fn pick(&self, leader: Leader) -> Result<Picked, String> {
        let member = self.current.load(Ordering::Relaxed) % self.members.len();
        let (known, epoch) = {
            let slot = self.slot(member, leader).lock();
            (slot.client.clone(), slot.epoch)
        };
        if let Some(client) = known {
            return Ok(Picked { client, member, leader, epoch });
        }
        let made = self.connect(member, leader).await;
        let client = made.inspect_err(|_| self.move_on(member)).map_err(|error| error.to_string())?;
        let mut slot = self.slot(member, leader).lock();
        // Two may have made one; both work.
        let client = slot.client.get_or_insert(client).clone();
        Ok(Picked { client, member, leader, epoch: slot.epoch })
    }

    /// A call to it has failed: another member is asked from now on.
    pub(super) fn failed(&self, picked: &Picked, failure: &Failure) {
        let connect_anew = match failure {
            Failure::Final(_) | Failure::TooLarge => return,
            // The connection may be a hole into which requests fall.
            Failure::Hung(_) => true,
            // The certificates may have been renewed.
            Failure::NotDone(_) | Failure::Unknown(_) => self.tls.is_some(),
        };
        self.move_on(picked.member);
        if connect_anew {
            let mut slot = self.slot(picked.member, picked.leader).lock();
            if slot.epoch == picked.epoch {
                *slot = Slot { client: None, epoch: picked.epoch + 1 };
            }
        }
    }

    fn move_on(&self, from: usize) {
        let next = (from + 1) % self.members.len();
        // If it has changed meanwhile, another call has moved on already.
        let _ = self.current.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn slot(&self, member: usize, leader: Leader) -> &Mutex<Slot> {
        match leader {
            Leader::Required => &self.members[member].leader_required,
            Leader::NotRequired => &self.members[member].leader_not_required,
        }
    }

    /// Makes a client; its connection is made with the first request.
    async fn connect(&self, member: usize, leader: Leader) -> Result<Client, OptionsError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(TCP_KEEPALIVE)
            .with_require_leader(leader == Leader::Required);
        if let Some(tls) = &self.tls {
            options = options.with_tls(self.read_tls(tls).await?);
        }
        let connecting = Client::connect([&self.members[member].url], Some(options));
        connecting.await.map_err(|error| OptionsError::Client(error.to_string()))
    }

    async fn read_tls(&self, tls: &EtcdTls) -> Result<TlsOptions, OptionsError> {
        let mut options =
            TlsOptions::new().ca_certificate(Certificate::from_pem(self.read_file(&tls.ca_file).await?));
        if let Some(client) = &tls.certificate {
            let certificate = self.read_file(&client.certificate_file).await?;
            let key = self.read_file(&client.key_file).await?;
            options = options.identity(Identity::from_pem(certificate, key));
        }
        Ok(options)
    }

    async fn read_file(&self, path: &Path) -> Result<Vec<u8>, OptionsError> {
        let (disk, owned) = (self.env.disk.clone(), path.to_owned());
        let read = self.env.blocking(move || read_file(&*disk, &owned)).await;
        read.map_err(|error| OptionsError::File { path: path.to_owned(), error })
    }
}

fn read_file(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let size = file.size()?;
    if size > MAX_PEM_BYTES {
        return Err(io::Error::other(format!("{size} bytes are too many for a certificate")));
    }
    let mut bytes = vec![0; size as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}
