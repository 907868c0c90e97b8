//! Sealing: round trips, misplacement, and the same bytes from another implementation.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use proptest::{collection::vec, prelude::*};

use super::*;

const VOLUME: VolumeId = VolumeId(0x0102_0304);

fn chunk_id(index: u32) -> ChunkId {
    ChunkId { generation: Generation::mint(5, [7; 12]), index }
}

fn key() -> VolumeKey {
    VolumeKey::from_bytes(*b"an example of a volumes data key")
}

struct Exactly32;

impl hkdf::KeyType for Exactly32 {
    fn len(&self) -> usize {
        32
    }
}

/// The `aes-gcm` crate with the same derived key.
fn other_implementation(generation: Generation) -> Aes256Gcm {
    let mut derived = [0; 32];
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, &generation.0).extract(key().expose());
    key.expand(&[v1::KEY_INFO], Exactly32).unwrap().fill(&mut derived).unwrap();
    Aes256Gcm::new(&derived.into())
}

fn other_nonce(index: u32, frame: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&index.to_be_bytes());
    nonce[4..8].copy_from_slice(&frame.to_be_bytes());
    nonce
}

fn content(length: usize) -> Bytes {
    (0..length).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>().into()
}

fn open_all(chunk: &SealedChunk) -> Result<Vec<u8>, FrameError> {
    let ChunkHeader { id, volume, plain_length, .. } = *chunk.header;
    let key = key().derive(id.generation);
    let mut plain = Vec::new();
    for (frame, sealed) in (0..).zip(&chunk.frames) {
        plain.extend_from_slice(&open_frame(&key, volume, id, frame, plain_length, sealed)?);
    }
    Ok(plain)
}

#[test]
fn another_implementation_opens_our_frames_and_we_open_its() {
    let id = chunk_id(9);
    let content = content(FRAME_BYTES + 1234);
    let ours = key().derive(id.generation);
    let theirs = other_implementation(id.generation);
    let chunk = seal_chunk(&ours, VOLUME, 3, id, std::slice::from_ref(&content)).unwrap();
    for frame in 0..2u32 {
        let mut associated = b"cairn/v1/frame\0\0".to_vec();
        associated.extend([1, 2, 3, 4]);
        associated.extend(id.generation.0);
        associated.extend(9u32.to_be_bytes());
        associated.extend(frame.to_be_bytes());
        associated.extend(chunk.header.plain_length.to_be_bytes());
        let nonce = other_nonce(9, frame).into();
        let from = frame as usize * FRAME_BYTES;
        let plain = &content[from..(from + FRAME_BYTES).min(content.len())];
        let sealed = &chunk.frames[frame as usize];
        assert_eq!(theirs.decrypt(&nonce, Payload { msg: sealed, aad: &associated }).unwrap(), plain);
        let sealed = theirs.encrypt(&nonce, Payload { msg: plain, aad: &associated }).unwrap();
        let opened = open_frame(&ours, VOLUME, id, frame, chunk.header.plain_length, &sealed).unwrap();
        assert_eq!(opened, plain);
    }
}

/// Format 1 is for ever: the same input makes the same bytes.
#[test]
fn sealed_bytes_never_change() {
    let id = chunk_id(0);
    let chunk =
        seal_chunk(&key().derive(id.generation), VOLUME, 1, id, &[Bytes::from_static(b"cairn")]).unwrap();
    assert_eq!(hex::encode(&chunk.frames[0]), "a6094ff608d3c31b1e79e2f2c54ce3b150e3417c8c");
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?}", key()), "VolumeKey(secret)");
    assert!(!format!("{:?}", key().derive(chunk_id(0).generation)).contains("example"));
}

#[test]
fn a_frame_opens_only_where_it_belongs() {
    let id = chunk_id(3);
    let chunk = seal_chunk(&key().derive(id.generation), VOLUME, 3, id, &[content(3 * FRAME_BYTES)]).unwrap();
    let length = chunk.header.plain_length;
    let sealed = &chunk.frames[1];
    let open = |generation, volume, id, frame, length| {
        open_frame(&key().derive(generation), volume, id, frame, length, sealed)
    };
    let generation = id.generation;
    assert!(open(generation, VOLUME, id, 1, length).is_ok());
    let tag = |frame| Err(FrameError::Tag { id, frame });
    assert_eq!(open(generation, VOLUME, id, 0, length), tag(0));
    assert_eq!(open(generation, VolumeId(1), id, 1, length), tag(1));
    assert_eq!(open(generation, VOLUME, id, 1, 2 * FRAME_BYTES as u32), tag(1));
    assert_eq!(open(Generation([0; 16]), VOLUME, id, 1, length), tag(1));
    let other = chunk_id(4);
    assert_eq!(open(generation, VOLUME, other, 1, length), Err(FrameError::Tag { id: other, frame: 1 }));
    assert!(matches!(open(generation, VOLUME, id, 3, length), Err(FrameError::Length { .. })));
    assert!(matches!(open(generation, VOLUME, id, u32::MAX, u32::MAX), Err(FrameError::Length { .. })));
}

#[test]
fn impossible_chunks_are_refused() {
    let id = chunk_id(0);
    let key = key().derive(id.generation);
    assert_eq!(seal_chunk(&key, VOLUME, 3, id, &[]).unwrap_err(), ChunkError::Length(0));
    assert_eq!(seal_chunk(&key, VOLUME, 0, id, &[content(1)]).unwrap_err(), ChunkError::Copies(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_cut_of_the_content_seals_alike(lengths in vec(0usize..90_000, 1..6)) {
        let whole = content(lengths.iter().sum::<usize>().max(1));
        let mut rest = whole.clone();
        let mut pieces: Vec<Bytes> =
            lengths.iter().map(|length| rest.split_to((*length).min(rest.len()))).collect();
        pieces.push(rest);
        let id = chunk_id(2);
        let key = key().derive(id.generation);
        let chunk = seal_chunk(&key, VOLUME, 3, id, &pieces).unwrap();
        chunk.verify_checksums().unwrap();
        prop_assert_eq!(&open_all(&chunk).unwrap()[..], &whole[..]);
        let again = seal_chunk(&key, VOLUME, 3, id, &[whole]).unwrap();
        prop_assert_eq!(again.frames, chunk.frames);
    }

    #[test]
    fn any_flipped_bit_is_seen(length in 1usize..200_000, at: prop::sample::Index, bit in 0u8..8) {
        let id = chunk_id(0);
        let mut chunk = seal_chunk(&key().derive(id.generation), VOLUME, 1, id, &[content(length)]).unwrap();
        let frame = at.index(chunk.frames.len());
        let mut bytes = chunk.frames[frame].to_vec();
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        chunk.frames[frame] = bytes.into();
        let frame = frame as u32;
        prop_assert_eq!(chunk.verify_checksums(), Err(ChunkError::Checksum { frame }));
        prop_assert_eq!(open_all(&chunk), Err(FrameError::Tag { id, frame }));
    }
}
