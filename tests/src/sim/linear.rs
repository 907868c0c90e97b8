//! Whether what clients saw of one file can have happened one operation after the other, each between its call and its
//! answer (linearizability; the search is that of Wing and Gong, with Lowe's memory of what was tried).

use std::{collections::HashSet, fmt, time::Duration};

/// Which content: the number of the operation that wrote it.
pub type Value = u64;

/// What was asked, and what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Put(Value),
    /// Done only if there was no file.
    Create(Value),
    /// Refused because there was a file.
    CreateRefused,
    Delete,
    /// Refused because there was no file.
    DeleteRefused,
    Read(Option<Value>),
    /// A listing showed the file, or did not.
    Listed(bool),
}

/// One operation on the file.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub called: Duration,
    /// Absent: it may have happened, at any time after the call, or never.
    pub answered: Option<Duration>,
    pub act: Act,
}

impl Act {
    /// The file after it, if it can happen to `file`.
    fn apply(self, file: Option<Value>) -> Option<Option<Value>> {
        match (self, file) {
            (Self::Put(value), _) | (Self::Create(value), None) => Some(Some(value)),
            (Self::Delete, Some(_)) => Some(None),
            (Self::CreateRefused, Some(_)) | (Self::DeleteRefused, None) => Some(file),
            (Self::Read(seen), file) if seen == file => Some(file),
            (Self::Listed(there), file) if there == file.is_some() => Some(file),
            _ => None,
        }
    }
}

/// A history that no order explains.
#[derive(Debug)]
pub struct NotLinear(Vec<Operation>);

impl fmt::Display for NotLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut operations = self.0.clone();
        operations.sort_by_key(|operation| operation.called);
        for Operation { called, answered, act } in operations {
            let end = answered.map_or("never".into(), |answered| format!("{answered:?}"));
            writeln!(f, "  {called:?} .. {end}: {act:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NotLinear {}

/// Looks for an order. The file does not exist at first.
///
/// # Panics
/// With more than 128 operations.
pub fn check(operations: &[Operation]) -> Result<(), NotLinear> {
    assert!(operations.len() <= 128, "the search keeps sets of 128");
    let must: u128 =
        (0..operations.len()).filter(|i| operations[*i].answered.is_some()).map(|i| 1 << i).sum();
    let mut tried = HashSet::new();
    let mut stack = vec![(0u128, None)];
    while let Some((done, file)) = stack.pop() {
        if done & must == must {
            return Ok(());
        }
        if !tried.insert((done, file)) {
            continue;
        }
        let open = |i: &usize| done & (1 << i) == 0;
        let first_answer = (0..operations.len())
            .filter(open)
            .filter_map(|i| operations[i].answered)
            .min()
            .unwrap_or_default();
        for i in (0..operations.len()).filter(open) {
            // What was called after another's answer cannot have happened before it.
            if operations[i].called <= first_answer
                && let Some(after) = operations[i].act.apply(file)
            {
                stack.push((done | 1 << i, after));
            }
        }
    }
    Err(NotLinear(operations.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(called: u64, answered: u64, act: Act) -> Operation {
        let answered = (answered > 0).then(|| Duration::from_secs(answered));
        Operation { called: Duration::from_secs(called), answered, act }
    }

    #[test]
    fn what_can_be_explained_is_fine() {
        let put = operation(1, 5, Act::Put(1));
        check(&[put, operation(2, 3, Act::Read(None)), operation(4, 6, Act::Read(Some(1)))]).unwrap();
        // One without an answer may happen late, or never.
        let lost = operation(1, 0, Act::Put(1));
        check(&[lost, operation(2, 3, Act::Read(None)), operation(9, 10, Act::Read(Some(1)))]).unwrap();
        check(&[lost, operation(2, 3, Act::Create(2)), operation(9, 10, Act::Read(Some(2)))]).unwrap();
        check(&[lost, operation(2, 3, Act::CreateRefused), operation(4, 5, Act::Delete)]).unwrap();
    }

    #[test]
    fn what_cannot_is_found() {
        let put = operation(1, 2, Act::Put(1));
        // A lost write, a stale read, a deleted file that returns, two creations.
        check(&[put, operation(3, 4, Act::Read(None))]).unwrap_err();
        check(&[put, operation(3, 4, Act::Put(2)), operation(5, 6, Act::Read(Some(1)))]).unwrap_err();
        let delete = operation(3, 4, Act::Delete);
        check(&[put, delete, operation(5, 6, Act::Read(Some(1)))]).unwrap_err();
        check(&[operation(1, 9, Act::Create(1)), operation(1, 9, Act::Create(2))]).unwrap_err();
        // Two reads see a write that has no answer appear and vanish.
        let lost = operation(1, 0, Act::Put(1));
        let (seen, gone) = (operation(2, 3, Act::Read(Some(1))), operation(4, 5, Act::Read(None)));
        check(&[lost, seen, gone]).unwrap_err();
    }
}
