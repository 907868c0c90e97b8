//! What the tests stand on: outside programs, a real etcd, a real Kubernetes with kubelets.

pub mod bed;
pub mod cairn;

pub mod etcd;
pub mod installation;
pub mod mounts;
pub mod pki;
pub mod ports;
pub mod process;
pub mod programs;
pub mod sim;
pub mod tools;
