//! Keeps Cairn clusters as their resources describe them.
//!
//! | module | |
//! |---|---|
//! | [`cli`] | arguments, logging, signals, exit codes |
//! | [`local`] | `cairn-operator local`: a whole cluster in this process, from the same manifests |
//! | [`run`] | `cairn-operator run`: leads by a Lease ([`lease`]), serves [`health`], runs the controllers |
//! | [`controller`] | when to look at a resource; one look is observe → plan → apply → status |
//! | [`observe`] | reads a cluster from Kubernetes, as plain data for the planner |
//! | [`apply`], [`secrets`], [`events`] | execute a plan: the only writes to Kubernetes, the Lease aside |
//! | [`nodes`] | what the storage nodes say and are told |
//! | [`writes`] | counts all of it |
//!
//! What to do is decided in `cairn-planner`, which does no I/O.

pub mod apply;
pub mod cli;
pub mod controller;
pub mod events;
pub mod health;
pub mod lease;
pub mod local;
pub mod nodes;
pub mod observe;
pub mod run;
pub mod secrets;
pub mod writes;
