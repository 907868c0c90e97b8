//! `cairn-operator run`: waits to lead, then reconciles until told to stop, or until another leads.

use std::{io, net::SocketAddr, sync::Arc, sync::atomic::Ordering, time::Duration};

use cairn_crds::{StorageCluster, Volume};
use kube::{Client, api::ListParams};
use tokio_util::sync::CancellationToken;

use crate::{
    controller::{self, Scope, Shared},
    health,
    lease::{Elector, LeaseError, LeaseOptions},
    writes::Counters,
};

/// For looks that are under way when this process is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// For the definitions to be there: a chart installs them together with us.
const DEFINITIONS_LIMIT: Duration = Duration::from_secs(60);

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// Image of clusters that name none.
    pub image: String,
    /// The only namespace to look at; all if absent.
    pub namespace: Option<String>,
    /// Without it, this process acts at once, and nothing keeps a second one from acting too.
    pub leader_elect: bool,
    pub lease: LeaseOptions,
    pub health_address: SocketAddr,
    /// Resources of a kind that are looked at at the same time.
    pub concurrency: u16,
}

/// Why the operator ends.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("no way to Kubernetes: {0}; run it in a pod, or set KUBECONFIG")]
    Client(String),
    #[error("cannot listen on {address}: {error}; give another --health-address")]
    Health { address: SocketAddr, error: io::Error },
    #[error(
        "Kubernetes does not know {kind} ({problem}): install the definitions with `cairn-operator crd | kubectl apply \
         --server-side -f -`, and give this operator the right to list them"
    )]
    Definitions { kind: &'static str, problem: String },
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// Runs until `stop`. Ends with an error when leadership is lost: whoever started this process starts it anew.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), RunError> {
    let client = Client::try_default().await.map_err(|error| RunError::Client(error.to_string()))?;
    run_with(client, options, stop).await
}

/// As [`run`], with a client of one's own.
pub async fn run_with(client: Client, options: Options, stop: CancellationToken) -> Result<(), RunError> {
    let counters = Arc::new(Counters::default());
    let (ready, health_stop) = (CancellationToken::new(), CancellationToken::new());
    let _health_ends = health_stop.clone().drop_guard();
    let address = options.health_address;
    let listening = health::serve(address, counters.clone(), ready.clone(), health_stop).await;
    let listening = listening.map_err(|error| RunError::Health { address, error })?;
    tracing::info!(%listening, identity = options.lease.identity, "started");
    let scope = Scope(options.namespace.clone());
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        result = definitions(&client, &scope) => result?,
    }
    ready.cancel();
    if !options.leader_elect {
        lead(client, &options, &scope, counters, stop.cancelled()).await;
        return Ok(());
    }
    let elector = Elector::new(client.clone(), options.lease.clone(), counters.clone());
    let Some(mut held) = elector.acquire(&stop).await? else { return Ok(()) };
    tracing::info!("this operator leads");
    let kept = lead(client, &options, &scope, counters, elector.keep(&mut held, &stop)).await;
    match kept {
        Some(Err(lost)) => Err(lost.into()),
        Some(Ok(())) | None => {
            elector.release(held).await;
            Ok(())
        }
    }
}

/// Runs the controllers until `until` ends, and gives what it said; `None` if they ended by themselves.
async fn lead<T>(
    client: Client,
    options: &Options,
    scope: &Scope,
    counters: Arc<Counters>,
    until: impl Future<Output = T>,
) -> Option<T> {
    counters.leading.store(1, Ordering::Relaxed);
    let leading = CancellationToken::new();
    let shared = Shared::new(
        client,
        options.image.clone(),
        counters.clone(),
        &options.lease.identity,
        leading.clone(),
    );
    let controllers = controller::run(Arc::new(shared), scope, options.concurrency);
    tokio::pin!(controllers);
    let ended = tokio::select! {
        ended = until => Some(ended),
        () = &mut controllers => None,
    };
    counters.leading.store(0, Ordering::Relaxed);
    leading.cancel();
    if ended.is_some() && tokio::time::timeout(DRAIN_LIMIT, controllers).await.is_err() {
        tracing::warn!("looks were still under way after {} s and are dropped", DRAIN_LIMIT.as_secs());
    }
    ended
}

/// Waits until both kinds can be listed.
async fn definitions(client: &Client, scope: &Scope) -> Result<(), RunError> {
    let one = ListParams::default().limit(1);
    let begun = std::time::Instant::now();
    loop {
        let clusters = scope.api::<StorageCluster>(client).list(&one).await.map(drop);
        let volumes = scope.api::<Volume>(client).list(&one).await.map(drop);
        let (kind, problem) = match (clusters, volumes) {
            (Ok(()), Ok(())) => return Ok(()),
            (Err(error), _) => ("StorageCluster", error.to_string()),
            (_, Err(error)) => ("Volume", error.to_string()),
        };
        if begun.elapsed() >= DEFINITIONS_LIMIT {
            return Err(RunError::Definitions { kind, problem });
        }
        tracing::info!(kind, problem, "waiting for Kubernetes to list this kind");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
