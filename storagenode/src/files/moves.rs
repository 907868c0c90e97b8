//! Moves: a file gets another name in its volume, by one transaction (R1).
//!
//! The record goes from one key to the other as it is, so its generation is named by exactly one record at every revision of
//! the store: whoever reads both names at one revision finds the file once. What it replaces is queued for collection by the
//! same transaction. No chunk is touched, so neither the map nor the sweep's epoch matters. Whoever reads the records page by page, as
//! the sweep does, may meet a moved file twice or not at all, and must watch meanwhile.

use super::{
    FileError, FileInfo, MoveSpec,
    commit::{self, Outcome, Proposal},
    gateway::{Gateway, file_info},
    upload::{collect_ops, holds},
};
use crate::meta::{
    Compare, Op,
    keys::{self, file::FileRecord},
};

impl Gateway {
    pub(super) async fn do_move(&self, spec: MoveSpec) -> Result<FileInfo, FileError> {
        let MoveSpec { volume, path, to, if_match, condition } = spec;
        if path == to {
            return Err(FileError::InvalidArgument(format!("{path:?} has this name already")));
        }
        for attempt in 0..commit::ATTEMPTS {
            let (found, replaced) = self.find_beside(&volume, &path, &to).await?;
            Self::must_be_active(&found.volume)?;
            let generation = found.record.generation();
            if if_match.is_some_and(|wanted| wanted != generation) {
                let message = format!("{path:?} has the etag {generation} now");
                return Err(FileError::PreconditionFailed(message));
            }
            let to_key = keys::file::key(found.volume.id(), to.as_str());
            holds(condition, replaced.as_ref(), &to)?;
            let from_key = found.entry.key.clone();
            let mut then =
                vec![Op::delete(from_key.clone()), Op::put(to_key.clone(), found.entry.value.clone())];
            if let Some(entry) = &replaced {
                let old = FileRecord::decode(entry)?;
                then.extend(collect_ops(&found.volume, &old, self.view.current().tick));
            }
            let proposal = Proposal {
                compare: vec![
                    Compare::unchanged(from_key, found.entry.mod_revision),
                    Compare::unchanged(to_key, replaced.map_or(0, |entry| entry.mod_revision)),
                    Compare::unchanged(keys::volume::key(volume.as_str()), found.volume.revision),
                ],
                then,
                look: vec![],
            };
            if let Outcome::Committed = self.commit(self.env.random.bytes(), proposal).await? {
                return Ok(file_info(&volume, &to, &found.record));
            }
            self.step_aside(attempt).await;
        }
        Err(FileError::Conflict(format!("{path:?} or {to:?} is being written by many at once")))
    }
}
