//! Files as this gateway last knew them, for readers who would rather have an old answer than none while the metadata store
//! is away (R13).
//!
//! Whatever the store says of a file record on the way is noted: what a linearizable read found, or that it found nothing, and
//! what a commit has written or removed. Nothing of it is used while the store answers, and never for a write.
//!
//! **Which of two answers is the later one.** Answers overtake each other: a read that was asked first may come back last, after
//! the file was replaced or deleted. So each is noted with the store's revision at which it was true, and replaces what is known of
//! its file only if it is not of an earlier revision. That a file is gone is not noted by name. There is one *floor* for all
//! files that are not in the cache: the latest answer that removed anything, or that was forgotten for want of room. What is below it
//! is not taken in. So a removal costs no memory and is never undone; in return, a few answers that were under way during a removal are
//! not kept.
//!
//! A store that was put back to an older copy (R10) counts its revisions anew from there. Therefore an answer also counts as the
//! later one if it was asked for after the other had come: of two such reads, a linearizable store never gives the later one the
//! older state.
//!
//! **Age** is counted from before the question was sent, by the monotonic clock. So what is given out was true at that age or later.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    FileError, FilePath, VolumeName,
    download::Found,
    gateway::{Gateway, OpenVolume},
};
use crate::meta::{
    KeyValue, Op,
    keys::{self, file::FileRecord},
};

/// What all that is remembered may take: some 30,000 files.
const MAX_BYTES: usize = 16 << 20;
/// What a file takes beside the bytes of its key and its record: 100 in a slot of the hash map, which is half empty at worst;
/// 24 in the ordered map, likewise; and the headers of what is allocated for it.
const ENTRY_BYTES: usize = 384;
/// How long a reader who takes an old answer waits for the present one. A hung member of etcd is given up after 1.5 s, and the
/// next one answers at once: one member alone must not make an answer stale.
const PRESENT_PATIENCE: Duration = Duration::from_secs(2);

/// When the store has said something.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Said {
    /// At which of the store's revisions it is true.
    pub revision: u64,
    /// By the monotonic clock, as `answered`.
    pub asked: Duration,
    pub answered: Duration,
}

impl Said {
    fn is_not_before(&self, other: &Self) -> bool {
        self.revision >= other.revision || self.asked >= other.answered
    }
}

struct Entry {
    value: Bytes,
    said: Said,
    /// Its place in [`Memory::by_use`].
    used: u64,
}

/// What is remembered. Keys are those of the store, of volume and path.
pub(super) struct Recent {
    limit_bytes: usize,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The least recently used comes first.
    by_use: BTreeMap<u64, Arc<[u8]>>,
    uses: u64,
    bytes: usize,
    floor: Said,
}

impl Default for Recent {
    fn default() -> Self {
        Self { limit_bytes: MAX_BYTES, memory: Mutex::default() }
    }
}

impl Recent {
    /// Takes note of a file's record, or that there is none.
    pub(super) fn note(&self, key: &[u8], value: Option<&[u8]>, said: Said) {
        let mut memory = self.memory.lock();
        let mut said = said;
        match memory.entries.get(key) {
            Some(known) if !said.is_not_before(&known.said) => return,
            None if !said.is_not_before(&memory.floor) => return,
            Some(known) => said.asked = said.asked.max(known.said.asked),
            None => {}
        }
        memory.remove(key);
        match value {
            Some(value) => memory.insert(key.into(), Bytes::copy_from_slice(value), said),
            None => memory.raise_floor(said),
        }
        while memory.bytes > self.limit_bytes {
            memory.forget_one();
        }
    }

    /// Takes note of what a commit has done.
    pub(super) fn note_commit(&self, done: &[Op], said: Said) {
        for op in done {
            match op {
                Op::Put { key, value, .. } if key.starts_with(keys::file::PREFIX) => {
                    self.note(key, Some(value), said);
                }
                Op::Delete { key } if key.starts_with(keys::file::PREFIX) => self.note(key, None, said),
                _ => {}
            }
        }
    }

    /// A file's record, and when the store was asked for it.
    fn get(&self, key: &[u8]) -> Option<(Bytes, Duration)> {
        let mut memory = self.memory.lock();
        let Entry { value, said, .. } = memory.remove(key)?;
        memory.insert(key.into(), value.clone(), said);
        Some((value, said.asked))
    }
}

fn cost_bytes(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_BYTES
}

impl Memory {
    /// Of a file that is not there.
    fn insert(&mut self, key: Arc<[u8]>, value: Bytes, said: Said) {
        self.bytes += cost_bytes(&key, &value);
        self.uses += 1;
        self.by_use.insert(self.uses, key.clone());
        self.entries.insert(key, Entry { value, said, used: self.uses });
    }

    fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.by_use.remove(&entry.used);
        self.bytes -= cost_bytes(key, &entry.value);
        Some(entry)
    }

    fn forget_one(&mut self) {
        let oldest = self.by_use.first_key_value().map(|(_, key)| key.clone());
        let forgotten = oldest.and_then(|key| self.remove(&key)).expect("what takes room is in both maps");
        self.raise_floor(forgotten.said);
    }

    fn raise_floor(&mut self, said: Said) {
        if said.is_not_before(&self.floor) {
            self.floor = said;
        }
    }
}

/// A file's record, for a reader.
pub(super) struct Known {
    pub volume: Arc<OpenVolume>,
    pub record: FileRecord,
    /// How long ago this was true for certain; absent: it is the present state.
    pub stale: Option<Duration>,
}

impl Known {
    fn present(found: Found) -> Self {
        Self { volume: found.volume, record: found.record, stale: None }
    }

    /// What is remembered may be an answer, but no reason to refuse one: the present file could be another.
    pub(super) fn refused(&self, error: FileError) -> FileError {
        doubted(self.stale, error)
    }
}

/// What to say in place of a refusal that is founded on a file as it was known so long ago.
pub fn doubted(stale: Option<Duration>, error: FileError) -> FileError {
    match stale {
        None => error,
        Some(age) => FileError::MetadataUnavailable(format!(
            "what is remembered of the file, {} s old, is not what is asked for ({error})",
            age.as_secs()
        )),
    }
}

impl Gateway {
    /// A file's record as it is now; or, if the store cannot be reached, as it was at most `max_stale` ago.
    pub(super) async fn find_known(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Option<Duration>,
    ) -> Result<Known, FileError> {
        let Some(max_stale) = max_stale else {
            return self.find(volume, path).await.map(Known::present);
        };
        match self.find_soon(volume, path).await {
            Err(FileError::MetadataUnavailable(why)) => self.remembered(volume, path, max_stale, &why),
            found => found.map(Known::present),
        }
    }

    /// As [`Self::find`], for those who can do without.
    pub(super) async fn find_soon(&self, volume: &VolumeName, path: &FilePath) -> Result<Found, FileError> {
        let late = || Err(FileError::MetadataUnavailable(format!("no answer within {PRESENT_PATIENCE:?}")));
        let found = self.env.timeout(PRESENT_PATIENCE, self.find(volume, path)).await;
        found.unwrap_or_else(late)
    }

    /// `why` the store cannot be reached.
    fn remembered(
        &self,
        volume: &VolumeName,
        path: &FilePath,
        max_stale: Duration,
        why: &str,
    ) -> Result<Known, FileError> {
        let refuse = |what: String| Err(FileError::MetadataUnavailable(format!("{why}; {what}")));
        let known = self.open_volume(volume).and_then(|volume| {
            let key = keys::file::key(volume.id(), path.as_str());
            let (value, asked) = self.recent.get(&key)?;
            Some((volume, KeyValue { key, value, create_revision: 0, mod_revision: 0 }, asked))
        });
        let Some((volume, entry, asked)) = known else {
            return refuse(format!("this node remembers nothing of {path:?} in volume {volume}"));
        };
        let age = self.env.clock.monotonic().saturating_sub(asked);
        if age > max_stale {
            let age_s = age.as_secs_f64();
            return refuse(format!(
                "what this node remembers of {path:?} is {age_s:.1} s old, more than the request allows"
            ));
        }
        let record = FileRecord::decode(&entry)?;
        Ok(Known { volume, record, stale: Some(age) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(revision: u64, asked: u64, answered: u64) -> Said {
        Said { revision, asked: Duration::from_secs(asked), answered: Duration::from_secs(answered) }
    }

    fn small(limit_bytes: usize) -> Recent {
        Recent { limit_bytes, ..Recent::default() }
    }

    fn value(recent: &Recent, key: &str) -> Option<String> {
        recent.get(key.as_bytes()).map(|(value, _)| String::from_utf8(value.to_vec()).unwrap())
    }

    /// What it counts, counted again.
    fn check(recent: &Recent) -> usize {
        let memory = recent.memory.lock();
        let counted: usize = memory.entries.iter().map(|(key, entry)| cost_bytes(key, &entry.value)).sum();
        assert_eq!(memory.bytes, counted);
        assert_eq!(memory.entries.len(), memory.by_use.len());
        assert!(memory.by_use.iter().all(|(used, key)| memory.entries[key].used == *used));
        assert!(counted <= recent.limit_bytes, "{counted}");
        counted
    }

    #[test]
    fn what_is_used_least_goes_when_there_is_no_room() {
        assert!(size_of::<(Arc<[u8]>, Entry)>() <= 100, "what ENTRY_BYTES counts with");
        let recent = small(10 * (ENTRY_BYTES + 100));
        // Long names and long records take more.
        for number in 0..10 {
            recent.note(format!("{number:050}").as_bytes(), Some(&[0; 50]), said(number, number, number));
        }
        assert_eq!(check(&recent), recent.limit_bytes);
        assert!(recent.get(format!("{:050}", 0).as_bytes()).is_some(), "and is the last to go now");
        recent.note(b"11", Some(&[0; 1]), said(11, 11, 11));
        let there =
            |number: u64| recent.memory.lock().entries.contains_key(format!("{number:050}").as_bytes());
        assert_eq!([0, 1, 2].map(there), [true, false, true]);
        recent.note(b"12", Some(&vec![0; 3 * (ENTRY_BYTES + 100)]), said(12, 12, 12));
        assert_eq!([0, 2, 3, 4, 5, 6].map(there), [true, false, false, false, false, true]);
        recent.note(b"13", Some(&vec![0; recent.limit_bytes]), said(13, 13, 13));
        assert_eq!(check(&recent), 0, "what is too large for all of it is not kept");
        assert_eq!(MAX_BYTES, Recent::default().limit_bytes);
    }

    #[test]
    fn an_older_answer_that_comes_late_changes_nothing() {
        let recent = Recent::default();
        recent.note(b"a", Some(b"new"), said(20, 5, 6));
        recent.note(b"a", Some(b"old"), said(10, 1, 7));
        assert_eq!(value(&recent, "a").as_deref(), Some("new"));
        recent.note(b"a", None, said(19, 1, 8));
        assert_eq!(value(&recent, "a").as_deref(), Some("new"), "nor does one that found nothing yet");
        recent.note(b"a", Some(b"newer"), said(21, 1, 9));
        let (bytes, asked) = recent.get(b"a").unwrap();
        assert_eq!(
            (&bytes[..], asked),
            (&b"newer"[..], Duration::from_secs(5)),
            "true after that of 5 s was"
        );
    }

    #[test]
    fn what_was_removed_does_not_come_back() {
        let recent = Recent::default();
        recent.note(b"a", Some(b"1"), said(10, 1, 2));
        recent.note(b"b", Some(b"1"), said(11, 1, 2));
        recent.note(b"a", None, said(20, 3, 4));
        recent.note(b"a", Some(b"1"), said(10, 2, 5));
        recent.note(b"a", Some(b"1"), said(19, 2, 5));
        assert_eq!(value(&recent, "a"), None);
        assert_eq!(value(&recent, "b").as_deref(), Some("1"), "which has nothing to do with it");
        recent.note(b"a", Some(b"2"), said(21, 2, 6));
        assert_eq!(value(&recent, "a").as_deref(), Some("2"));
    }

    #[test]
    fn what_was_forgotten_comes_back_only_newer() {
        let recent = small(ENTRY_BYTES + 10);
        recent.note(b"a", Some(b"new"), said(20, 1, 2));
        recent.note(b"b", Some(b"1"), said(30, 1, 3));
        assert_eq!(value(&recent, "a"), None);
        recent.note(b"a", Some(b"old"), said(10, 1, 4));
        assert_eq!(value(&recent, "a"), None);
        recent.note(b"a", Some(b"new"), said(20, 1, 5));
        assert_eq!(value(&recent, "a").as_deref(), Some("new"));
    }

    #[test]
    fn a_store_that_was_put_back_is_believed() {
        let recent = Recent::default();
        recent.note(b"a", Some(b"lost"), said(1_000, 1, 2));
        recent.note(b"b", None, said(1_001, 3, 4));
        recent.note(b"a", Some(b"1"), said(10, 3, 5));
        recent.note(b"b", Some(b"1"), said(10, 5, 6));
        assert_eq!((value(&recent, "a").as_deref(), value(&recent, "b").as_deref()), (Some("1"), Some("1")));
    }

    #[test]
    fn a_commit_is_noted_as_far_as_it_is_about_files() {
        let recent = Recent::default();
        let (old, new) = (keys::file::key(cairn_placement::VolumeId(1), "old"), "file/00000001/new");
        recent.note(&old, Some(b"record"), said(10, 1, 2));
        let done = [Op::delete(old.clone()), Op::put(new, "record"), Op::put("slot/n1/0", "token")];
        recent.note_commit(&done, said(11, 3, 4));
        assert_eq!((recent.get(&old), value(&recent, new).as_deref()), (None, Some("record")));
        assert_eq!(value(&recent, "slot/n1/0"), None);
    }

    proptest! {
        /// One store, whose revision `r` is made at second `r`; answers in the order in which they come.
        #[test]
        fn no_answer_is_older_than_what_was_known(
            writes in prop::collection::vec((0..4usize, any::<bool>()), 40),
            mut reads in prop::collection::vec((0..4usize, 0u64..40, 0u64..20, 0u64..20), 1..60),
            limit in 0..4usize,
        ) {
            let recent = small(limit * (ENTRY_BYTES + 10) + 5);
            reads.sort_by_key(|(_, at, _, after)| at + after);
            let mut heard = [0; 4];
            for (file, at, before, after) in reads {
                let last = (0..=at).rev().find(|revision| writes[*revision as usize].0 == file);
                let there = last.filter(|revision| writes[*revision as usize].1);
                let value = there.map(|revision| revision.to_string());
                let said = said(at, at.saturating_sub(before), at + after);
                recent.note(&[file as u8], value.as_ref().map(String::as_bytes), said);
                heard[file] = heard[file].max(at);
                check(&recent);
                for (file, heard) in heard.iter().enumerate() {
                    let Some((value, asked)) = recent.get(&[file as u8]) else { continue };
                    let written: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
                    let replaced = (written + 1..40).find(|revision| writes[*revision as usize].0 == file);
                    // It was still there at the latest answer about it, and at the age that is given out.
                    let until = replaced.unwrap_or(u64::MAX);
                    prop_assert!(until > *heard, "{file}: {written}, heard {heard}");
                    prop_assert!(Duration::from_secs(until) > asked);
                }
            }
        }
    }
}
