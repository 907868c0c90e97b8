//! Files that go in and must come back, as tests of running nodes need them.

use bytes::Bytes;
use cairn_client::{Client, CreateVolume, DownloadOptions, Error, UploadOptions};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// The volume that these functions use.
pub const VOLUME: &str = "files";

/// Bytes that do not compress and differ by seed.
pub fn content(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes.into()
}

/// Makes the volume.
///
/// # Panics
/// If that fails.
pub async fn make_volume(client: &Client, copies: u32) {
    let volume = CreateVolume { name: VOLUME.into(), copies: Some(copies), chunk_size_bytes: None };
    client.create_volume(volume).await.expect("a volume");
}

/// Uploads unconditionally.
///
/// # Panics
/// If that fails.
pub async fn put(client: &Client, path: &str, bytes: Bytes) {
    let put = client.upload_bytes(VOLUME, path, UploadOptions::default(), bytes).await;
    put.unwrap_or_else(|error| panic!("upload of {path}: {error}"));
}

/// The content of a file of at most 2 GiB.
pub async fn get(client: &Client, path: &str) -> Result<Bytes, Error> {
    client.download(VOLUME, path, DownloadOptions::default()).await?.bytes(2 << 30).await
}

/// Downloads and compares.
///
/// # Panics
/// If it fails, or the content is another.
pub async fn must_read(client: &Client, path: &str, expected: &Bytes) {
    let read = get(client, path).await.unwrap_or_else(|error| panic!("download of {path}: {error}"));
    assert!(read == expected, "{path} came back with other content");
}
