//! Clients that are slower than everything that is removed: a sweep, the rest of what it found, the rest of a deleted file.

use std::time::Duration;

use cairn_node::files::{Condition, Download, FileError, ReadSpec, SharedFiles};
use futures::StreamExt;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{CHUNK_BYTES, PATHS, Stage, ZONES, client, file_path, volume};
use crate::sim::linear::Act;

/// Chunks of what patient clients write.
const CHUNKS: usize = 5;
/// Before each chunk. With so many of them more than a sweep, what it finds a rest of, and a removal take.
const PAUSE: Duration = Duration::from_secs(55);
/// They wait no longer for one answer.
const PATIENCE: Duration = Duration::from_secs(900);
/// Longer than a deleted file rests, and than its collection takes.
const AFTER_ITS_REST: Duration = Duration::from_secs(150);
/// How often they begin if something ends what they do.
const ATTEMPTS: usize = 3;

pub(super) struct Patient {
    pub stage: Stage,
    pub name: u64,
    pub random: StdRng,
}

impl Patient {
    /// A path, and a gateway if the one that is chosen is there.
    async fn choose(&mut self) -> (&'static str, usize, Option<SharedFiles>) {
        let pause = Duration::from_millis(self.random.random_range(0..20_000));
        self.stage.clock.sleep(pause).await;
        let path = PATHS.choose(&mut self.random).expect("not empty");
        let node = self.random.random_range(0..ZONES.len());
        let door = self.stage.doors.lock()[node].clone();
        (path, node + 1, door)
    }

    /// Writes a file for minutes.
    pub async fn upload(mut self) {
        for _ in 0..ATTEMPTS {
            let (path, node, Some(files)) = self.choose().await else { continue };
            let (value, bytes) = self.stage.content(CHUNKS * CHUNK_BYTES as usize, &mut self.random);
            let called = self.stage.clock.monotonic();
            let content = (&bytes, CHUNK_BYTES as usize);
            let uploading = client::upload(&self.stage, &files, path, Condition::Always, content, PAUSE);
            let answer = self.stage.within(PATIENCE, uploading).await;
            match &answer {
                Some(Ok(_)) => self.stage.record(path, called, true, Act::Put(value)),
                Some(Err(error)) if !client::is_open(error) => {}
                _ => self.stage.record(path, called, false, Act::Put(value)),
            }
            let done = matches!(answer, Some(Ok(_)));
            let told = client::told(answer.map(|a| a.map(|_| "done".into())));
            let did = if done { "wrote" } else { "tried to write" };
            self.stage
                .note(format_args!("patient {} {did} at n{node}: {path}: Put({value}): {told}", self.name));
            if done {
                return;
            }
        }
    }

    /// Reads a file for minutes: if all of it comes, it was there when the reading began.
    pub async fn download(mut self) {
        for _ in 0..ATTEMPTS {
            let (path, node, Some(files)) = self.choose().await else { continue };
            let called = self.stage.clock.monotonic();
            let (volume, wanted) = (volume(), file_path(path));
            let opening = files.download(&volume, &wanted, ReadSpec::default());
            let answer = match self.stage.patiently(opening).await {
                None => None,
                Some(Err(error)) => Some(Err(error)),
                Some(Ok(download)) => {
                    let opened = self.stage.clock.monotonic();
                    let reading = self.read_slowly(download);
                    let answer = self.stage.within(PATIENCE, reading).await;
                    if let Some(Ok(bytes)) = &answer {
                        let seen = Some(self.stage.value_of(blake3::hash(bytes).as_bytes()));
                        self.stage.record_until(path, called, Some(opened), Act::Read(seen));
                    }
                    answer
                }
            };
            let done = matches!(answer, Some(Ok(_)));
            let told = client::told(answer.map(|a| a.map(|bytes| format!("{} bytes", bytes.len()))));
            let did = if done { "read" } else { "tried to read" };
            self.stage.note(format_args!("patient {} {did} at n{node}: {path}: Get: {told}", self.name));
            if done {
                return;
            }
        }
    }

    async fn read_slowly(&self, mut download: Download) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        while let Some(piece) = download.content.next().await {
            bytes.extend_from_slice(&piece?);
            self.stage.clock.sleep(PAUSE).await;
        }
        if bytes.len() as u64 == download.length {
            Ok(bytes)
        } else {
            Err(FileError::Internal(format!("{} bytes of {}", bytes.len(), download.length)))
        }
    }

    /// When everything is well: a file that is deleted while it is read is read to its end.
    pub async fn read_what_is_deleted(mut self) -> Result<(), String> {
        let path = PATHS[0];
        let doors: Vec<SharedFiles> = self.stage.doors.lock().iter().flatten().cloned().collect();
        let [writer, reader, other] = &doors[..] else { return Err("a gateway is away".into()) };
        let (value, bytes) = self.stage.content(CHUNKS * CHUNK_BYTES as usize, &mut self.random);
        let called = self.stage.clock.monotonic();
        let content = (&bytes, bytes.len());
        let uploaded =
            client::upload(&self.stage, writer, path, Condition::Always, content, Duration::ZERO).await;
        uploaded.map_err(|error| format!("{path:?} cannot be written: {error}"))?;
        self.stage.record(path, called, true, Act::Put(value));
        let download = reader.download(&volume(), &file_path(path), ReadSpec::default()).await;
        let mut download = download.map_err(|error| format!("{path:?} cannot be read: {error}"))?;
        let first = download.content.next().await.ok_or("no content")?;
        let mut read = first.map_err(|error| format!("{path:?} cannot be read: {error}"))?.to_vec();
        let called = self.stage.clock.monotonic();
        let deleted = other.delete(&volume(), &file_path(path), Condition::Always).await;
        deleted.map_err(|error| format!("{path:?} cannot be deleted: {error}"))?;
        self.stage.record(path, called, true, Act::Delete);
        self.stage.clock.sleep(AFTER_ITS_REST).await;
        while let Some(piece) = download.content.next().await {
            let piece = piece.map_err(|error| format!("what was deleted is not read to its end: {error}"))?;
            read.extend_from_slice(&piece);
        }
        self.stage.note(format_args!("what was deleted is read to its end: {} bytes", read.len()));
        if bytes == read { Ok(()) } else { Err("what was deleted is read, and differs".into()) }
    }
}
