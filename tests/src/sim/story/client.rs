//! A client of a story: what it asks for, and what it notes of the answers.

use std::time::Duration;

use bytes::Bytes;
use cairn_node::files::{Condition, FileError, FileInfo, ListSpec, MoveSpec, SharedFiles, UploadSpec};
use futures::{StreamExt, stream};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{ACTS, PATHS, Stage, ZONES, file_path, read, volume};
use crate::sim::linear::{Act, Value};

/// Of what ordinary clients write.
const LENGTHS: [usize; 6] = [8, 100, 4_096, 65_536, 65_537, 150_000];

/// Uploads a content in pieces of so many bytes, with a pause before each.
pub(super) async fn upload(
    stage: &Stage,
    files: &SharedFiles,
    path: &str,
    condition: Condition,
    (content, piece_bytes): (&Bytes, usize),
    pause: Duration,
) -> Result<FileInfo, FileError> {
    let spec = UploadSpec {
        volume: volume(),
        path: file_path(path),
        size_bytes: Some(content.len() as u64),
        blake3: None,
        condition,
        content_type: String::new(),
    };
    let pieces: Vec<_> = content.chunks(piece_bytes).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let clock = stage.clock.clone();
    let pieces = stream::iter(pieces).then(move |piece| {
        let clock = clock.clone();
        async move {
            if !pause.is_zero() {
                clock.sleep(pause).await;
            }
            piece
        }
    });
    files.upload(spec, pieces.boxed()).await
}

/// Whether a refusal leaves open what has happened.
pub(super) fn is_open(error: &FileError) -> bool {
    matches!(error, FileError::CommitUnknown(_) | FileError::DeadlineExceeded)
}

pub(super) struct Client {
    pub stage: Stage,
    pub name: u64,
    pub random: StdRng,
}

impl Client {
    pub async fn run(mut self) {
        for _ in 0..ACTS {
            let pause = Duration::from_millis(self.random.random_range(0..4_000));
            self.stage.clock.sleep(pause).await;
            let path = PATHS.choose(&mut self.random).expect("not empty");
            let node = self.random.random_range(0..ZONES.len());
            let door = self.stage.doors.lock()[node].clone();
            let Some(files) = door else { continue };
            let what = match self.random.random_range(0..13) {
                0..3 => self.put(&files, path, Condition::Always).await,
                3 => self.put(&files, path, Condition::IfAbsent).await,
                4 => self.delete(&files, path).await,
                5 => self.list(&files).await,
                6 => self.stat(&files, path).await,
                7..9 => self.move_file(&files, path).await,
                9 => self.replace(&files, path).await,
                _ => self.get(&files, path).await,
            };
            self.stage.note(format_args!("client {} at n{}: {path}: {what}", self.name, node + 1));
        }
    }

    async fn put(&mut self, files: &SharedFiles, path: &'static str, condition: Condition) -> String {
        let act = if condition == Condition::IfAbsent { Act::Create } else { Act::Put };
        self.upload(files, path, condition, act, Act::CreateRefused).await
    }

    /// Looks, and writes only if the file is still the same then.
    async fn replace(&mut self, files: &SharedFiles, path: &'static str) -> String {
        let found = self.stage.patiently(files.stat(&volume(), &file_path(path), None)).await;
        let Some(Ok(found)) = found else { return "Replace: not found".into() };
        let pause = Duration::from_millis(self.random.random_range(0..1_000));
        self.stage.clock.sleep(pause).await;
        let seen = self.stage.value_of(&found.file.blake3);
        let (condition, refused) = (Condition::IfMatch(found.file.generation), Act::ReplaceRefused(seen));
        self.upload(files, path, condition, |value| Act::Replace(seen, value), refused).await
    }

    async fn upload(
        &mut self,
        files: &SharedFiles,
        path: &'static str,
        condition: Condition,
        act: impl FnOnce(Value) -> Act,
        refused: Act,
    ) -> String {
        let length = LENGTHS.choose(&mut self.random).expect("not empty");
        let (value, bytes) = self.stage.content(*length, &mut self.random);
        let act = act(value);
        // One in four is so slow that sweeps begin and end meanwhile.
        let slow = self.random.random_bool(0.25);
        let pause = Duration::from_millis(if slow { self.random.random_range(1..7_000) } else { 0 });
        let called = self.stage.clock.monotonic();
        let uploading = upload(&self.stage, files, path, condition, (&bytes, 20_000), pause);
        let answer = self.stage.patiently(uploading).await;
        match &answer {
            Some(Ok(_)) => self.stage.record(path, called, true, act),
            Some(Err(FileError::PreconditionFailed(_))) => self.stage.record(path, called, true, refused),
            Some(Err(error)) if !is_open(error) => {}
            _ => self.stage.record(path, called, false, act),
        }
        format!("{act:?} of {} bytes: {}", bytes.len(), told(answer.map(|a| a.map(|_| "done".into()))))
    }

    async fn delete(&mut self, files: &SharedFiles, path: &'static str) -> String {
        let called = self.stage.clock.monotonic();
        let answer = self.stage.patiently(files.delete(&volume(), &file_path(path), Condition::Always)).await;
        match &answer {
            Some(Ok(_)) => self.stage.record(path, called, true, Act::Delete),
            Some(Err(FileError::FileNotFound { .. })) => {
                self.stage.record(path, called, true, Act::DeleteRefused);
            }
            Some(Err(error)) if !is_open(error) => {}
            _ => self.stage.record(path, called, false, Act::Delete),
        }
        format!("Delete: {}", told(answer.map(|a| a.map(|_| "done".into()))))
    }

    async fn move_file(&mut self, files: &SharedFiles, path: &'static str) -> String {
        let others: Vec<_> = PATHS.into_iter().filter(|other| *other != path).collect();
        let to = *others.choose(&mut self.random).expect("not empty");
        let condition = match self.random.random_bool(0.3) {
            true => Condition::IfAbsent,
            false => Condition::Always,
        };
        let act = if condition == Condition::IfAbsent { Act::MoveNew(to) } else { Act::Move(to) };
        let spec = MoveSpec {
            volume: volume(),
            path: file_path(path),
            to: file_path(to),
            if_match: None,
            condition,
        };
        let called = self.stage.clock.monotonic();
        let answer = self.stage.patiently(files.move_file(spec)).await;
        match &answer {
            Some(Ok(_)) => self.stage.record(path, called, true, act),
            Some(Err(FileError::FileNotFound { .. })) => {
                self.stage.record(path, called, true, Act::Read(None));
            }
            Some(Err(FileError::PreconditionFailed(_))) => {
                self.stage.record(path, called, true, Act::MoveNewRefused(to));
            }
            Some(Err(error)) if !is_open(error) => {}
            _ => self.stage.record(path, called, false, act),
        }
        format!("{act:?}: {}", told(answer.map(|a| a.map(|_| "done".into()))))
    }

    async fn stat(&mut self, files: &SharedFiles, path: &'static str) -> String {
        let called = self.stage.clock.monotonic();
        let answer = self.stage.patiently(files.stat(&volume(), &file_path(path), None)).await;
        let seen = match &answer {
            Some(Ok(stat)) => Some(Some(self.stage.value_of(&stat.file.blake3))),
            Some(Err(FileError::FileNotFound { .. })) => Some(None),
            _ => None,
        };
        if let Some(seen) = seen {
            self.stage.record(path, called, true, Act::Read(seen));
        }
        format!("Stat: {}", told(answer.map(|a| a.map(|_| format!("{seen:?}")))))
    }

    async fn get(&mut self, files: &SharedFiles, path: &'static str) -> String {
        let called = self.stage.clock.monotonic();
        let answer = self.stage.patiently(read(files, path)).await;
        let seen = match &answer {
            Some(Ok(bytes)) => Some(Some(self.stage.value_of(blake3::hash(bytes).as_bytes()))),
            Some(Err(FileError::FileNotFound { .. })) => Some(None),
            _ => None,
        };
        if let Some(seen) = seen {
            self.stage.record(path, called, true, Act::Read(seen));
        }
        format!("Get: {}", told(answer.map(|a| a.map(|_| format!("{seen:?}")))))
    }

    async fn list(&mut self, files: &SharedFiles) -> String {
        let called = self.stage.clock.monotonic();
        let spec = ListSpec { limit: 100, ..ListSpec::default() };
        let answer = self.stage.patiently(files.list(&volume(), spec)).await;
        if let Some(Ok(listing)) = &answer {
            for path in PATHS {
                let there = listing.files.iter().any(|file| file.path.as_str() == path);
                self.stage.record(path, called, true, Act::Listed(there));
            }
        }
        format!("List: {}", told(answer.map(|a| a.map(|listing| format!("{} files", listing.files.len())))))
    }
}

pub(super) fn told(answer: Option<Result<String, FileError>>) -> String {
    match answer {
        Some(Ok(what)) => what,
        Some(Err(error)) => format!("refused: {error}"),
        None => "no answer".into(),
    }
}
