//! The operator's mind: what to do about a cluster, from what was seen of it. Pure: no I/O, no clock, no threads, which
//! the manifest shows (no tokio, no tonic, no kube).
//!
//! One reconcile is observe → **validate → plan → check** → apply → **status**. The bold ones are here:
//!
//! | module | does |
//! |---|---|
//! | [`validate`] | parses a spec once into types that cannot be wrong |
//! | [`record`] | holds it to what is installed: what may not change is refused, and stays |
//! | [`resources`] | renders the objects that should be |
//! | [`plan`], [`update`] | the next steps, with reasons; also for doing nothing |
//! | [`check`] | judges every plan, written independently; a plan that breaks a rule is dropped |
//! | [`health`], [`status`] | what is the matter, as conditions |
//! | [`volume`] | the same for Volumes |
//!
//! The operator calls [`reconcile`], executes [`Outcome::plan`], tells the nodes [`Outcome::intent`], and writes
//! [`Outcome::status`] if it differs from the resource's.

pub mod check;
pub mod contract;
pub mod health;
pub mod object;
pub mod observed;
pub mod plan;
mod reconcile;
pub mod record;
pub mod refusal;
pub mod resources;
pub mod status;
#[cfg(test)]
mod testing;
pub mod update;
pub mod validate;
pub mod volume;

pub use object::Object;
pub use observed::{NodesReport, Observed, PlacementGroups, Readable, SecretFact};
pub use plan::{Action, Plan, SecretKind, SecretRequest, Step, Why};
pub use reconcile::{Intent, LocalCluster, Outcome, local, reconcile};
pub use record::Record;
pub use refusal::Refusal;
pub use validate::{Mode, PlannedNode, ValidCluster, ValidVolume};
