//! Moves: another name for a file in its volume.

use std::sync::Arc;

use cairn_proto::v1::{self as wire, ErrorCode, FileInfo};

use crate::error::{Effect, Error, Result};
use crate::retry::Repeat;
use crate::{Client, Condition, Node};

/// How a file is moved.
#[derive(Debug, Clone, Default)]
pub struct MoveOptions {
    /// Only the version with this etag. Absent: the one that is there when the move begins.
    pub if_match: Option<String>,
    /// What must hold of the file that has the new name; if there is one, it is replaced.
    pub condition: Condition,
}

/// Moves whose answer got lost are repeated so often.
const MAX_TRIES: u32 = 4;

impl Client {
    /// Gives a file another name in its volume: everybody sees it under the one name or the other at each moment. Its content,
    /// etag and time stay as they are.
    pub async fn move_file(
        &self,
        volume: &str,
        path: &str,
        to_path: &str,
        options: MoveOptions,
    ) -> Result<FileInfo> {
        let MoveOptions { if_match, condition } = options;
        // With its version known, a move whose answer got lost can be told from one that did not happen.
        let etag = match if_match {
            Some(etag) => etag,
            None => self.stat(volume, path).await?.etag,
        };
        let message = wire::MoveRequest {
            volume: volume.to_owned(),
            path: path.to_owned(),
            to_path: to_path.to_owned(),
            if_match: etag.clone(),
            to_condition: condition.to_wire(),
        };
        let call = |node: Arc<Node>, request| {
            let mut files = self.files(&node);
            async move { files.r#move(request).await }
        };
        let mut unknown: Option<Error> = None;
        for _ in 0..MAX_TRIES {
            let error = match self.unary(Repeat::IfUnchanged, message.clone(), call).await {
                Ok(answer) => {
                    return answer.file.ok_or_else(|| Error::protocol("the node's answer has no file in it"));
                }
                Err(error) => error,
            };
            if error.effect() == Effect::Unknown {
                unknown = Some(error);
            } else if unknown.is_none() {
                return Err(error);
            }
            // A generation has one name: under the new one, it has been moved.
            match self.stat(volume, to_path).await {
                Ok(file) if file.etag == etag => return Ok(file),
                _ => {}
            }
            match self.stat(volume, path).await {
                Ok(file) if file.etag == etag => {}
                _ => break,
            }
        }
        Err(unsure_whether_moved(unknown.as_ref()))
    }
}

fn unsure_whether_moved(error: Option<&Error>) -> Error {
    let cause = error.map(ToString::to_string).unwrap_or_default();
    Error::new(
        ErrorCode::CommitUnknown,
        Effect::Unknown,
        format!("it is not known whether the file was moved: {cause}"),
        "look for it under both names with `cairn stat`; if it still has the old one, move it again",
    )
}
