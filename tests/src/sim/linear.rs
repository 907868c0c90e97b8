//! Whether what clients saw of a few files can have happened one operation after the other, each between its call and its
//! answer (linearizability; the search is that of Wing and Gong, with Lowe's memory of what was tried).
//!
//! Files that no operation joins are looked at one by one, which is the same and much faster; a move joins two.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    time::Duration,
};

/// Which content: the number of the operation that wrote it.
pub type Value = u64;
/// A file's name.
pub type Path = &'static str;

/// What was asked of one file, and what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Put(Value),
    /// Done only if there was no file.
    Create(Value),
    /// Refused because there was a file.
    CreateRefused,
    /// The second one's content, done only if the file had the first one's.
    Replace(Value, Value),
    /// Refused because the file did not have this content, or was not there.
    ReplaceRefused(Value),
    Delete,
    /// Refused because there was no file.
    DeleteRefused,
    Read(Option<Value>),
    /// A listing showed the file, or did not.
    Listed(bool),
    /// To another name; a file that had it is replaced.
    Move(Path),
    /// Done only if no file had the other name.
    MoveNew(Path),
    /// Refused because a file had the other name.
    MoveNewRefused(Path),
}

/// One operation on the file.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub path: Path,
    pub called: Duration,
    /// Absent: it may have happened, at any time after the call, or never.
    pub answered: Option<Duration>,
    pub act: Act,
}

/// The files that there are.
type Files = BTreeMap<Path, Value>;

impl Operation {
    /// The other file that it is about.
    fn other(&self) -> Option<Path> {
        match self.act {
            Act::Move(to) | Act::MoveNew(to) | Act::MoveNewRefused(to) => Some(to),
            _ => None,
        }
    }

    /// Whether it can happen to `files`; then they are as they are after it.
    fn apply(&self, files: &mut Files) -> bool {
        let file = files.get(self.path).copied();
        match (self.act, file) {
            (Act::Put(value), _) | (Act::Create(value), None) => _ = files.insert(self.path, value),
            (Act::Replace(seen, value), Some(file)) if seen == file => _ = files.insert(self.path, value),
            (Act::ReplaceRefused(seen), file) if file != Some(seen) => {}
            (Act::Delete, Some(_)) => _ = files.remove(self.path),
            (Act::CreateRefused, Some(_)) | (Act::DeleteRefused, None) => {}
            (Act::Read(seen), file) if seen == file => {}
            (Act::Listed(there), file) if there == file.is_some() => {}
            (Act::MoveNew(to), Some(_)) if files.contains_key(to) => return false,
            (Act::Move(to) | Act::MoveNew(to), Some(value)) => {
                files.remove(self.path);
                files.insert(to, value);
            }
            (Act::MoveNewRefused(to), Some(_)) if files.contains_key(to) => {}
            _ => return false,
        }
        true
    }
}

/// A history that no order explains.
#[derive(Debug)]
pub struct NotLinear(Vec<Operation>);

impl fmt::Display for NotLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut operations = self.0.clone();
        operations.sort_by_key(|operation| operation.called);
        for Operation { path, called, answered, act } in operations {
            let end = answered.map_or("never".into(), |answered| format!("{answered:?}"));
            writeln!(f, "  {called:?} .. {end}: {path}: {act:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NotLinear {}

/// Looks for an order. No file exists at first.
///
/// # Panics
/// With more than 128 operations on files that moves join.
pub fn check(operations: &[Operation]) -> Result<(), NotLinear> {
    joined(operations).into_iter().try_for_each(|operations| check_joined(&operations))
}

/// The operations on each set of files that nothing joins with others.
fn joined(operations: &[Operation]) -> Vec<Vec<Operation>> {
    let mut sets: Vec<BTreeSet<Path>> = Vec::new();
    for operation in operations {
        let mut set: BTreeSet<Path> =
            [Some(operation.path), operation.other()].into_iter().flatten().collect();
        sets.retain(|known| {
            let apart = known.is_disjoint(&set);
            if !apart {
                set.extend(known);
            }
            apart
        });
        sets.push(set);
    }
    let of = |set: &BTreeSet<Path>| operations.iter().filter(|one| set.contains(one.path)).copied().collect();
    sets.iter().map(of).collect()
}

fn check_joined(operations: &[Operation]) -> Result<(), NotLinear> {
    assert!(operations.len() <= 128, "the search keeps sets of 128");
    let must: u128 =
        (0..operations.len()).filter(|i| operations[*i].answered.is_some()).map(|i| 1 << i).sum();
    let mut tried = HashSet::new();
    let mut stack = vec![(0u128, Files::new())];
    while let Some((done, files)) = stack.pop() {
        if done & must == must {
            return Ok(());
        }
        if !tried.insert((done, files.clone())) {
            continue;
        }
        let open = |i: &usize| done & (1 << i) == 0;
        let first_answer = (0..operations.len())
            .filter(open)
            .filter_map(|i| operations[i].answered)
            .min()
            .unwrap_or_default();
        for i in (0..operations.len()).filter(open) {
            let mut after = files.clone();
            // What was called after another's answer cannot have happened before it.
            if operations[i].called <= first_answer && operations[i].apply(&mut after) {
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
        on("a", called, answered, act)
    }

    fn on(path: Path, called: u64, answered: u64, act: Act) -> Operation {
        let answered = (answered > 0).then(|| Duration::from_secs(answered));
        Operation { path, called: Duration::from_secs(called), answered, act }
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
        // Of two that replace the same content one is refused; so is one of a file that is not there.
        let (replaced, refused) =
            (operation(6, 9, Act::Replace(1, 2)), operation(6, 9, Act::ReplaceRefused(1)));
        check(&[put, refused, replaced, operation(10, 11, Act::Read(Some(2)))]).unwrap();
        check(&[operation(1, 2, Act::ReplaceRefused(1))]).unwrap();
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
        // A replacement of what was replaced before, and one that was refused although nothing was.
        let replace = |called, value| operation(called, called + 1, Act::Replace(1, value));
        check(&[put, replace(3, 2), replace(5, 3)]).unwrap_err();
        check(&[put, operation(3, 4, Act::ReplaceRefused(1)), replace(5, 2)]).unwrap_err();
        // Two reads see a write that has no answer appear and vanish.
        let lost = operation(1, 0, Act::Put(1));
        let (seen, gone) = (operation(2, 3, Act::Read(Some(1))), operation(4, 5, Act::Read(None)));
        check(&[lost, seen, gone]).unwrap_err();
    }

    #[test]
    fn a_move_happens_to_both_names_at_once() {
        let put = on("a", 1, 2, Act::Put(1));
        let moved = on("a", 3, 6, Act::Move("b"));
        let (still, there) = (on("a", 4, 5, Act::Read(Some(1))), on("b", 4, 5, Act::Read(Some(1))));
        let (gone, absent) = (on("a", 4, 5, Act::Read(None)), on("b", 4, 5, Act::Read(None)));
        check(&[put, moved, still, absent]).unwrap();
        check(&[put, moved, gone, there]).unwrap();
        // Reads at the same time may see one before, the other after it; reads one after the other may not.
        let then = |path, act| on(path, 6, 7, act);
        let slow = on("a", 3, 9, Act::Move("b"));
        check(&[put, slow, there, then("a", Act::Read(Some(1)))]).unwrap_err();
        check(&[put, slow, gone, then("b", Act::Read(None))]).unwrap_err();
        // It replaces what was there, and moves nothing that is not.
        let old = on("b", 1, 2, Act::Put(2));
        check(&[put, old, moved, on("b", 7, 8, Act::Read(Some(2)))]).unwrap_err();
        check(&[on("a", 3, 6, Act::Move("b"))]).unwrap_err();
        check(&[put, old, on("a", 3, 6, Act::MoveNew("b"))]).unwrap_err();
        check(&[put, old, on("a", 3, 6, Act::MoveNewRefused("b")), on("a", 7, 8, Act::Read(Some(1)))])
            .unwrap();
        check(&[put, on("a", 3, 6, Act::MoveNewRefused("b"))]).unwrap_err();
    }

    #[test]
    fn files_that_nothing_joins_are_looked_at_apart() {
        let operations: Vec<_> = (0..60)
            .flat_map(|n| ["a", "b", "c"].map(|path| on(path, 2 * n + 1, 2 * n + 2, Act::Put(n))))
            .chain([on("c", 200, 201, Act::Move("d")), on("d", 202, 203, Act::Read(Some(59)))])
            .collect();
        let sets: Vec<usize> = joined(&operations).iter().map(Vec::len).collect();
        assert_eq!(sets, [60, 60, 62]);
        check(&operations).unwrap();
    }
}
