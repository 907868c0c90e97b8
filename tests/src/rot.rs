//! Bytes that change on a disk behind a node's back.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Segments with less content than this are left alone.
const LARGE_BYTES: usize = 1 << 20;

/// Places in the segments of a data folder, as the end of each segment's content decides them.
///
/// # Panics
/// If there is no large segment.
pub fn bytes_of(data: &Path, places: impl Fn(usize) -> Vec<usize>) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    let mut segments: Vec<PathBuf> = fs::read_dir(data.join("segments"))
        .expect("a folder of segments")
        .map(|entry| entry.expect("its entries can be read").path())
        .collect();
    segments.sort();
    for path in segments {
        let bytes = fs::read(&path).expect("a segment can be read");
        if let Some(end) = bytes.iter().rposition(|byte| *byte != 0).filter(|end| *end >= LARGE_BYTES) {
            found.extend(places(end).into_iter().map(|at| (path.clone(), at)));
        }
    }
    assert!(!found.is_empty(), "{} has no chunk to damage", data.display());
    found
}

/// Places in the header of the largest chunk's record, `byte` behind its beginning.
///
/// # Panics
/// If there is no chunk.
pub fn byte_of_header(data: &Path, byte: usize) -> Vec<(PathBuf, usize)> {
    let mut found: Option<(u32, PathBuf, usize)> = None;
    for entry in fs::read_dir(data.join("segments")).expect("a folder of segments") {
        let path = entry.expect("its entries can be read").path();
        let bytes = fs::read(&path).expect("a segment can be read");
        for at in (4096..bytes.len().saturating_sub(72)).step_by(8) {
            if bytes[at..].starts_with(b"CREC\x01\x01") {
                let length = u32::from_le_bytes(bytes[at + 64..at + 68].try_into().expect("4 bytes"));
                if found.as_ref().is_none_or(|(longest, ..)| length > *longest) {
                    found = Some((length, path.clone(), at));
                }
            }
        }
    }
    let (_, path, at) = found.expect("a record of a chunk");
    vec![(path, at + byte)]
}

/// Flips bytes; the same once more mends them.
///
/// # Panics
/// If a file is too short.
pub fn flip(places: &[(PathBuf, usize)]) {
    for (path, at) in places {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a segment can be opened");
        let mut byte = [0];
        file.read_exact_at(&mut byte, *at as u64).expect("it is that long");
        file.write_all_at(&[byte[0] ^ 0xff], *at as u64).expect("it can be written");
    }
}
