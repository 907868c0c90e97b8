//! Chunks on other nodes: connections ([`peers`]), the quorum write ([`write`]), and the read that falls over to
//! another copy ([`read`]). What passes here is sealed. The serving side is `api::peer`.

pub mod gather;
pub mod peers;
pub mod plan;
pub mod read;
pub mod wire;
pub mod write;
