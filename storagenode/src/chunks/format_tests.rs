//! Formats: round trips, hostile bytes, every flipped bit.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::chunks::FRAME_BYTES;

fn ids() -> impl Strategy<Value = ChunkId> {
    (any::<[u8; 16]>(), any::<u32>())
        .prop_map(|(bytes, index)| ChunkId { generation: Generation(bytes), index })
}

fn segments() -> impl Strategy<Value = SegmentId> {
    (any::<u64>(), any::<u32>()).prop_map(|(boot, number)| SegmentId { boot, number })
}

fn bodies() -> impl Strategy<Value = Body> {
    let put = (ids(), any::<u32>(), 1u8..=7, 1u32..400_000).prop_map(|(id, volume, copies, plain_length)| {
        Body::Put(ChunkHeader {
            id,
            volume: VolumeId(volume),
            copies,
            plain_length,
            frame_crcs: (0..frame_count(plain_length)).map(|n| n ^ volume).collect(),
        })
    });
    let tombstone =
        (ids(), any::<u32>(), any::<u8>(), any::<u32>()).prop_map(|(id, volume, copies, tick)| {
            Body::Tombstone(Tombstone { id, volume: VolumeId(volume), copies, tick })
        });
    let mark = (segments(), any::<u64>()).prop_map(|(segment, end)| Body::Mark { segment, end });
    let sighting = any::<(u64, u64, u64, u32)>().prop_map(|(tick, revision, map_generation, epoch)| {
        Body::Sighting(Sighting { tick, revision, map_generation, epoch })
    });
    prop_oneof![put, tombstone, mark, sighting]
}

fn records() -> impl Strategy<Value = Record> {
    (any::<(u64, u64, u64)>(), bodies()).prop_map(|((boot, number, durable_end), body)| Record {
        sequence: Sequence { boot, number },
        durable_end,
        body,
    })
}

fn positions() -> impl Strategy<Value = Position> {
    (any::<[u8; 16]>(), segments(), any::<u64>()).prop_map(|(incarnation, segment, offset)| Position {
        incarnation: Incarnation(incarnation),
        segment,
        offset,
    })
}

fn encoded(record: &Record, position: &Position) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(record, position, &mut bytes);
    bytes
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        cluster_id: [1; 16],
        node: "zone-a-0".into(),
        incarnation: Incarnation([2; 16]),
        segment: SegmentId { boot: 3, number: 4 },
    }
}

#[test]
fn names_of_segments_round_trip() {
    let segment = SegmentId { boot: 0x1f, number: 7 };
    assert_eq!(segment.to_string(), "000000000000001f-00000007.seg");
    assert_eq!(SegmentId::from_name("000000000000001f-00000007.seg"), Some(segment));
    for name in [
        "",
        ".seg",
        "1f-7.seg",
        "000000000000001F-00000007.seg",
        "+00000000000001f-00000007.seg",
        "lost+found",
    ] {
        assert_eq!(SegmentId::from_name(name), None, "{name}");
    }
}

#[test]
fn segment_headers_round_trip_and_newer_ones_are_named() {
    let mut page = encode_segment_header(&segment_header());
    assert_eq!(page.len() as u64, SEGMENT_HEADER_BYTES);
    assert_eq!(decode_segment_header(&page), Ok(segment_header()));
    page[8] = 2;
    assert_eq!(decode_segment_header(&page), Err(None));
    let end = page.len() - 4;
    let checksum = crate::chunks::header::crc32c(&page[..end]);
    page[end..].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(decode_segment_header(&page), Err(Some(2)));
}

#[test]
fn a_full_header_fits_the_bound() {
    assert_eq!(record_header_length(MAX_PLAIN_BYTES), MAX_RECORD_HEADER_BYTES as u64);
    assert_eq!(record_header_length(FRAME_BYTES as u32), 76);
}

#[test]
fn a_store_that_went_back_is_told_from_one_that_was_accepted() {
    let seen = |tick, revision, map_generation, epoch| Sighting { tick, revision, map_generation, epoch };
    let remembered = seen(50, 900, 4, 2);
    for (now, accepted, ahead) in [
        (seen(50, 900, 4, 2), 0, false),
        (seen(51, 901, 4, 2), 0, false),
        (seen(49, 950, 4, 2), 0, true),
        (seen(60, 899, 4, 2), 0, true),
        (seen(60, 899, 4, 2), 50, true),
        (seen(60, 899, 4, 2), 51, false),
        (seen(60, 990, 3, 2), 51, true),
        (seen(60, 990, 4, 1), 51, true),
    ] {
        assert_eq!(remembered.is_ahead_of(&now, accepted), ahead, "{now:?} {accepted}");
    }
    // What was seen of an older copy that goes on is no further, until its ticks are.
    assert_eq!(remembered.furthest(seen(20, 950, 1, 1)), remembered);
    assert_eq!(remembered.furthest(seen(51, 300, 5, 2)), seen(51, 300, 5, 2));
}

/// Format 1 is for ever.
#[test]
fn record_bytes_never_change() {
    let position = Position {
        incarnation: Incarnation([2; 16]),
        segment: SegmentId { boot: 3, number: 4 },
        offset: 4096,
    };
    let id = ChunkId { generation: Generation([0xab; 16]), index: 0x0102_0304 };
    let sequence = Sequence { boot: 3, number: 9 };
    let put =
        ChunkHeader { id, volume: VolumeId(5), copies: 3, plain_length: 10, frame_crcs: vec![0xdead_beef] };
    let record = |body| encoded(&Record { sequence, durable_end: 4096, body }, &position);
    assert_eq!(
        hex::encode(record(Body::Put(put))),
        "43524543010103004c0000001a0000000300000000000000090000000000000000100000000000000500000004030201abababababababababababababababab0a000000efbeadde67b17246"
    );
    let sighting = Sighting { tick: 1, revision: 2, map_generation: 3, epoch: 4 };
    assert_eq!(
        hex::encode(record(Body::Sighting(sighting))),
        "43524543010400004800000000000000030000000000000009000000000000000010000000000000010000000000000002000000000000000300000000000000040000001a0b8f51"
    );
    let tombstone = Tombstone { id, volume: VolumeId(5), copies: 3, tick: 0 };
    assert_eq!(
        hex::encode(record(Body::Tombstone(tombstone))),
        "435245430102030048000000000000000300000000000000090000000000000000100000000000000500000004030201abababababababababababababababab0000000037248a72"
    );
}

proptest! {
    #[test]
    fn records_round_trip(record in records(), position in positions(), tail in vec(any::<u8>(), 0..40)) {
        let mut bytes = encoded(&record, &position);
        prop_assert_eq!(bytes.len() as u64, record.header_length());
        prop_assert_eq!(record.total_length() % RECORD_ALIGNMENT, 0);
        bytes.extend(tail);
        prop_assert_eq!(decode_record(&bytes, &position), Ok(record));
    }

    #[test]
    fn a_record_is_one_only_where_it_was_written(record in records(), position in positions(), other in positions()) {
        prop_assume!(position != other);
        let bytes = encoded(&record, &position);
        let refused = matches!(decode_record(&bytes, &other), Err(RecordError::Damaged { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn any_flipped_bit_is_seen(record in records(), position in positions(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = encoded(&record, &position);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode_record(&bytes, &position).is_err());
    }

    #[test]
    fn a_short_record_asks_for_what_it_needs(record in records(), position in positions(), at: prop::sample::Index) {
        let bytes = encoded(&record, &position);
        let given = at.index(bytes.len());
        let error = decode_record(&bytes[..given], &position).unwrap_err();
        if given < 72 {
            prop_assert_eq!(error, RecordError::Nothing);
        } else {
            prop_assert_eq!(error, RecordError::Incomplete { needed: bytes.len() });
        }
    }

    #[test]
    fn hostile_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..300), position in positions(), magic: bool) {
        if magic && bytes.len() >= 12 {
            bytes[..4].copy_from_slice(b"CREC");
            bytes[10..12].fill(0);
        }
        let _ = decode_record(&bytes, &position);
        let _ = decode_segment_header(&bytes);
        bytes.resize(SEGMENT_HEADER_BYTES as usize, 0);
        prop_assert_eq!(decode_segment_header(&bytes), Err(None));
    }

    #[test]
    fn any_flipped_bit_of_a_segment_header_is_seen(at in 0usize..4096, bit in 0u8..8) {
        let mut page = encode_segment_header(&segment_header());
        page[at] ^= 1 << bit;
        prop_assert_eq!(decode_segment_header(&page), Err(None));
    }
}
