//! What the shell needs besides [`crate::files::Files`]: small traits, so that it knows nothing of the cluster behind.

use std::sync::Arc;

use async_trait::async_trait;
use cairn_placement::NodeId;
use cairn_proto::v1::{IntendedNode, StatusResponse};

use crate::files::FileError;

/// A node's name and zone, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLabel {
    pub name: String,
    pub zone: String,
}

/// Why an intent was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntentError {
    /// A newer one is known.
    #[error("intent generation {given} is older than {known}, which is in force")]
    Stale { given: u64, known: u64 },
    /// The same generation, with other nodes.
    #[error("intent generation {0} is in force with other nodes")]
    Differs(u64),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Other(#[from] FileError),
}

/// The cluster, as this node sees it.
#[async_trait]
pub trait Cluster: Send + Sync {
    async fn status(&self) -> Result<StatusResponse, FileError>;

    /// Makes `nodes` the nodes that the cluster should have; gives the generation now in force.
    async fn set_intent(&self, generation: u64, nodes: Vec<IntendedNode>) -> Result<u64, IntentError>;

    /// Whether this node can serve requests now; if not, why (a sentence for people, without names of files).
    fn ready(&self) -> Result<(), String>;

    /// A node of the map, for people; `None` if the number is not known (any more).
    fn label(&self, node: NodeId) -> Option<NodeLabel>;
}

/// The shared cluster view.
pub type SharedCluster = Arc<dyn Cluster>;
