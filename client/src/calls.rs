//! The short calls: files, volumes, the cluster.

use std::sync::Arc;

use cairn_proto::v1::admin_client::AdminClient;
use cairn_proto::v1::local_client::LocalClient;
use cairn_proto::v1::volumes_client::VolumesClient;
use cairn_proto::v1::{self as wire, ErrorCode, FileInfo, StatResponse, StatusResponse, Volume};

use crate::error::{Effect, Error, Result};
use crate::retry::Repeat;
use crate::{Client, MAX_MESSAGE_BYTES, Node};

/// How to look at a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatOptions {
    /// Also ask for each of its chunks where the copies are.
    pub chunks: bool,
    /// While the metadata store cannot be reached, the file as a node last knew it will do; the answer's `stale_ms` says
    /// so.
    pub allow_stale: bool,
}

/// What must hold of the file that is there now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    #[default]
    Always,
    /// It exists with this etag.
    IfMatch(String),
    IfAbsent,
    IfExists,
}

impl Condition {
    pub(crate) fn to_wire(&self) -> Option<wire::Condition> {
        use wire::condition::Kind;
        let kind = match self {
            Condition::Always => return None,
            Condition::IfMatch(etag) => Kind::IfMatch(etag.clone()),
            Condition::IfAbsent => Kind::IfAbsent(true),
            Condition::IfExists => Kind::IfExists(true),
        };
        Some(wire::Condition { kind: Some(kind) })
    }
}

/// A volume to be.
#[derive(Debug, Clone, Default)]
pub struct CreateVolume {
    pub name: String,
    /// Absent: 3, or as many as there are zones if there are fewer (nodes, if all are in one zone). 0 is refused.
    pub copies: Option<u32>,
    /// Absent: 4 MiB. 0 is refused.
    pub chunk_size_bytes: Option<u32>,
}

impl CreateVolume {
    /// On the wire, 0 stands for what was not given: a 0 that was given would be taken for the default.
    fn into_wire(self) -> Result<wire::CreateVolumeRequest> {
        let number = |what: &str, given: Option<u32>| match given {
            Some(0) => Err(Error::new(
                ErrorCode::InvalidArgument,
                Effect::NotSent,
                format!("a volume cannot have 0 {what}"),
                "give another number, or none for the default",
            )),
            given => Ok(given.unwrap_or(0)),
        };
        Ok(wire::CreateVolumeRequest {
            copies: number("copies", self.copies)?,
            chunk_size_bytes: number("bytes in a chunk", self.chunk_size_bytes)?,
            name: self.name,
        })
    }
}

/// Deletions whose answer got lost are repeated so often, if they are conditional.
const MAX_DELETE_TRIES: u32 = 4;
/// Volumes asked for at once.
const VOLUME_PAGE: u32 = 1_000;
/// A server that sends more is not to be believed.
const MAX_VOLUMES: usize = 1_000_000;

impl Client {
    pub async fn stat(&self, volume: &str, path: &str) -> Result<FileInfo> {
        let answer = self.stat_with(volume, path, StatOptions::default()).await?;
        Ok(answer.file.expect("looked for"))
    }

    /// The file, and what else the options ask for; `file` is there always.
    pub async fn stat_with(&self, volume: &str, path: &str, options: StatOptions) -> Result<StatResponse> {
        let StatOptions { chunks, allow_stale } = options;
        let message =
            wire::StatRequest { volume: volume.to_owned(), path: path.to_owned(), chunks, allow_stale };
        let call = |node: Arc<Node>, request| {
            let mut files = self.files(&node);
            async move { files.stat(request).await }
        };
        let answer: StatResponse = self.unary(Repeat::Safe, message, call).await?;
        match answer.file {
            Some(_) if allow_stale || answer.stale_ms.is_none() => Ok(answer),
            Some(_) => Err(Error::protocol("the node's answer is old, which was not allowed")),
            None => Err(Error::protocol("the node's answer has no file in it")),
        }
    }

    /// Deletes a file. `None`: it is gone, but the answer that says what it was got lost.
    pub async fn delete(&self, volume: &str, path: &str, condition: Condition) -> Result<Option<FileInfo>> {
        let message = wire::DeleteRequest {
            volume: volume.to_owned(),
            path: path.to_owned(),
            condition: condition.to_wire(),
        };
        let call = |node: Arc<Node>, request| {
            let mut files = self.files(&node);
            async move { files.delete(request).await }
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.unary(Repeat::IfUnchanged, message.clone(), call).await {
                Ok(answer) => return Ok(answer.file),
                Err(error) if error.effect() == Effect::Unknown => error,
                // An earlier try, whose answer got lost, has done it.
                Err(error) if tries > 1 && error.code() == ErrorCode::FileNotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            match self.stat(volume, path).await {
                Err(look) if look.code() == ErrorCode::FileNotFound => return Ok(None),
                // This very generation is still there, and only it would be deleted.
                Ok(file)
                    if condition == Condition::IfMatch(file.etag.clone()) && tries < MAX_DELETE_TRIES => {}
                // A file that is there shows nothing: somebody may have stored it anew.
                _ => return Err(unsure_whether_deleted(&error)),
            }
        }
    }

    /// Creates a volume, or finds it there with the same settings; true if it is new. If the answer gets lost, it is looked for:
    /// one that is not there may have been created, and deleted by somebody else since, so it is not created again.
    pub async fn create_volume(&self, volume: CreateVolume) -> Result<(Volume, bool)> {
        let message = volume.into_wire()?;
        let call = |node: Arc<Node>, request| async move { volumes(&node).create_volume(request).await };
        let error = match self.unary(Repeat::IfUnchanged, message.clone(), call).await {
            Ok(answer) => return Ok((found_volume(answer.volume)?, answer.created)),
            Err(error) if error.effect() == Effect::Unknown => error,
            Err(error) => return Err(error),
        };
        let fits = |given: u32, found: u32| given == 0 || given == found;
        match self.volume(&message.name).await {
            Ok(found)
                if fits(message.copies, found.copies)
                    && fits(message.chunk_size_bytes, found.chunk_size_bytes) =>
            {
                Ok((found, true))
            }
            _ => Err(unsure_whether_created(&error)),
        }
    }

    pub async fn volume(&self, name: &str) -> Result<Volume> {
        let message = wire::GetVolumeRequest { name: name.to_owned() };
        let answer =
            self.unary(Repeat::Safe, message, |node, request| async move {
                volumes(&node).get_volume(request).await
            })
            .await?;
        found_volume(answer.volume)
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let page = wire::PageRequest { size: VOLUME_PAGE, token: token.clone() };
            let message = wire::ListVolumesRequest { page: Some(page) };
            let call = |node: Arc<Node>, request| async move { volumes(&node).list_volumes(request).await };
            let answer = self.unary(Repeat::Safe, message, call).await?;
            found.extend(answer.volumes);
            if answer.next_page_token.is_empty() {
                return Ok(found);
            }
            if answer.next_page_token == token || found.len() > MAX_VOLUMES {
                return Err(Error::protocol("the node's list of volumes does not end"));
            }
            token = answer.next_page_token;
        }
    }

    /// Deletes a volume; one that has files in it only with `with_files`.
    pub async fn delete_volume(&self, name: &str, with_files: bool) -> Result<()> {
        let message = wire::DeleteVolumeRequest { name: name.to_owned(), with_files };
        self.unary(Repeat::IfUnchanged, message, |node, request| async move {
            volumes(&node).delete_volume(request).await
        })
        .await?;
        Ok(())
    }

    /// The cluster, as one of its nodes sees it.
    pub async fn status(&self) -> Result<StatusResponse> {
        self.unary(Repeat::Safe, wire::StatusRequest {}, |node, request| async move {
            admin(&node).status(request).await
        })
        .await
    }

    /// Tells the cluster which nodes it should have. Answers the generation that is known now.
    pub async fn set_intent(&self, generation: u64, nodes: Vec<wire::IntendedNode>) -> Result<u64> {
        let message = wire::SetIntentRequest { generation, nodes };
        let answer =
            self.unary(Repeat::Safe, message, |node, request| async move {
                admin(&node).set_intent(request).await
            })
            .await?;
        Ok(answer.generation)
    }

    /// Drops a node of a local cluster without warning.
    pub async fn stop_node(&self, name: &str) -> Result<()> {
        let message = wire::StopNodeRequest { name: name.to_owned() };
        let call = |node: Arc<Node>, request| async move { local(&node).stop_node(request).await };
        self.unary_at(self.supervisor(), Repeat::Safe, message, call).await.map_err(explain_local)?;
        Ok(())
    }

    /// Starts a node of a local cluster again; `false` if it ran already.
    pub async fn start_node(&self, name: &str) -> Result<bool> {
        let message = wire::StartNodeRequest { name: name.to_owned() };
        let call = |node: Arc<Node>, request| async move { local(&node).start_node(request).await };
        let answer = self.unary_at(self.supervisor(), Repeat::Safe, message, call).await;
        Ok(!answer.map_err(explain_local)?.already_running)
    }
}

fn unsure_whether_created(error: &Error) -> Error {
    Error::new(
        ErrorCode::CommitUnknown,
        Effect::Unknown,
        format!("it is not known whether the volume was created: {error}"),
        "look with `cairn volumes`; if it is not there, create it again",
    )
}

fn unsure_whether_deleted(error: &Error) -> Error {
    Error::new(
        ErrorCode::CommitUnknown,
        Effect::Unknown,
        format!("it is not known whether the file was deleted: {error}"),
        "look with `cairn stat`; if the file is still there, delete it again",
    )
}

fn volumes(node: &Node) -> VolumesClient<tonic::transport::Channel> {
    VolumesClient::new(node.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn admin(node: &Node) -> AdminClient<tonic::transport::Channel> {
    AdminClient::new(node.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn local(node: &Node) -> LocalClient<tonic::transport::Channel> {
    LocalClient::new(node.channel.clone())
}

fn found_volume(volume: Option<Volume>) -> Result<Volume> {
    volume.ok_or_else(|| Error::protocol("the node's answer has no volume in it"))
}

fn explain_local(error: Error) -> Error {
    if error.code() != ErrorCode::Unsupported {
        return error;
    }
    Error::new(
        ErrorCode::Unsupported,
        error.effect(),
        "this cluster does not let clients stop or start its nodes",
        "only a cluster run by `cairn-operator local` does; on Kubernetes, delete the node's pod",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_that_was_given_is_not_the_default() {
        let volume = |copies, chunk_size_bytes| CreateVolume { name: "v".into(), copies, chunk_size_bytes };
        let sent = volume(None, None).into_wire().unwrap();
        assert_eq!((sent.copies, sent.chunk_size_bytes), (0, 0), "which stands for the defaults");
        assert_eq!(volume(Some(2), None).into_wire().unwrap().copies, 2);
        for given in [volume(Some(0), None), volume(None, Some(0))] {
            let refused = given.into_wire().unwrap_err();
            assert_eq!((refused.code(), refused.effect()), (ErrorCode::InvalidArgument, Effect::NotSent));
        }
    }
}
