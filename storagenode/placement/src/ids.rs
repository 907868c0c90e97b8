//! Identifiers. All are plain values with one byte form and one text form.

use std::{fmt, str::FromStr};

use xxhash_rust::xxh3::xxh3_64;

/// A text that is not the hexadecimal form of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id of {expected} hexadecimal digits")]
pub struct ParseIdError {
    expected: usize,
}

/// One upload attempt's identity: 32-bit sweep epoch (big endian) followed by 96 random bits (R1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub [u8; 16]);

/// One life of one disk: random, written when the disk's folder is created (R9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub [u8; 16]);

impl Generation {
    /// Joins a sweep epoch and 12 random bytes.
    pub fn mint(epoch: u32, random: [u8; 12]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&epoch.to_be_bytes());
        bytes[4..].copy_from_slice(&random);
        Self(bytes)
    }

    /// The sweep epoch in which this generation was minted.
    pub fn epoch(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

macro_rules! sixteen_bytes {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = ParseIdError { expected: 32 };
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
                {
                    return Err(error);
                }
                u128::from_str_radix(text, 16).map(|value| Self(value.to_be_bytes())).map_err(|_| error)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = ParseIdError;

            fn try_from(bytes: &[u8]) -> Result<Self, ParseIdError> {
                bytes.try_into().map(Self).map_err(|_| ParseIdError { expected: 32 })
            }
        }
    };
}

sixteen_bytes!(Generation);
sixteen_bytes!(Incarnation);

/// A volume's number, given once and never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A node's number in the cluster map, given at its first registration and never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u16);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A placement group's number, below 2^`pg_bits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgId(pub u32);

impl PgId {
    /// The lowest and highest chunk hash of this group, both inclusive.
    pub fn hash_range(self, pg_bits: u8) -> (u64, u64) {
        let width = 64 - u32::from(pg_bits);
        if width == 64 {
            return (0, u64::MAX);
        }
        let low = u64::from(self.0) << width;
        (low, low | ((1 << width) - 1))
    }
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A piece of a generation. Written once, never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    pub generation: Generation,
    pub index: u32,
}

impl ChunkId {
    /// xxh3-64 of the 16 generation bytes and the index in little endian.
    pub fn hash(&self) -> u64 {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&self.generation.0);
        bytes[16..].copy_from_slice(&self.index.to_le_bytes());
        xxh3_64(&bytes)
    }

    /// The placement group among 2^`pg_bits`.
    pub fn pg(&self, pg_bits: u8) -> PgId {
        PgId(if pg_bits == 0 { 0 } else { (self.hash() >> (64 - u32::from(pg_bits))) as u32 })
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.generation, self.index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_generation_carries_its_epoch() {
        let generation = Generation::mint(7, [9; 12]);
        assert_eq!(generation.epoch(), 7);
        assert_eq!(generation.to_string(), "00000007090909090909090909090909");
        assert_eq!(
            "0000000709090909090909090909090".parse::<Generation>(),
            Err(ParseIdError { expected: 32 })
        );
        assert!("+0000007090909090909090909090909".parse::<Generation>().is_err());
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: [u8; 16]) {
            prop_assert_eq!(Generation(bytes).to_string().parse(), Ok(Generation(bytes)));
        }

        #[test]
        fn doubling_the_groups_splits_in_place(bytes: [u8; 16], index: u32, bits in 0u8..20) {
            let id = ChunkId { generation: Generation(bytes), index };
            prop_assert_eq!(id.pg(bits + 1).0 / 2, id.pg(bits).0);
            let (low, high) = id.pg(bits).hash_range(bits);
            prop_assert!((low..=high).contains(&id.hash()));
        }
    }
}
