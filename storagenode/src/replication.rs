//! Chunks on other nodes: connections ([`peers`]), the quorum write ([`write`]), the read that falls over to another
//! copy ([`read`]), and the serving side of all that ([`serve`]). What arrives here is sealed.

pub mod peers;
pub mod plan;
pub mod read;
pub mod serve;
pub mod wire;
pub mod write;
