//! What the tests stand on: outside programs, a real etcd, a real Kubernetes with kubelets.

pub mod bed;
pub mod bench;
pub mod cairn;
pub mod compose;
pub mod etcd;
pub mod files;
pub mod installation;
pub mod markdown;
pub mod mounts;
pub mod pki;
pub mod ports;
pub mod process;
pub mod programs;
pub mod rot;
pub mod scratch;
pub mod sim;
pub mod stop;
pub mod tools;
