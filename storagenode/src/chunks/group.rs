//! What the writer is asked for, and what of it becomes durable together.

use bytes::Bytes;
use cairn_placement::ChunkId;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    PutError, PutOutcome,
    flight::Flight,
    format::{Body, SegmentId, Sequence, Sighting, Tombstone},
    header::{ChunkHeader, SealedChunk},
    index::Place,
    layout::Layout,
    space::Admitted,
    store::record_bytes,
};

/// What a mark takes, header only; and a tombstone.
pub const MARK_BYTES: u64 = 72;

/// What the writer is asked for.
pub enum Command {
    Put(Put),
    Bury(Bury),
    Copy(Copy),
    /// Ends the writer once everything before is durable.
    Close(oneshot::Sender<()>),
}

/// A chunk to be stored, with all that it holds until then.
pub struct Put {
    pub chunk: SealedChunk,
    pub admitted: Admitted,
    pub flight: Flight,
    pub budget: OwnedSemaphorePermit,
    pub reply: oneshot::Sender<Result<PutOutcome, PutError>>,
}

/// Chunks to be buried.
pub struct Bury {
    pub tombstones: Vec<Tombstone>,
    pub budget: OwnedSemaphorePermit,
    pub reply: oneshot::Sender<Result<(), PutError>>,
}

/// Records of another segment, to be written again as they are. The index does not hear of it: the one who asks tells it.
pub struct Copy {
    pub records: Vec<CopiedRecord>,
    pub admitted: Admitted,
    /// Where they are now, in order.
    pub reply: oneshot::Sender<Result<Vec<Place>, PutError>>,
}

/// A record as it is.
pub struct CopiedRecord {
    pub sequence: Sequence,
    pub body: Body,
    /// Of a chunk.
    pub frames: Vec<Bytes>,
}

/// What becomes durable together.
#[derive(Default)]
pub struct Group {
    pub puts: Vec<Put>,
    pub burials: Vec<Bury>,
    pub copies: Vec<Copy>,
    /// Puts and burials in the order of their arrival.
    pub order: Vec<Member>,
    pub bytes: u64,
    pub records: usize,
}

#[derive(Clone, Copy)]
pub enum Member {
    Put(usize),
    Bury(usize),
}

/// A group's bytes, and where in the segment each put and each copied record comes to be, in order.
pub struct LaidOut {
    pub layout: Layout,
    pub puts: Vec<u64>,
    pub copies: Vec<Vec<u64>>,
}

impl Group {
    pub fn push_put(&mut self, put: Put) {
        let header = &put.chunk.header;
        self.bytes += record_bytes(header);
        self.records += 1;
        self.order.push(Member::Put(self.puts.len()));
        self.puts.push(put);
    }

    pub fn push_bury(&mut self, bury: Bury) {
        self.bytes += bury.tombstones.len() as u64 * MARK_BYTES;
        // One without tombstones asks for a group, that what was seen becomes durable.
        self.records += bury.tombstones.len().max(1);
        self.order.push(Member::Bury(self.burials.len()));
        self.burials.push(bury);
    }

    pub fn push_copy(&mut self, copy: Copy) {
        self.bytes += copy.records.iter().map(CopiedRecord::bytes).sum::<u64>();
        self.records += copy.records.len();
        self.copies.push(copy);
    }

    /// Appends all of it to an empty layout. `next_record` numbers what is new.
    pub fn lay_out(
        &self,
        mut layout: Layout,
        next_record: &mut u64,
        marks: &[(SegmentId, u64)],
        sighting: Option<Sighting>,
    ) -> LaidOut {
        let mut number = || {
            *next_record += 1;
            *next_record - 1
        };
        for (marked, end) in marks {
            layout.append(number(), Body::Mark { segment: *marked, end: *end }, Vec::new());
        }
        if let Some(sighting) = sighting {
            layout.append(number(), Body::Sighting(sighting), Vec::new());
        }
        let mut puts = Vec::with_capacity(self.puts.len());
        for member in &self.order {
            match *member {
                Member::Put(n) => {
                    let SealedChunk { header, frames } = &self.puts[n].chunk;
                    let body = Body::Put(ChunkHeader::clone(header));
                    puts.push(layout.append(number(), body, frames.clone()));
                }
                Member::Bury(n) => self.burials[n].tombstones.iter().for_each(|tombstone| {
                    layout.append(number(), Body::Tombstone(*tombstone), Vec::new());
                }),
            }
        }
        let mut copied = |record: &CopiedRecord| {
            layout.append_as(record.sequence, record.body.clone(), record.frames.clone())
        };
        let copies = self.copies.iter().map(|copy| copy.records.iter().map(&mut copied).collect()).collect();
        LaidOut { layout, puts, copies }
    }

    /// The ticks of its tombstones. Those that are copied although they are old count as made now: it is looked again whether
    /// they are needed when that is old, too.
    pub fn tombstone_ticks(&self, old: Option<u32>, now: u32) -> impl Iterator<Item = u32> + '_ {
        let copied = self.copies.iter().flat_map(|copy| &copy.records);
        let copied = copied.filter_map(move |record| match &record.body {
            Body::Tombstone(tombstone) if old.is_some_and(|old| tombstone.tick <= old) => Some(now),
            Body::Tombstone(tombstone) => Some(tombstone.tick),
            _ => None,
        });
        self.burials.iter().flat_map(|bury| &bury.tombstones).map(|tombstone| tombstone.tick).chain(copied)
    }

    /// Chunks that it has records of.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> + '_ {
        let copied = self.copies.iter().flat_map(|copy| &copy.records);
        let copied = copied.filter_map(|record| match &record.body {
            Body::Put(header) => Some(header.id),
            _ => None,
        });
        self.puts.iter().map(|put| put.chunk.header.id).chain(copied)
    }

    /// Segments that it marks, besides those that the writer marks.
    pub fn copied_marks(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.copies.iter().flat_map(|copy| &copy.records).filter_map(|record| match record.body {
            Body::Mark { segment, .. } => Some(segment),
            _ => None,
        })
    }

    pub fn fail(self, reason: &str) {
        for put in self.puts {
            let Put { admitted, flight, budget, reply, .. } = put;
            drop((admitted, flight, budget));
            let _ = reply.send(Err(PutError::Failed(reason.to_owned())));
        }
        for bury in self.burials {
            let _ = bury.reply.send(Err(PutError::Failed(reason.to_owned())));
        }
        for copy in self.copies {
            let _ = copy.reply.send(Err(PutError::Failed(reason.to_owned())));
        }
    }
}

impl CopiedRecord {
    /// What it takes in a segment.
    pub fn bytes(&self) -> u64 {
        match &self.body {
            Body::Put(header) => record_bytes(header),
            _ => MARK_BYTES,
        }
    }
}
