//! Format 1 of the embedded store's file: tables and records. Described in `docs/formats.md`.

use redb::TableDefinition;

/// The format that this module reads and writes.
pub(super) const FORMAT: u64 = 1;

/// Numbers of the whole store, by the names below.
pub(super) const STATE: TableDefinition<'static, &'static str, u64> = TableDefinition::new("state");
/// In [`STATE`]: the format of the file.
pub(super) const STATE_FORMAT: &str = "format";
/// In [`STATE`]: the revision of the last transaction that wrote.
pub(super) const STATE_REVISION: &str = "revision";
/// In [`STATE`]: counts redb transactions, so that a commit without an answer can be looked up.
pub(super) const STATE_COMMITS: &str = "commits";

/// Key → [`Record`].
pub(super) const KEYS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("keys");

/// (lease, key): the keys that vanish with a lease.
pub(super) const LEASE_KEYS: TableDefinition<'static, (i64, &'static [u8]), ()> =
    TableDefinition::new("lease_keys");

/// A key's value and revisions: three little-endian 64-bit numbers, then the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub create_revision: u64,
    pub mod_revision: u64,
    /// 0: none.
    pub lease: i64,
    pub value: &'a [u8],
}

const HEAD_BYTES: usize = 24;

impl<'a> Record<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.value.len());
        bytes.extend_from_slice(&self.create_revision.to_le_bytes());
        bytes.extend_from_slice(&self.mod_revision.to_le_bytes());
        bytes.extend_from_slice(&self.lease.to_le_bytes());
        bytes.extend_from_slice(self.value);
        bytes
    }

    /// `None` if these bytes are no record.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (create, rest) = bytes.split_first_chunk()?;
        let (changed, rest) = rest.split_first_chunk()?;
        let (lease, value) = rest.split_first_chunk()?;
        let record = Self {
            create_revision: u64::from_le_bytes(*create),
            mod_revision: u64::from_le_bytes(*changed),
            lease: i64::from_le_bytes(*lease),
            value,
        };
        (record.create_revision > 0 && record.create_revision <= record.mod_revision).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_these_bytes() {
        let record = Record { create_revision: 2, mod_revision: 0x0103, lease: -1, value: b"v" };
        let hex = "02000000000000000301000000000000ffffffffffffffff76";
        assert_eq!(hex::encode(record.encode()), hex);
    }

    proptest! {
        #[test]
        fn records_round_trip(create in 1u64.., more in 0u64..1000, lease: i64, value: Vec<u8>) {
            let record = Record {
                create_revision: create,
                mod_revision: create.saturating_add(more),
                lease,
                value: &value,
            };
            let bytes = record.encode();
            prop_assert_eq!(Record::decode(&bytes), Some(record));
        }

        #[test]
        fn any_bytes_are_a_record_or_not(bytes: Vec<u8>) {
            if let Some(record) = Record::decode(&bytes) {
                prop_assert_eq!(record.encode(), bytes);
            }
        }
    }
}
