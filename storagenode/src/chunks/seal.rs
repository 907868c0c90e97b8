//! Sealing (R1): AES-256-GCM over frames, each under the key of its generation and the nonce of its position.
//!
//! A generation is minted for one upload attempt, and a position of it is sealed once, so a (key, nonce) pair never
//! seals two contents. Key, nonce and associated data together say where a frame belongs: a frame that was moved
//! to another place, chunk, file or volume, or whose chunk was cut short, does not open.
//!
//! Layouts are in `docs/formats.md`. The TLS provider's AES is used because it is the fastest here; a test proves that
//! the `aes-gcm` crate opens what it seals and the other way round (R14).

use std::sync::Arc;

use aws_lc_rs::{aead, hkdf};
use bytes::{Bytes, BytesMut};
use cairn_placement::{ChunkId, Generation, VolumeId};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{
    FRAME_BYTES, TAG_BYTES,
    header::{ChunkError, ChunkHeader, SealedChunk, crc32c, frame_count, plain_frame_length},
};
use crate::env::Random;

/// What keys and associated data are made from, in format 1.
mod v1 {
    pub const KEY_INFO: &[u8] = b"cairn/v1/generation-key";
    pub const FRAME_LABEL: &[u8; 16] = b"cairn/v1/frame\0\0";
    pub const ASSOCIATED_BYTES: usize = 16 + 4 + 16 + 4 + 4 + 4;
}

/// A volume's data key: 256 secret bits, from which the keys of its generations are derived.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct VolumeKey([u8; 32]);

impl std::fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VolumeKey(secret)")
    }
}

impl VolumeKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new key, for a new volume.
    pub fn random(random: &dyn Random) -> Self {
        Self(random.bytes())
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// HKDF-SHA256: salt = the generation, input = this key.
    pub fn derive(&self, generation: Generation) -> GenerationKey {
        let key = hkdf::Salt::new(hkdf::HKDF_SHA256, &generation.0).extract(&self.0);
        let key =
            key.expand(&[v1::KEY_INFO], &aead::AES_256_GCM).expect("32 bytes are not too long for HKDF");
        GenerationKey { generation, key: Arc::new(aead::LessSafeKey::new(key.into())) }
    }
}

/// The key of one generation. Cheap to clone.
#[derive(Clone)]
pub struct GenerationKey {
    generation: Generation,
    key: Arc<aead::LessSafeKey>,
}

impl std::fmt::Debug for GenerationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GenerationKey({}, secret)", self.generation)
    }
}

/// Why a frame did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame {frame} of chunk {id} has {given} bytes instead of {expected}: read another copy")]
    Length { id: ChunkId, frame: u32, expected: usize, given: usize },
    #[error("frame {frame} of chunk {id} is not authentic: read another copy")]
    Tag { id: ChunkId, frame: u32 },
}

fn nonce(index: u32, frame: u32) -> aead::Nonce {
    let mut nonce = [0; aead::NONCE_LEN];
    nonce[..4].copy_from_slice(&index.to_be_bytes());
    nonce[4..8].copy_from_slice(&frame.to_be_bytes());
    aead::Nonce::assume_unique_for_key(nonce)
}

/// The chunk's length is in here, so that the last frames of a chunk cannot be cut off unseen.
fn associated(
    volume: VolumeId,
    id: ChunkId,
    frame: u32,
    plain_length: u32,
) -> aead::Aad<[u8; v1::ASSOCIATED_BYTES]> {
    let mut bytes = [0; v1::ASSOCIATED_BYTES];
    bytes[..16].copy_from_slice(v1::FRAME_LABEL);
    bytes[16..20].copy_from_slice(&volume.0.to_be_bytes());
    bytes[20..36].copy_from_slice(&id.generation.0);
    bytes[36..40].copy_from_slice(&id.index.to_be_bytes());
    bytes[40..44].copy_from_slice(&frame.to_be_bytes());
    bytes[44..].copy_from_slice(&plain_length.to_be_bytes());
    aead::Aad::from(bytes)
}

/// Seals one chunk. `plain` is its whole content, in pieces of any length.
///
/// # Errors
/// If the content's length or `copies` is none that a chunk can have.
///
/// # Panics
/// If the key is not the one of `id`'s generation: sealing under a wrong key would lose the content.
pub fn seal_chunk(
    key: &GenerationKey,
    volume: VolumeId,
    copies: u8,
    id: ChunkId,
    plain: &[Bytes],
) -> Result<SealedChunk, ChunkError> {
    assert_eq!(key.generation, id.generation, "the key belongs to another generation");
    let plain_length: usize = plain.iter().map(Bytes::len).sum();
    let plain_length = u32::try_from(plain_length).unwrap_or(u32::MAX);
    let frames = frame_count(plain_length);
    let mut header = ChunkHeader { id, volume, copies, plain_length, frame_crcs: vec![0; frames as usize] };
    header.validate()?;

    let mut sealed = BytesMut::with_capacity(header.sealed_length() as usize);
    let mut pieces = Pieces { rest: plain, offset: 0 };
    for frame in 0..frames {
        let start = sealed.len();
        pieces.copy_to(&mut sealed, plain_frame_length(plain_length, frame));
        let tag = key
            .key
            .seal_in_place_separate_tag(
                nonce(id.index, frame),
                associated(volume, id, frame, plain_length),
                &mut sealed[start..],
            )
            .expect("sealing a frame of 64 KiB or less succeeds");
        sealed.extend_from_slice(tag.as_ref());
        header.frame_crcs[frame as usize] = crc32c(&sealed[start..]);
    }
    let frames = header.cut(0..frames, sealed.freeze());
    Ok(SealedChunk { header: Arc::new(header), frames })
}

/// Opens one frame: its content, if it is authentic and belongs exactly there.
pub fn open_frame(
    key: &GenerationKey,
    volume: VolumeId,
    id: ChunkId,
    frame: u32,
    plain_length: u32,
    sealed: &[u8],
) -> Result<Bytes, FrameError> {
    let length = plain_frame_length(plain_length, frame);
    let expected = length + TAG_BYTES;
    if length == 0 || sealed.len() != expected {
        return Err(FrameError::Length { id, frame, expected, given: sealed.len() });
    }
    let (ciphertext, tag) = sealed.split_at(length);
    let mut plain = BytesMut::zeroed(length);
    key.key
        .open_separate_gather(
            nonce(id.index, frame),
            associated(volume, id, frame, plain_length),
            ciphertext,
            tag,
            &mut plain,
        )
        .map_err(|_| FrameError::Tag { id, frame })?;
    Ok(plain.freeze())
}

/// A walk over pieces of content.
struct Pieces<'a> {
    rest: &'a [Bytes],
    offset: usize,
}

impl Pieces<'_> {
    fn copy_to(&mut self, to: &mut BytesMut, mut length: usize) {
        debug_assert!(length <= FRAME_BYTES);
        while length > 0 {
            let piece = &self.rest[0][self.offset..];
            let taken = piece.len().min(length);
            to.extend_from_slice(&piece[..taken]);
            length -= taken;
            self.offset += taken;
            if self.offset == self.rest[0].len() {
                self.rest = &self.rest[1..];
                self.offset = 0;
            }
        }
    }
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
