//! Taking a disk up again (R8): sync, read through, judge, fill the index.
//!
//! The order matters. Segments are synced before they are read, so that whatever the index then says is durable: a process
//! that was killed leaves bytes in the kernel's cache, which a power cut would still take. Records below the greatest
//! known durable end are trusted by their headers (reading verifies frames). Those after it, at most one group, were perhaps
//! never acknowledged, and perhaps they were: they count if they are whole. A chunk that is not is *torn*: it is set apart like a
//! damaged one, so that its sound frames can be read should it be needed, but nobody waits for it to be mended.
//!
//! A segment that has ended need not be read through if there is a hint of what is in it (`hint.rs`).
//!
//! A tail is judged so at every start, also when a mark tells that nothing was acknowledged after it.

use std::{collections::HashMap, ops::Range};

use cairn_placement::ChunkId;

use super::{
    OpenError, disk_error,
    format::{
        Body, Brief, Position, Record, SEGMENT_HEADER_BYTES, SegmentId, Sequence, Sighting,
        decode_segment_header,
    },
    hint::{self, Hint, Line, Lines},
    hole::{Hole, hole},
    index::{Damage, Entry, Index, Known, Place},
    read::{read_header, verify_on_device, verify_record},
    removed,
    scan::{Found, Gap, Scan, scan},
    segment::{FIRST_RECORD, SegmentTable},
    write::ToWrite,
};
use crate::env::{Disk, DiskFile, OpenMode};

/// Bytes that were once acknowledged, or may have been, and are wrong now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorruptRange {
    pub segment: String,
    pub range: Range<u64>,
    /// The chunk that seems to be there, if one can tell.
    pub seems: Option<ChunkId>,
    /// The whole segment is not there.
    pub missing: bool,
}

/// What was found when the store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub segments: u64,
    /// Of these, how many were not read through, for there was a hint of what is in them.
    pub hints: u64,
    /// Segments that no clean shutdown had closed.
    pub open_segments: u64,
    pub corrupt: Vec<CorruptRange>,
    /// Records after the last durable end that are not whole: never acknowledged, or damaged since.
    pub torn_records: u64,
    /// Bytes after it that do not count.
    pub torn_bytes: u64,
    /// What says which segments were given back cannot be read: some of these may be among the missing ones.
    pub removed_unreadable: bool,
}

/// A disk taken up again.
pub struct Recovered {
    pub index: Index,
    pub report: RecoveryReport,
    pub to_write: ToWrite,
    pub used_bytes: u64,
    /// The furthest that the metadata store was ever seen.
    pub sighting: Sighting,
}

/// One segment, opened and synced.
struct Opened {
    id: SegmentId,
    file: std::sync::Arc<dyn DiskFile>,
    size: u64,
    header_damaged: bool,
    /// Its sync failed: what it seems to hold may not be on the disk.
    suspect: bool,
}

/// What is believed of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Whole,
    Damaged,
    Torn,
}

/// What counts of one segment.
struct Judged {
    records: Vec<(Line, Condition)>,
    /// Up to here everything is trusted at the next start.
    end: u64,
    /// Only zeros follow.
    content_end: u64,
}

/// Where segments are marked to end.
type Marks = HashMap<SegmentId, u64>;

/// Reads all segments into an index, or their hints, where `hints` lets it. Blocks.
pub fn recover(disk: &dyn Disk, table: &SegmentTable, hints: bool) -> Result<Recovered, OpenError> {
    let mut recovered = Recovered {
        index: Index::default(),
        report: RecoveryReport::default(),
        to_write: ToWrite::default(),
        used_bytes: 0,
        sighting: Sighting::default(),
    };
    let removed = removed::read(disk, table)?;
    recovered.report.removed_unreadable = removed.is_none();
    let removed = removed.unwrap_or_default();
    let segments = list(disk, table)?;
    let mut marks = Marks::new();
    // The newest first: what marks a segment is in a newer one, or in itself.
    for id in segments.iter().rev() {
        let segment = open_segment(disk, table, *id)?;
        let hint = if hints { usable_hint(disk, table, &segment, &marks) } else { None };
        let judged = match hint {
            Some(Hint { end, size, lines }) => {
                note_marks(&mut marks, lines.iter().map(|line| line.brief));
                marks.remove(id);
                let records = lines.into_iter().map(|line| (line, Condition::Whole)).collect();
                recovered.report.hints += 1;
                Judged { records, end, content_end: size }
            }
            None => {
                let judged = read_segment(disk, table, &segment, &mut marks, &mut recovered, hints)?;
                let Some(judged) = judged else { continue };
                judged
            }
        };
        take_in(table, segment, judged, &mut recovered);
    }
    // Marked, with content, and not there.
    let missing = marks.into_iter().filter(|(id, end)| *end > FIRST_RECORD && !removed.contains(id));
    tell_missing(disk, table, missing.collect(), hints, &mut recovered.report);
    if hints {
        hint::remove_others(disk, table, &segments.into_iter().collect());
    }
    let to_write = &mut recovered.to_write;
    let unmarked = |hole: &mut Hole| to_write.to_mark.iter().any(|(id, _)| *id == table.id(hole.slot));
    to_write.fresh_holes = to_write.holes.extract_if(.., unmarked).collect();
    Ok(recovered)
}

/// Says which segments are missing. Where nothing says which of them were given back, they are called missing once.
fn tell_missing(
    disk: &dyn Disk,
    table: &SegmentTable,
    missing: Marks,
    writes: bool,
    report: &mut RecoveryReport,
) {
    for (id, end) in &missing {
        tracing::error!(segment = %id, bytes = end, "a segment is missing; repair fetches other copies of what it held");
        let (segment, range) = (id.to_string(), 0..*end);
        report.corrupt.push(CorruptRange { segment, range, seems: None, missing: true });
    }
    if !report.removed_unreadable {
        missing.into_keys().for_each(|id| table.lost(id));
        return;
    }
    if writes && let Err(error) = removed::write(disk, table, &missing.into_keys().collect()) {
        tracing::warn!(%error, "what says which segments were given back is not written anew; the next start tries again");
    }
}

/// What a hint says, if nothing speaks against it.
fn usable_hint(disk: &dyn Disk, table: &SegmentTable, segment: &Opened, marks: &Marks) -> Option<Hint> {
    // In the segment itself there may be a mark, too, but what is read of it is what the hint is to be held against.
    let marked_end = *marks.get(&segment.id)?;
    if segment.suspect || segment.header_damaged {
        return None;
    }
    hint::read(disk, table, segment.id, marked_end, segment.size)
}

fn note_marks(marks: &mut Marks, briefs: impl Iterator<Item = Brief>) {
    for brief in briefs {
        if let Brief::Mark { segment, end } = brief {
            let known = marks.entry(segment).or_default();
            *known = end.max(*known);
        }
    }
}

/// Reads a segment through and decides what counts; `None` if its making was never finished, and it is gone now. Makes a
/// hint of what it found, for the next start.
fn read_segment(
    disk: &dyn Disk,
    table: &SegmentTable,
    segment: &Opened,
    marks: &mut Marks,
    recovered: &mut Recovered,
    hints: bool,
) -> Result<Option<Judged>, OpenError> {
    let (id, path) = (segment.id, table.path(segment.id));
    let mut scan = read_through(table, id, &*segment.file)?;
    let marked_by_newer = marks.contains_key(&id);
    if scan.found.is_empty() && scan.gaps.is_empty() && marks.get(&id).is_none_or(|end| *end <= FIRST_RECORD)
    {
        // A segment is durable before its first record is written, and this one has none.
        tracing::warn!(segment = %id, size = segment.size, "removed: nothing was ever written to it");
        marks.remove(&id);
        let _ = disk.remove(&path);
        return Ok(None);
    }
    note_marks(marks, scan.found.iter().map(|found| found.record.body.brief()));
    let marked_end = marks.remove(&id);
    if marked_end.is_none_or(|end| has_tail(&scan, end)) {
        // The page cache may hold a group whose sync failed, and call it clean.
        let _ = segment.file.forget_cached(0, u64::MAX / 2);
        scan = read_through(table, id, &*segment.file)?;
    }
    let judged = judge(table, segment, &scan, marked_end, &mut recovered.report);
    if marked_end.is_none() {
        recovered.report.open_segments += 1;
    }
    if !marked_by_newer {
        recovered.to_write.to_mark.push((id, judged.end));
    }
    let is_sound = |end: u64| {
        let corrected = scan.found.iter().any(|found| found.corrected);
        !segment.suspect
            && !segment.header_damaged
            && !corrected
            && scan.gaps.is_empty()
            && !has_tail(&scan, end)
    };
    if let Some(end) = marked_end.filter(|end| hints && is_sound(*end)) {
        let mut lines = Lines::default();
        judged.records.iter().for_each(|(line, _)| lines.push(line));
        lines.write(disk, table, id, end, judged.size());
    }
    Ok(Some(judged))
}

/// Whether anything but the segment's own mark, written when the store was closed, is after the marked end.
fn has_tail(scan: &Scan, marked_end: u64) -> bool {
    let after = |found: &Found| found.offset >= marked_end && !matches!(found.record.body, Body::Mark { .. });
    scan.found.iter().any(after) || scan.gaps.iter().any(|gap| gap.range.end > marked_end)
}

impl Judged {
    /// What the file is cut to: what was written stays, even a torn tail.
    fn size(&self) -> u64 {
        self.content_end.max(self.end)
    }
}

fn take_in(table: &SegmentTable, segment: Opened, judged: Judged, recovered: &mut Recovered) {
    recovered.report.segments += 1;
    let size = judged.size();
    recovered.used_bytes += size;
    if segment.size > size {
        // Gives back what was allocated and never written.
        let _ = segment.file.truncate(size);
    }
    let slot = table.add(segment.id, segment.file);
    let briefs = || judged.records.iter().map(|(line, _)| &line.brief);
    let tombstones = briefs().filter_map(|brief| match brief {
        Brief::Tombstone(tombstone) => Some(tombstone.tick),
        _ => None,
    });
    let marked = briefs().filter_map(|brief| match brief {
        Brief::Mark { segment, .. } => Some(*segment),
        _ => None,
    });
    table.wrote(slot, size - FIRST_RECORD, tombstones);
    table.marks(slot, marked);
    table.ended(slot, judged.end);
    for (line, condition) in judged.records {
        apply(table, slot, line, condition, recovered);
    }
}

/// Reads a segment's records, without their frames. Blocks.
pub fn read_through(table: &SegmentTable, id: SegmentId, file: &dyn DiskFile) -> Result<Scan, OpenError> {
    let path = table.path(id);
    let size = file.size().map_err(disk_error("look at", &path))?;
    let position = Position { incarnation: table.identity().incarnation, segment: id, offset: 0 };
    scan(file, size, position).map_err(|newer| OpenError::NewerFormat {
        path,
        found: u32::from(newer.version),
        known: 1,
    })
}

fn list(disk: &dyn Disk, table: &SegmentTable) -> Result<Vec<SegmentId>, OpenError> {
    let names = disk.list(table.folder()).map_err(disk_error("list", table.folder()))?;
    let mut ids = Vec::with_capacity(names.len());
    for name in names {
        match SegmentId::from_name(&name) {
            Some(id) if id.boot >= table.identity().boot => {
                let folder = table.folder().to_owned();
                return Err(OpenError::IdentityOld { folder, segment: name, boot: table.identity().boot });
            }
            Some(id) => ids.push(id),
            None => tracing::warn!(name, folder = %table.folder().display(), "not a segment: left alone"),
        }
    }
    ids.sort();
    Ok(ids)
}

/// Opens and syncs a segment, and looks whose it is.
fn open_segment(disk: &dyn Disk, table: &SegmentTable, id: SegmentId) -> Result<Opened, OpenError> {
    let path = table.path(id);
    let failed = |action| disk_error(action, &path);
    let file = disk.open(&path, OpenMode::ReadWrite).map_err(failed("open"))?;
    let suspect = match file.sync_all() {
        Ok(()) => false,
        Err(error) => {
            tracing::error!(segment = %id, %error, "sync failed: every chunk of this segment is read again");
            let _ = file.forget_cached(0, u64::MAX / 2);
            true
        }
    };
    let size = file.size().map_err(failed("look at"))?;
    let mut page = vec![0; SEGMENT_HEADER_BYTES.min(size) as usize];
    let header = match file.read_at(&mut page, 0) {
        Ok(()) => decode_segment_header(&page),
        Err(_) => Err(None),
    };
    let header_damaged = match header {
        Ok(header)
            if header.incarnation == table.identity().incarnation
                && header.cluster_id == table.identity().cluster_id
                && header.segment == id =>
        {
            false
        }
        Ok(_) => return Err(OpenError::ForeignSegment { path }),
        Err(Some(found)) => return Err(OpenError::NewerFormat { path, found, known: 1 }),
        Err(None) => true,
    };
    Ok(Opened { id, file, size, header_damaged, suspect })
}

/// Decides what counts. `marked_end` is where a mark says that the segment ends.
fn judge(
    table: &SegmentTable,
    segment: &Opened,
    scan: &Scan,
    marked_end: Option<u64>,
    report: &mut RecoveryReport,
) -> Judged {
    let id = segment.id;
    let durable_end = |found: &Found| Some(found.record.durable_end).filter(|end| *end <= found.offset);
    let durable_end = scan.found.iter().filter_map(durable_end).max().unwrap_or(FIRST_RECORD);
    let trusted_end = durable_end.max(marked_end.unwrap_or(FIRST_RECORD));
    if segment.header_damaged {
        corrupt(report, id, 0..SEGMENT_HEADER_BYTES, None);
    }
    for Gap { range, seems } in scan.gaps.iter().filter(|gap| gap.range.start < trusted_end) {
        corrupt(report, id, range.start..range.end.min(trusted_end), *seems);
    }
    if scan.content_end < trusted_end {
        corrupt(report, id, scan.content_end..trusted_end, None);
    }
    let position = Position { incarnation: table.identity().incarnation, segment: id, offset: 0 };
    let whole = |found: &Found| {
        verify_record(&*segment.file, &found.record, Position { offset: found.offset, ..position })
    };
    let mut judged = Judged {
        records: Vec::with_capacity(scan.found.len()),
        end: trusted_end,
        content_end: scan.content_end,
    };
    // A mark is for ever: what is after it is never trusted unseen.
    // Nor is what a failed sync may have left: that it can be read does not say that it is on the disk.
    let mut connected = marked_end.is_none() && !segment.suspect;
    let (mut torn, mut whole_bytes) = (0, 0);
    for found in &scan.found {
        let condition = if found.corrected {
            let (offset, chunk) = (found.offset, chunk_of(&found.record));
            tracing::warn!(segment = %id, offset, ?chunk, "one byte of a record's header is wrong: it is computed");
            connected &= found.offset < trusted_end;
            if found.offset < trusted_end { Condition::Damaged } else { Condition::Torn }
        } else if found.offset < trusted_end {
            match if segment.suspect { whole(found) } else { Ok(()) } {
                Ok(()) => Condition::Whole,
                Err(_) => {
                    corrupt(report, id, found.offset..found.end(), chunk_of(&found.record));
                    Condition::Damaged
                }
            }
        } else if whole(found).is_ok() {
            connected &= found.offset == judged.end;
            if connected {
                judged.end = found.end();
            } else {
                whole_bytes += found.record.total_length();
            }
            Condition::Whole
        } else {
            (connected, torn) = (false, torn + 1);
            Condition::Torn
        };
        judged.records.push((Line::of(found), condition));
    }
    report.torn_records += torn;
    let torn_bytes = scan.content_end.saturating_sub(judged.end + whole_bytes);
    if torn_bytes > 0 && marked_end.is_none() {
        let end = judged.end;
        tracing::warn!(segment = %id, end, torn_bytes, chunks = torn, "not whole after a crash: never acknowledged, or damaged since");
        report.torn_bytes += torn_bytes;
    }
    judged
}

fn chunk_of(record: &Record) -> Option<ChunkId> {
    match &record.body {
        Body::Put(header) => Some(header.id),
        Body::Tombstone(tombstone) => Some(tombstone.id),
        Body::Mark { .. } | Body::Sighting(_) => None,
    }
}

fn corrupt(report: &mut RecoveryReport, segment: SegmentId, range: Range<u64>, seems: Option<ChunkId>) {
    tracing::error!(%segment, ?range, chunk = ?seems, "acknowledged bytes are damaged; repair fetches other copies");
    report.corrupt.push(CorruptRange { segment: segment.to_string(), range, seems, missing: false });
}

fn apply(table: &SegmentTable, slot: u32, line: Line, condition: Condition, recovered: &mut Recovered) {
    let (index, sequence) = (&mut recovered.index, line.sequence);
    match line.brief {
        Brief::Put { id, volume, copies, plain_length } => {
            let entry = Entry { volume, copies, plain_length, place: Place::new(slot, line.offset) };
            let known = index.get(id);
            if let Some(Known::Buried { .. }) = known {
                table.died(slot, id);
                return recovered.to_write.holes.extend(hole(&entry));
            }
            let damage = Damage { entry, torn: condition == Condition::Torn };
            let wins = wins(table, (sequence, &entry), condition, id, known);
            let dead = if wins { known.and_then(|known| known.place()) } else { Some(entry.place) };
            dead.iter().for_each(|dead| table.died(dead.slot, id));
            match (wins, condition) {
                (false, _) => {}
                (true, Condition::Whole) => index.take(id, entry),
                (true, Condition::Damaged | Condition::Torn) => index.put_apart(id, damage),
            }
        }
        Brief::Tombstone(tombstone) => {
            let old = index.bury(tombstone);
            old.iter().for_each(|old| table.died(old.place.slot, tombstone.id));
            recovered.to_write.holes.extend(old.as_ref().and_then(hole));
        }
        Brief::Mark { .. } => {}
        Brief::Sighting(sighting) => recovered.sighting = recovered.sighting.furthest(sighting),
    }
}

/// Whether a record counts instead of what is known of its chunk. Of two that can be trusted, and of two that cannot, the later
/// one. If only the later one cannot, the earlier one is read: its frames may have been given back when it was replaced, and
/// then its header alone says nothing. Of a record and its copy, both are: a copy that was found bad stays where it is.
fn wins(
    table: &SegmentTable,
    (sequence, entry): (Sequence, &Entry),
    condition: Condition,
    id: ChunkId,
    known: Option<Known>,
) -> bool {
    let (old, old_is_whole) = match known {
        None | Some(Known::Buried { .. }) => return known.is_none(),
        Some(Known::Present(old)) => (old, true),
        Some(Known::Damaged(old)) => (old, false),
    };
    let old_sequence = read_header(table, id, &old, true).ok().map(|(_, sequence)| sequence);
    let is_later = old_sequence.is_none_or(|old| old < sequence);
    match (condition == Condition::Whole, old_is_whole) {
        (true, false) => {
            old_sequence.is_some_and(|old| old < sequence) || verify_on_device(table, id, entry).is_ok()
        }
        (false, true) => is_later && verify_on_device(table, id, &old).is_err(),
        (true, true) if old_sequence == Some(sequence) => {
            verify_on_device(table, id, &old).is_err() && verify_on_device(table, id, entry).is_ok()
        }
        (true, true) | (false, false) => is_later,
    }
}
