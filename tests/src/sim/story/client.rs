//! A client of a story: what it asks for, and what it notes of the answers.

use std::time::Duration;

use bytes::Bytes;
use cairn_node::files::{Condition, FileError, ListSpec, MoveSpec, SharedFiles, UploadSpec};
use futures::{StreamExt, stream};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{ACTS, PATHS, Stage, ZONES, file_path, read, volume};
use crate::sim::linear::Act;

/// Whether a refusal leaves open what has happened.
fn is_open(error: &FileError) -> bool {
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
            let what = match self.random.random_range(0..12) {
                0..3 => self.put(&files, path, Condition::Always).await,
                3 => self.put(&files, path, Condition::IfAbsent).await,
                4 => self.delete(&files, path).await,
                5 => self.list(&files).await,
                6 => self.stat(&files, path).await,
                7..9 => self.move_file(&files, path).await,
                _ => self.get(&files, path).await,
            };
            self.stage.note(format_args!("client {} at n{}: {path}: {what}", self.name, node + 1));
        }
    }

    async fn put(&mut self, files: &SharedFiles, path: &'static str, condition: Condition) -> String {
        let (value, bytes) = self.stage.content(&mut self.random);
        let act = if condition == Condition::IfAbsent { Act::Create(value) } else { Act::Put(value) };
        let spec = UploadSpec {
            volume: volume(),
            path: file_path(path),
            size_bytes: Some(bytes.len() as u64),
            blake3: None,
            condition,
            content_type: String::new(),
        };
        let pieces: Vec<_> = bytes.chunks(20_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        // One in four is so slow that sweeps begin and end meanwhile.
        let (clock, slow) = (self.stage.clock.clone(), self.random.random_bool(0.25));
        let pause = Duration::from_millis(if slow { self.random.random_range(1..7_000) } else { 0 });
        let pieces = stream::iter(pieces).then(move |piece| {
            let clock = clock.clone();
            async move {
                if slow {
                    clock.sleep(pause).await;
                }
                piece
            }
        });
        let called = self.stage.clock.monotonic();
        let answer = self.stage.patiently(files.upload(spec, pieces.boxed())).await;
        match &answer {
            Some(Ok(_)) => self.stage.record(path, called, true, act),
            Some(Err(FileError::PreconditionFailed(_))) => {
                self.stage.record(path, called, true, Act::CreateRefused);
            }
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

fn told(answer: Option<Result<String, FileError>>) -> String {
    match answer {
        Some(Ok(what)) => what,
        Some(Err(error)) => format!("refused: {error}"),
        None => "no answer".into(),
    }
}
