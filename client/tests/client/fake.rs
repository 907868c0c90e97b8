//! A small `Files` server over TLS that can be told to fail, and a proxy that cuts connections.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_client::{ERROR_DOMAIN, ErrorCode, FileInfo, Limits};
use cairn_proto::v1::download_response::Part as Out;
use cairn_proto::v1::files_server::{Files, FilesServer};
use cairn_proto::v1::upload_request::Part as In;
use cairn_proto::v1::volumes_server::{Volumes, VolumesServer};
use cairn_proto::v1::*;
use futures::StreamExt;
use futures::stream::BoxStream;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// How the next call goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Refuse(ErrorCode),
    /// Says nothing, ever.
    Hang,
    /// Does it, and answers COMMIT_UNKNOWN.
    DoThenUnknown,
    /// Does not do it, and answers COMMIT_UNKNOWN.
    SkipThenUnknown,
    /// Does it, and answers as a broken connection would.
    DoThenBreak,
    /// Breaks off after so many bytes.
    CutAfter(usize),
    /// One byte is another.
    Corrupt,
    /// One byte too many.
    Extra,
    /// The page leads to itself.
    Loop,
}

#[derive(Default)]
struct State {
    files: BTreeMap<(String, String), (FileInfo, Bytes)>,
    volumes: BTreeMap<String, Volume>,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    calls: Vec<String>,
    tokens: Vec<String>,
    /// What answers say to those who allow it, or to everybody.
    stale_ms: (Option<u64>, bool),
}

/// The state is shared by all fake nodes of a test, as that of a cluster is.
#[derive(Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    etags: Arc<AtomicU64>,
}

impl Fake {
    pub fn fail(&self, call: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().unwrap().faults.entry(call).or_default().extend(faults);
    }

    pub fn calls(&self, call: &str) -> usize {
        self.state.lock().unwrap().calls.iter().filter(|made| *made == call).count()
    }

    pub fn set_stale_ms(&self, stale_ms: Option<u64>, also_if_not_allowed: bool) {
        self.state.lock().unwrap().stale_ms = (stale_ms, also_if_not_allowed);
    }

    fn stale_ms(&self, allowed: bool) -> Option<u64> {
        let (stale_ms, always) = self.state.lock().unwrap().stale_ms;
        stale_ms.filter(|_| allowed || always)
    }

    pub fn tokens(&self) -> Vec<String> {
        self.state.lock().unwrap().tokens.clone()
    }

    pub fn content(&self, path: &str) -> Option<Bytes> {
        let state = self.state.lock().unwrap();
        state.files.get(&("files".to_owned(), path.to_owned())).map(|(_, content)| content.clone())
    }

    pub fn store(&self, path: &str, content: &[u8]) -> FileInfo {
        let info = FileInfo {
            volume: "files".into(),
            path: path.into(),
            size_bytes: content.len() as u64,
            etag: format!("{:032x}", self.etags.fetch_add(1, Ordering::SeqCst)),
            blake3: Bytes::copy_from_slice(blake3::hash(content).as_bytes()),
            modified_unix_ms: 1_700_000_000_000,
            content_type: String::new(),
        };
        let stored = (info.clone(), Bytes::copy_from_slice(content));
        self.state.lock().unwrap().files.insert(("files".into(), path.into()), stored);
        info
    }

    fn enter<T>(&self, call: &'static str, request: &Request<T>) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call.to_owned());
        if let Some(token) = request.metadata().get("authorization") {
            state.tokens.push(token.to_str().unwrap().to_owned());
        }
        state.faults.get_mut(call).and_then(VecDeque::pop_front)
    }

    fn find(&self, volume: &str, path: &str) -> Result<(FileInfo, Bytes), Status> {
        let state = self.state.lock().unwrap();
        let found = state.files.get(&(volume.to_owned(), path.to_owned())).cloned();
        found.ok_or_else(|| refusal(ErrorCode::FileNotFound))
    }

    fn check(&self, volume: &str, path: &str, condition: Option<Condition>) -> Result<(), Status> {
        use condition::Kind;
        let found = self.find(volume, path).ok();
        let holds = match condition.and_then(|condition| condition.kind) {
            None => true,
            Some(Kind::IfAbsent(_)) => found.is_none(),
            Some(Kind::IfExists(_)) => found.is_some(),
            Some(Kind::IfMatch(etag)) => found.is_some_and(|(info, _)| info.etag == etag),
        };
        if holds { Ok(()) } else { Err(refusal(ErrorCode::PreconditionFailed)) }
    }
}

pub fn refusal(code: ErrorCode) -> Status {
    let metadata = HashMap::from([
        ("cause".to_owned(), format!("cause of {}", code.as_str_name())),
        ("help".to_owned(), "help from the server".to_owned()),
    ]);
    let details = ErrorDetails::with_error_info(code.as_str_name(), ERROR_DOMAIN, metadata);
    Status::with_error_details(Code::Unknown, "refused", details)
}

fn broken() -> Status {
    Status::unavailable("connection reset")
}

/// What to do before and after the real work.
async fn apply(fault: Option<Fault>) -> Result<(), Status> {
    match fault {
        Some(Fault::Refuse(code)) => Err(refusal(code)),
        Some(Fault::SkipThenUnknown) => Err(refusal(ErrorCode::CommitUnknown)),
        Some(Fault::Hang) => std::future::pending().await,
        _ => Ok(()),
    }
}

/// Volumes can be created and found.
#[tonic::async_trait]
impl Volumes for Fake {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let fault = self.enter("create_volume", &request);
        apply(fault).await?;
        let CreateVolumeRequest { name, copies, chunk_size_bytes } = request.into_inner();
        let volume = Volume { name: name.clone(), copies, chunk_size_bytes, ..Default::default() };
        self.state.lock().unwrap().volumes.insert(name, volume.clone());
        after(fault, CreateVolumeResponse { volume: Some(volume), created: true })
    }

    async fn get_volume(
        &self,
        request: Request<GetVolumeRequest>,
    ) -> Result<Response<GetVolumeResponse>, Status> {
        apply(self.enter("get_volume", &request)).await?;
        let found = self.state.lock().unwrap().volumes.get(&request.into_inner().name).cloned();
        let volume = Some(found.ok_or_else(|| refusal(ErrorCode::VolumeNotFound))?);
        Ok(Response::new(GetVolumeResponse { volume }))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Err(refusal(ErrorCode::Unsupported))
    }

    async fn delete_volume(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        Err(refusal(ErrorCode::Unsupported))
    }
}

fn after<T>(fault: Option<Fault>, answer: T) -> Result<Response<T>, Status> {
    match fault {
        Some(Fault::DoThenUnknown) => Err(refusal(ErrorCode::CommitUnknown)),
        Some(Fault::DoThenBreak) => Err(broken()),
        _ => Ok(Response::new(answer)),
    }
}

#[tonic::async_trait]
impl Files for Fake {
    async fn upload(
        &self,
        request: Request<Streaming<UploadRequest>>,
    ) -> Result<Response<UploadResponse>, Status> {
        let fault = self.enter("upload", &request);
        if !matches!(fault, Some(Fault::SkipThenUnknown)) {
            apply(fault).await?;
        }
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.part);
        let Some(In::Header(header)) = first else { return Err(refusal(ErrorCode::InvalidArgument)) };
        let mut content = BytesMut::new();
        while let Some(message) = messages.message().await? {
            let Some(In::Data(data)) = message.part else { return Err(refusal(ErrorCode::InvalidArgument)) };
            assert!(data.len() <= 1 << 20);
            content.extend_from_slice(&data);
        }
        // A caller that gives up resets the stream with CANCEL, which hyper shows as an end of the body like any other;
        // but it drops this call as soon as it waits. So: wait once, here, before the content counts as whole.
        tokio::task::yield_now().await;
        apply(fault).await?;
        self.check(&header.volume, &header.path, header.condition)?;
        if header.size_bytes.is_some_and(|size| size != content.len() as u64) {
            return Err(refusal(ErrorCode::SizeMismatch));
        }
        if header.blake3.is_some_and(|digest| digest[..] != blake3::hash(&content).as_bytes()[..]) {
            return Err(refusal(ErrorCode::DigestMismatch));
        }
        let info = self.store(&header.path, &content);
        after(fault, UploadResponse { file: Some(info) })
    }

    type DownloadStream = BoxStream<'static, Result<DownloadResponse, Status>>;

    async fn download(
        &self,
        request: Request<DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let fault = self.enter("download", &request);
        apply(fault).await?;
        let wanted = request.into_inner();
        let (info, content) = self.find(&wanted.volume, &wanted.path)?;
        if !wanted.if_match.is_empty() && wanted.if_match != info.etag {
            return Err(refusal(ErrorCode::PreconditionFailed));
        }
        if wanted.offset > info.size_bytes {
            return Err(refusal(ErrorCode::RangeNotSatisfiable));
        }
        let stale_ms = self.stale_ms(wanted.allow_stale);
        let length = wanted.length.unwrap_or(u64::MAX).min(info.size_bytes - wanted.offset);
        let mut content = content.slice(wanted.offset as usize..(wanted.offset + length) as usize).to_vec();
        let header = DownloadHeader { file: Some(info), offset: wanted.offset, length, stale_ms };
        let mut messages = vec![Ok(DownloadResponse { part: Some(Out::Header(header)) })];
        let mut cut = false;
        match fault {
            Some(Fault::Corrupt) => content[0] ^= 1,
            Some(Fault::Extra) => content.push(0),
            Some(Fault::CutAfter(count)) => {
                content.truncate(count);
                cut = true;
            }
            _ => {}
        }
        for piece in content.chunks(64 << 10) {
            let data = Bytes::copy_from_slice(piece);
            messages.push(Ok(DownloadResponse { part: Some(Out::Data(data)) }));
        }
        if cut {
            messages.push(Err(broken()));
        }
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        apply(self.enter("stat", &request)).await?;
        let wanted = request.into_inner();
        let (info, _) = self.find(&wanted.volume, &wanted.path)?;
        Ok(Response::new(StatResponse {
            file: Some(info),
            chunks: vec![],
            stale_ms: self.stale_ms(wanted.allow_stale),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let fault = self.enter("list", &request);
        apply(fault).await?;
        let wanted = request.into_inner();
        let page = wanted.page.unwrap_or_default();
        let size = if page.size == 0 { 1_000 } else { page.size as usize };
        let state = self.state.lock().unwrap();
        let mut found = state.files.values().map(|(info, _)| info.clone()).filter(|info| {
            info.volume == wanted.volume && info.path.starts_with(&wanted.prefix) && info.path > page.token
        });
        let files: Vec<FileInfo> = found.by_ref().take(size).collect();
        let more = found.next().is_some();
        let mut next_page_token = if more { files.last().unwrap().path.clone() } else { String::new() };
        if let Some(Fault::Loop) = fault {
            next_page_token = page.token;
        }
        Ok(Response::new(ListResponse { files, prefixes: vec![], next_page_token }))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let fault = self.enter("delete", &request);
        apply(fault).await?;
        let wanted = request.into_inner();
        let (info, _) = self.find(&wanted.volume, &wanted.path)?;
        self.check(&wanted.volume, &wanted.path, wanted.condition)?;
        self.state.lock().unwrap().files.remove(&(wanted.volume, wanted.path));
        after(fault, DeleteResponse { file: Some(info) })
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<MoveResponse>, Status> {
        let fault = self.enter("move", &request);
        apply(fault).await?;
        let MoveRequest { volume, path, to_path, if_match, to_condition } = request.into_inner();
        let (info, content) = self.find(&volume, &path)?;
        if !if_match.is_empty() && if_match != info.etag {
            return Err(refusal(ErrorCode::PreconditionFailed));
        }
        self.check(&volume, &to_path, to_condition)?;
        let moved = FileInfo { path: to_path.clone(), ..info };
        let mut state = self.state.lock().unwrap();
        state.files.remove(&(volume.clone(), path));
        state.files.insert((volume, to_path), (moved.clone(), content));
        drop(state);
        after(fault, MoveResponse { file: Some(moved) })
    }
}

/// An authority and what it signs.
pub struct Authority {
    pub ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { ca_pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for one name, changed as wanted before it is signed.
    pub fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }
}

/// Serves until the test ends.
pub async fn serve(fake: &Fake, identity: Identity) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = FilesServer::new(fake.clone()).max_decoding_message_size(8 << 20);
    let server = Server::builder()
        .tls_config({
            // Two providers may be compiled in; an error says that another test has set this one.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            ServerTlsConfig::new().identity(identity)
        })
        .unwrap()
        .add_service(service)
        .add_service(VolumesServer::new(fake.clone()))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

/// An address where nothing listens.
pub async fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Forwards to `target`, and dies after `budget_bytes` from the client: cuts everything, and refuses what comes later.
pub async fn cutting_proxy(target: SocketAddr, budget_bytes: i64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let budget = Arc::new(AtomicI64::new(budget_bytes));
    tokio::spawn(async move {
        while budget.load(Ordering::SeqCst) > 0 {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(forward(client, target, Arc::clone(&budget)));
        }
    });
    address
}

async fn forward(mut client: TcpStream, target: SocketAddr, budget: Arc<AtomicI64>) {
    let mut server = TcpStream::connect(target).await.unwrap();
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            count = client.read(&mut up) => {
                let Ok(count @ 1..) = count else { return };
                if budget.fetch_sub(count as i64, Ordering::SeqCst) <= count as i64 {
                    return;
                }
                server.write_all(&up[..count]).await.unwrap();
            }
            count = server.read(&mut down) => {
                let Ok(count @ 1..) = count else { return };
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Limits that keep tests short.
pub fn quick() -> Limits {
    Limits {
        connect_timeout: Duration::from_secs(2),
        attempt_timeout: Duration::from_millis(1_500),
        call_timeout: Duration::from_secs(10),
        stall_timeout: Duration::from_millis(1_500),
        attempts: 5,
        first_backoff: Duration::from_millis(5),
        max_backoff: Duration::from_millis(20),
    }
}
