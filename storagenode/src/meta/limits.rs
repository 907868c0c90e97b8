//! What a store refuses before it does anything: one set of limits for all backends, so that what works in a small
//! installation works in a large one.

use std::collections::HashSet;

use super::{Compare, MetaError, Op, Txn};

/// Largest number of conditions, and of operations in each list: etcd's default `--max-txn-ops`.
pub const MAX_TXN_OPS: usize = 128;
/// Longest key. File paths have 1,024 bytes at most.
pub const MAX_KEY_BYTES: usize = 4096;
/// Largest value: below etcd's request limit of 1.5 MiB with room for the rest of a transaction.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most bytes of keys and values in one transaction. What etcd adds (a key prefix of about 200 bytes at most, and some 30
/// bytes of encoding, for each of 3 × 128 parts) stays below the rest of its 1.5 MiB.
pub const MAX_TXN_BYTES: usize = 5 << 18;

/// Refuses a transaction that one of the backends would not take.
pub fn check_txn(txn: &Txn) -> Result<(), MetaError> {
    if txn.compare.len() > MAX_TXN_OPS {
        return refused(format!(
            "{} conditions in a transaction, {MAX_TXN_OPS} are allowed",
            txn.compare.len()
        ));
    }
    let mut bytes = 0;
    for compare in &txn.compare {
        let (key, value) = match compare {
            Compare::ModRevision { key, .. } => (key, 0),
            Compare::Value { key, equals } => (key, equals.len()),
            Compare::Vacant { range } if range.start >= range.end => {
                return refused("a condition on a range that ends where it begins, or before".to_owned());
            }
            Compare::Vacant { range } => {
                check_key(&range.end)?;
                (&range.start, range.end.len())
            }
        };
        check_key(key)?;
        check_value(value)?;
        bytes += key.len() + value;
    }
    bytes += check_list(&txn.then)? + check_list(&txn.otherwise)?;
    if bytes > MAX_TXN_BYTES {
        return refused(format!("{bytes} bytes in a transaction, {MAX_TXN_BYTES} are allowed"));
    }
    Ok(())
}

/// Gives the bytes of the list.
fn check_list(list: &[Op]) -> Result<usize, MetaError> {
    if list.len() > MAX_TXN_OPS {
        return refused(format!("{} operations in a transaction, {MAX_TXN_OPS} are allowed", list.len()));
    }
    let mut bytes = 0;
    let mut written = HashSet::new();
    for op in list {
        let (key, value, writes) = match op {
            Op::Put { key, value, .. } => (key, value.len(), true),
            Op::Delete { key } => (key, 0, true),
            Op::Get { key } => (key, 0, false),
        };
        check_key(key)?;
        check_value(value)?;
        if writes && !written.insert(key) {
            return refused(format!("the key {:?} is written twice in one transaction", key));
        }
        bytes += key.len() + value;
    }
    Ok(bytes)
}

fn check_key(key: &[u8]) -> Result<(), MetaError> {
    match key.len() {
        0 => refused("an empty key".to_owned()),
        length if length > MAX_KEY_BYTES => {
            refused(format!("a key of {length} bytes, {MAX_KEY_BYTES} are allowed"))
        }
        _ => Ok(()),
    }
}

fn check_value(length: usize) -> Result<(), MetaError> {
    if length > MAX_VALUE_BYTES {
        return refused(format!("a value of {length} bytes, {MAX_VALUE_BYTES} are allowed"));
    }
    Ok(())
}

fn refused<T>(why: String) -> Result<T, MetaError> {
    Err(MetaError::Refused(why))
}
