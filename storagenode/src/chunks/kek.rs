//! The key-encryption key (R14): it wraps each volume's data key, and is all that an administrator keeps secret.
//!
//! A wrapped key (layout in `docs/formats.md`) says which KEK opens it, so that "the wrong key" and "damaged" are told
//! apart and a rotation can find what is left to rewrap.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use base64::{Engine as _, engine::general_purpose};
use cairn_placement::VolumeId;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::seal::VolumeKey;

/// Wrapped keys, in format 1.
mod v1 {
    pub const VERSION: u8 = 1;
    /// Version, KEK id, nonce, sealed key, tag.
    pub const BYTES: usize = 1 + 8 + 12 + 32 + 16;
    pub const ID_LABEL: &[u8] = b"cairn/v1/kek-id";
    pub const WRAP_LABEL: &[u8] = b"cairn/v1/wrapped-key";
}

/// A 256-bit key-encryption key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Kek([u8; 32]);

/// Names a KEK without telling anything about it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KekId(pub [u8; 8]);

impl std::fmt::Display for KekId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for KekId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kek({}, secret)", self.id())
    }
}

/// Why the content of a KEK file is no key. Never shows the content, and leaves it to the caller to say what to do: that
/// depends on whether anything is stored already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KekError {
    #[error(
        "the KEK file holds neither 32 random bytes, nor 64 hexadecimal digits, nor 32 bytes in base64 ({bytes} bytes \
         were read)"
    )]
    Form { bytes: usize },
    #[error("the KEK is not random (a text, or one byte repeated)")]
    Weak,
}

/// Why a wrapped volume key did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    #[error("the volume's key is wrapped with KEK {needed}, but this node has {have}: give it that KEK file")]
    WrongKek { have: KekId, needed: KekId },
    #[error("the wrapped key of volume {volume} is damaged: restore the metadata from a backup")]
    Damaged { volume: VolumeId },
    #[error(
        "the wrapped key has format {found}, this version knows up to {}: upgrade this node",
        v1::VERSION
    )]
    Version { found: u8 },
}

impl Kek {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Takes the content of a KEK file: base64, 64 hexadecimal digits (either with white space around) or 32 raw bytes.
    pub fn parse(content: &[u8]) -> Result<Self, KekError> {
        let mut key = Zeroizing::new([0; 32]);
        if content.len() == 32 {
            key.copy_from_slice(content);
        } else {
            let text = content.trim_ascii();
            let decoded = Zeroizing::new(decode(text).unwrap_or_default());
            if decoded.len() != 32 {
                return Err(KekError::Form { bytes: content.len() });
            }
            key.copy_from_slice(&decoded);
        }
        // 32 random bytes are all printable once in 10^13 keys; a pass phrase always is.
        if key.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
            || key.iter().all(|byte| *byte == key[0])
        {
            return Err(KekError::Weak);
        }
        Ok(Self(*key))
    }

    /// Safe to show: a hash.
    pub fn id(&self) -> KekId {
        let hash = Sha256::new().chain_update(v1::ID_LABEL).chain_update(self.0).finalize();
        KekId(hash[..8].try_into().expect("8 of 32 bytes"))
    }

    /// Wraps a volume's key; only this volume's unwraps. The nonce must be random.
    pub fn wrap(&self, volume: VolumeId, key: &VolumeKey, nonce: [u8; 12]) -> Vec<u8> {
        let id = self.id();
        let associated = associated(id, volume);
        let sealed = Aes256Gcm::new(&self.0.into())
            .encrypt(&nonce.into(), Payload { msg: key.expose(), aad: &associated })
            .expect("sealing 32 bytes succeeds");
        let mut wrapped = Vec::with_capacity(v1::BYTES);
        wrapped.push(v1::VERSION);
        wrapped.extend_from_slice(&id.0);
        wrapped.extend_from_slice(&nonce);
        wrapped.extend_from_slice(&sealed);
        wrapped
    }

    pub fn unwrap(&self, volume: VolumeId, wrapped: &[u8]) -> Result<VolumeKey, UnwrapError> {
        let damaged = UnwrapError::Damaged { volume };
        match wrapped.first() {
            None | Some(0) => return Err(damaged),
            Some(&v1::VERSION) => {}
            Some(&found) => return Err(UnwrapError::Version { found }),
        }
        let needed = wrapped_with(wrapped).ok_or(damaged.clone())?;
        let have = self.id();
        if needed != have {
            return Err(UnwrapError::WrongKek { have, needed });
        }
        let nonce: [u8; 12] = wrapped[9..21].try_into().expect("12 bytes");
        let key = Aes256Gcm::new(&self.0.into())
            .decrypt(&nonce.into(), Payload { msg: &wrapped[21..], aad: &associated(have, volume) })
            .map_err(|_| damaged.clone())?;
        let key = Zeroizing::new(key);
        key.as_slice().try_into().map(VolumeKey::from_bytes).map_err(|_| damaged)
    }
}

/// Which KEK opens a wrapped key; `None` if it is not one that this version reads.
pub fn wrapped_with(wrapped: &[u8]) -> Option<KekId> {
    let whole = wrapped.len() == v1::BYTES && wrapped[0] == v1::VERSION;
    whole.then(|| KekId(wrapped[1..9].try_into().expect("8 bytes")))
}

fn associated(id: KekId, volume: VolumeId) -> Vec<u8> {
    [v1::WRAP_LABEL, &id.0, &volume.0.to_be_bytes()].concat()
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    if text.len() == 64 {
        return hex::decode(text).ok();
    }
    let text = text.strip_suffix(b"=").unwrap_or(text);
    general_purpose::STANDARD_NO_PAD
        .decode(text)
        .or_else(|_| general_purpose::URL_SAFE_NO_PAD.decode(text))
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const VOLUME: VolumeId = VolumeId(12);

    fn kek() -> Kek {
        Kek::from_bytes(std::array::from_fn(|n| n as u8))
    }

    fn key() -> VolumeKey {
        VolumeKey::from_bytes(std::array::from_fn(|n| 200 - n as u8))
    }

    #[test]
    fn all_forms_of_a_file_give_the_same_key() {
        let raw = kek().0;
        let base64 = general_purpose::STANDARD.encode(raw);
        let forms = [
            raw.to_vec(),
            hex::encode(raw).into_bytes(),
            format!("{}\n", hex::encode_upper(raw)).into_bytes(),
            base64.clone().into_bytes(),
            format!("  {base64}\r\n").into_bytes(),
            base64.trim_end_matches('=').as_bytes().to_vec(),
        ];
        for form in forms {
            assert_eq!(Kek::parse(&form).unwrap().id(), kek().id());
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        assert_eq!(Kek::parse(b"").unwrap_err(), KekError::Form { bytes: 0 });
        assert_eq!(Kek::parse(b"hunter2").unwrap_err(), KekError::Form { bytes: 7 });
        assert_eq!(Kek::parse(b"a pass phrase of 32 characters!!").unwrap_err(), KekError::Weak);
        assert_eq!(Kek::parse(&[0; 32]).unwrap_err(), KekError::Weak);
        assert_eq!(format!("{:?}", kek()), format!("Kek({}, secret)", kek().id()));
    }

    #[test]
    fn the_wrong_key_damage_and_newer_formats_are_told_apart() {
        let wrapped = kek().wrap(VOLUME, &key(), [3; 12]);
        assert_eq!(wrapped.len(), v1::BYTES);
        assert_eq!(wrapped_with(&wrapped), Some(kek().id()));
        assert_eq!(kek().unwrap(VOLUME, &wrapped).unwrap().expose(), key().expose());
        let other = Kek::from_bytes([9; 32]);
        assert_eq!(
            other.unwrap(VOLUME, &wrapped).unwrap_err(),
            UnwrapError::WrongKek { have: other.id(), needed: kek().id() }
        );
        let volume = VolumeId(13);
        assert_eq!(kek().unwrap(volume, &wrapped).unwrap_err(), UnwrapError::Damaged { volume });
        let mut newer = wrapped;
        newer[0] = 2;
        assert_eq!(kek().unwrap(VOLUME, &newer).unwrap_err(), UnwrapError::Version { found: 2 });
    }

    /// Format 1 is for ever.
    #[test]
    fn wrapped_bytes_never_change() {
        assert_eq!(
            hex::encode(kek().wrap(VOLUME, &key(), [3; 12])),
            "0111fcefe4eccb1b7d030303030303030303030303268cfa13cf5190d71ee2b8c37111eebea2e140456e4b8e003212e8b0a88903fb275989dc7865f8d404d0527db45eb418"
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in vec(any::<u8>(), 0..90), content in vec(any::<u8>(), 0..90)) {
            let _ = kek().unwrap(VOLUME, &bytes);
            let _ = Kek::parse(&content);
        }

        #[test]
        fn any_flipped_bit_is_seen(at in 0usize..v1::BYTES, bit in 0u8..8) {
            let mut wrapped = kek().wrap(VOLUME, &key(), [3; 12]);
            wrapped[at] ^= 1 << bit;
            prop_assert!(kek().unwrap(VOLUME, &wrapped).is_err());
        }
    }
}
