//! The client library of Cairn: files in volumes, on a cluster of nodes that one reaches through any of them.
//!
//! ```no_run
//! # async fn example() -> cairn_client::Result<()> {
//! use cairn_client::{Client, ClientConfig, DownloadOptions, Pem, UploadOptions};
//!
//! let config = ClientConfig::new(["https://node-1:50051", "https://node-2:50051"], Pem::File("ca.crt".into()))
//!     .with_token("secret");
//! let client = Client::connect(config)?;
//! client.upload_bytes("files", "notes/today.txt", UploadOptions::default(), "hello".into()).await?;
//! let text = client.download("files", "notes/today.txt", DownloadOptions::default()).await?.bytes(1 << 20).await?;
//! assert_eq!(&text[..], b"hello");
//! # Ok(()) }
//! ```
//!
//! # What is repeated
//!
//! Reads are repeated at other nodes, within [`Limits`]; a download goes on where it broke off. Changes are repeated when
//! the failed attempt certainly changed nothing. When that is not certain, an upload looks at what is there
//! first: the same content means that it has happened, and the version that it was to replace ([`Condition::IfMatch`]), that it
//! has not. Otherwise nobody can tell, and it is not repeated: [`ErrorCode::CommitUnknown`]. See [`Effect`].

mod calls;
pub mod config;
mod copy;
mod download;
mod endpoints;
mod error;
mod list;
mod moves;
pub mod names;
mod options;
mod retry;
mod tls;
mod upload;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cairn_proto::v1::files_client::FilesClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

pub use cairn_proto::v1::{
    ChunkCopy, ChunkLocation, CopyState, ErrorCode, FileInfo, IntendedNode, NodeState, NodeStatus, Readable,
    StatResponse, StatusResponse, Volume, VolumeState,
};
pub use calls::{Condition, CreateVolume, StatOptions};
pub use download::{Download, DownloadOptions};
pub use endpoints::{DEFAULT_PORT, Endpoint};
pub use error::{ERROR_DOMAIN, Effect, Error, Result};
pub use list::{ListOptions, Listing, Page};
pub use moves::MoveOptions;
pub use options::{ClientConfig, Credentials, Limits, Pem};
pub use upload::source::{BytesSource, ContentStream, FileSource, Source};
pub use upload::{Counter, UploadOptions};

use endpoints::{Node, Pool};
use retry::Repeat;

/// Messages carry at most 1 MiB of content and a little around it; listings of 10,000 names can be larger.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
const TOKEN_FILE_AGE: Duration = Duration::from_secs(30);

/// A client of one cluster. Cheap to clone: clones share connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    /// Of one: the supervisor.
    supervisor: Option<Pool>,
    limits: Limits,
    credentials: Credentials,
    /// The header made from a token file, and when.
    token: Mutex<Option<(Instant, MetadataValue<Ascii>)>>,
}

impl Client {
    /// Checks the configuration. Connections are opened when they are needed, and again when they broke.
    ///
    /// Must be called on a Tokio runtime.
    pub fn connect(config: ClientConfig) -> Result<Self> {
        let pool = Pool::new(&config)?;
        let supervisor = config
            .supervisor
            .clone()
            .map(|address| Pool::new(&ClientConfig { endpoints: vec![address], ..config.clone() }));
        let supervisor = supervisor.transpose()?;
        let ClientConfig { limits, credentials, .. } = config;
        let client = Self {
            shared: Arc::new(Shared { pool, supervisor, limits, credentials, token: Mutex::new(None) }),
        };
        // A token that cannot be read is found out now rather than at the first call.
        client.authorization()?;
        Ok(client)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Who can stop and start nodes; where nobody can, the nodes say so.
    pub(crate) fn supervisor(&self) -> &Pool {
        self.shared.supervisor.as_ref().unwrap_or(&self.shared.pool)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(crate) fn files(&self, node: &Node) -> FilesClient<Channel> {
        FilesClient::new(node.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A request with this client's credentials.
    pub(crate) fn request<T>(&self, message: T) -> Result<tonic::Request<T>> {
        let mut request = tonic::Request::new(message);
        if let Some(value) = self.authorization()? {
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    /// A short call: decoded, bounded in time, repeated as `repeat` allows.
    pub(crate) async fn unary<M, T, F, Fut>(&self, repeat: Repeat, message: M, call: F) -> Result<T>
    where
        M: Clone,
        F: Fn(Arc<Node>, tonic::Request<M>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.unary_at(self.pool(), repeat, message, call).await
    }

    pub(crate) async fn unary_at<M, T, F, Fut>(
        &self,
        pool: &Pool,
        repeat: Repeat,
        message: M,
        call: F,
    ) -> Result<T>
    where
        M: Clone,
        F: Fn(Arc<Node>, tonic::Request<M>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        retry::run(pool, self.limits(), repeat, |node| {
            let request = self.request(message.clone());
            let call = &call;
            async move {
                let answer = call(node, request?).await;
                answer.map(tonic::Response::into_inner).map_err(|status| Error::from_status(&status))
            }
        })
        .await
    }

    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>> {
        match &self.shared.credentials {
            Credentials::None | Credentials::Certificate { .. } => Ok(None),
            Credentials::Token(token) => bearer(token).map(Some),
            Credentials::TokenFile(path) => {
                let mut cached = self.shared.token.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((read_at, value)) = cached.as_ref()
                    && read_at.elapsed() < TOKEN_FILE_AGE
                {
                    return Ok(Some(value.clone()));
                }
                let token = tls::read_pem(&Pem::File(path.clone()), "the token")?;
                let value = bearer(&token)?;
                *cached = Some((Instant::now(), value.clone()));
                Ok(Some(value))
            }
        }
    }
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>> {
    let token = token.trim();
    let header = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
    match header {
        Ok(mut value) if !token.is_empty() => {
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err(Error::local(
            "the token is empty or has characters that a token cannot have",
            "give the token alone, on one line",
        )),
    }
}
