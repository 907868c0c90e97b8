//! The planner against a make-believe Kubernetes: stories with golden texts, and properties.

// Stories and golden texts are files; the planner itself reads none.
#![allow(clippy::disallowed_methods)]

mod judge;
mod scenarios;
mod world;
