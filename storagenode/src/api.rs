//! The node's outer shell: gRPC and HTTP. Every handler decodes a request, calls [`crate::files::Files`] (or one of
//! the [`ports`]), and encodes the answer; [`status`] is the one map from errors to the wire.

pub mod peer;
pub mod ports;
pub mod status;
