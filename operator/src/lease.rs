//! Who leads: one of several operators, by a Lease.
//!
//! As in client-go, nobody believes another machine's clock: a Lease has run out when it was *seen* unchanged for its
//! whole duration. Changes are made with `replace` and the resourceVersion that was read, so of two that try, one wins.
//! A leader that could not renew stops acting well before others may take over.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio_util::sync::CancellationToken;

use crate::writes::Counters;

/// Where the Lease is, and who asks.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    pub namespace: String,
    pub name: String,
    /// Unlike any other process's.
    pub identity: String,
    pub duration: Duration,
}

impl LeaseOptions {
    /// Between renewals, and between looks at another's Lease.
    fn period(&self) -> Duration {
        self.duration / 5
    }

    /// Without a renewal for so long, a leader stops: the rest of the duration is for its work to end in.
    fn patience(&self) -> Duration {
        self.duration * 3 / 5
    }
}

/// Why this process leads no more.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("{holder} leads now")]
    Taken { holder: String },
    #[error("the Lease could not be renewed for {} s: {problem}", after.as_secs())]
    NotRenewed { after: Duration, problem: String },
    #[error(
        "the API server does not let this operator use Lease {namespace}/{name} ({problem}); give it get, create and \
             update on leases there"
    )]
    Forbidden { namespace: String, name: String, problem: String },
}

/// Stands for election.
pub struct Elector {
    leases: Api<Lease>,
    options: LeaseOptions,
    counters: Arc<Counters>,
}

/// The Lease, as we wrote it last.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    renewed: Instant,
}

/// What we know of another's Lease.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Elector {
    pub fn new(client: Client, options: LeaseOptions, counters: Arc<Counters>) -> Self {
        Self { leases: Api::namespaced(client, &options.namespace), options, counters }
    }

    /// Waits until this process leads; `None` if `stop` came first.
    pub async fn acquire(&self, stop: &CancellationToken) -> Result<Option<Held>, LeaseError> {
        let mut seen: Option<Seen> = None;
        let mut told = String::new();
        loop {
            let attempt = tokio::time::timeout(
                self.options.period().max(Duration::from_secs(1)),
                self.attempt(&mut seen),
            );
            let standing = match attempt.await {
                Ok(Ok(Ok(held))) => return Ok(Some(held)),
                Ok(Ok(Err(holder))) => format!("{holder} leads; standing by"),
                Ok(Err(error)) => {
                    self.forbidden(&error)?;
                    format!("the Lease cannot be had: {error}")
                }
                Err(_) => "the API server does not answer".to_owned(),
            };
            if standing != told {
                tracing::info!("{standing}");
                told = standing;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(self.options.period()) => {}
            }
        }
    }

    fn forbidden(&self, error: &kube::Error) -> Result<(), LeaseError> {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => Err(LeaseError::Forbidden {
                namespace: self.options.namespace.clone(),
                name: self.options.name.clone(),
                problem: status.message.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// One try: `Ok(Err(holder))` if another leads.
    async fn attempt(&self, seen: &mut Option<Seen>) -> kube::Result<Result<Held, String>> {
        let begun = Instant::now();
        let Some(found) = self.leases.get_opt(&self.options.name).await? else {
            let lease = self.ours(None);
            return match self.leases.create(&PostParams::default(), &lease).await {
                Ok(lease) => Ok(Ok(self.held(lease, begun))),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Err("another".to_owned())),
                Err(error) => Err(error),
            };
        };
        let spec = found.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let version = found.metadata.resource_version.clone();
        if seen.as_ref().is_none_or(|seen| seen.version != version) {
            *seen = Some(Seen { version, since: begun });
        }
        let unchanged = seen.as_ref().map_or(Duration::ZERO, |seen| begun - seen.since);
        let theirs =
            Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
        let free = holder.is_empty() || holder == self.options.identity;
        if !free && unchanged < theirs.max(self.options.duration) {
            return Ok(Err(holder));
        }
        let lease = self.ours(Some(&found));
        match self.leases.replace(&self.options.name, &PostParams::default(), &lease).await {
            Ok(lease) => Ok(Ok(self.held(lease, begun))),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Err("another".to_owned())),
            Err(error) => Err(error),
        }
    }

    fn held(&self, lease: Lease, renewed: Instant) -> Held {
        Counters::add(&self.counters.lease_writes);
        Held { lease, renewed }
    }

    fn ours(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let changed = spec.holder_identity.as_ref() != Some(&self.options.identity);
        Lease {
            metadata: before.map(|lease| lease.metadata.clone()).unwrap_or_else(|| ObjectMeta {
                name: Some(self.options.name.clone()),
                namespace: Some(self.options.namespace.clone()),
                ..ObjectMeta::default()
            }),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.options.identity.clone()),
                lease_duration_seconds: i32::try_from(self.options.duration.as_secs()).ok(),
                acquire_time: if changed { Some(now.clone()) } else { spec.acquire_time },
                lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(changed)),
                renew_time: Some(now),
                ..spec
            }),
        }
    }

    /// Renews until `stop` (then the Lease is still held), or until it is lost.
    pub async fn keep(&self, held: &mut Held, stop: &CancellationToken) -> Result<(), LeaseError> {
        let mut problem = String::new();
        loop {
            let left = self.options.patience().saturating_sub(held.renewed.elapsed());
            if left.is_zero() {
                return Err(LeaseError::NotRenewed { after: held.renewed.elapsed(), problem });
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.options.period().min(left)) => {}
            }
            let begun = Instant::now();
            let limit =
                self.options.patience().saturating_sub(held.renewed.elapsed()).max(Duration::from_millis(50));
            let lease = self.ours(Some(&held.lease));
            let params = PostParams::default();
            let renewal = self.leases.replace(&self.options.name, &params, &lease);
            match tokio::time::timeout(limit, renewal).await {
                Ok(Ok(lease)) => *held = self.held(lease, begun),
                Ok(Err(error)) => {
                    problem = error.to_string();
                    self.look_again(held, &error, limit).await?;
                }
                Err(_) => problem = "no answer".to_owned(),
            }
        }
    }

    /// After a conflict: somebody leads, or only touched our Lease, or an earlier renewal was done and not answered.
    async fn look_again(
        &self,
        held: &mut Held,
        error: &kube::Error,
        limit: Duration,
    ) -> Result<(), LeaseError> {
        if !matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found()) {
            return Ok(());
        }
        let Ok(Ok(found)) = tokio::time::timeout(limit, self.leases.get_opt(&self.options.name)).await else {
            return Ok(());
        };
        let holder = found.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone());
        match found {
            Some(lease) if holder.as_ref() == Some(&self.options.identity) => {
                held.lease = lease;
                Ok(())
            }
            _ => Err(LeaseError::Taken { holder: holder.unwrap_or_else(|| "nobody".to_owned()) }),
        }
    }

    /// Gives the Lease back, so that another may lead at once.
    pub async fn release(&self, held: Held) {
        let mut lease = held.lease;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let params = PostParams::default();
        let giving = self.leases.replace(&self.options.name, &params, &lease);
        match tokio::time::timeout(Duration::from_secs(3), giving).await {
            Ok(Ok(_)) => tracing::info!("the Lease is given back"),
            Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be given back; it runs out"),
            Err(_) => tracing::warn!("the Lease could not be given back in time; it runs out"),
        }
    }
}
