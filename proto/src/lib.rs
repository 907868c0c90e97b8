//! Cairn's wire types: what `cairn/v1/*.proto` says, generated, and nothing else.

/// Version 1 of the wire protocol.
#[allow(clippy::all, clippy::disallowed_methods)]
pub mod v1 {
    tonic::include_proto!("cairn.v1");
    /// The encoded `FileDescriptorSet` of the package, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("cairn_v1");
}
