//! The planner against a make-believe Kubernetes: stories with golden texts, and properties.

mod judge;
mod scenarios;
mod world;
