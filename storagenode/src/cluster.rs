//! The node's part in its cluster: it registers under a lease ([`register`]), mirrors what every node must know
//! ([`view`]), and one of them coordinates ([`coordinate`]). What its disk remembers is told to the store ([`position`]), and
//! the volumes' keys are kept beside its chunks ([`keyring`]). A metadata store that was restored is accepted by [`recover`].

pub mod coordinate;
pub mod keyring;
pub mod position;
pub mod recover;
pub mod register;
pub mod view;

pub use view::{ClusterState, NodeInfo, Readable, View};
