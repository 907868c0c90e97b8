//! `/v1/volumes`: create, get, list, delete.

use ::http::{HeaderValue, StatusCode, Uri, header};
use axum::{
    body::Body,
    extract::{Request, State},
};
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Deserializer};

use super::{
    super::{SharedShell, decode, status::Refusal},
    Answer, json, json_response,
    request::{flag, page_limit, query, volume_of},
};

/// A description of a volume is a few lines.
const MAX_BODY_BYTES: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewVolume {
    name: String,
    #[serde(default, deserialize_with = "given")]
    copies: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    chunk_size_bytes: Option<u32>,
}

/// What may be left out, and is no `null` if it is there.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u32>, D::Error> {
    u32::deserialize(value).map(Some)
}

pub(super) async fn create(State(shell): State<SharedShell>, request: Request) -> Answer {
    let body = request.into_body();
    let (volume, created) = shell
        .within(shell.limits.unary, async {
            let wanted: NewVolume = json_body(body).await?;
            let name = decode::volume_name(&wanted.name)?;
            let (copies, chunk_size_bytes) = decode::volume_settings(wanted.copies, wanted.chunk_size_bytes)?;
            Ok::<_, Refusal>(shell.files.create_volume(&name, copies, chunk_size_bytes).await?)
        })
        .await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = json_response(status, &json::volume(&volume));
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/volumes/{}", volume.name)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn json_body<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let whole = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            return Refusal::invalid(format!("the body is over {MAX_BODY_BYTES} bytes"))
                .with_http(StatusCode::PAYLOAD_TOO_LARGE);
        }
        Refusal::invalid(format!("the body could not be read: {error}"))
    })?;
    serde_json::from_slice(&whole.to_bytes()).map_err(|error| {
        Refusal::invalid(format!(
            "the body is not {{\"name\": …, \"copies\": …, \"chunk_size_bytes\": …}}: {error}"
        ))
    })
}

pub(super) async fn get(State(shell): State<SharedShell>, uri: Uri) -> Answer {
    let name = volume_of(&uri)?;
    let volume = shell.within(shell.limits.unary, shell.files.volume(&name)).await?;
    Ok(json_response(StatusCode::OK, &json::volume(&volume)))
}

pub(super) async fn list(State(shell): State<SharedShell>, uri: Uri) -> Answer {
    let [limit, token] = query(&uri, ["limit", "page_token"])?;
    let limit = page_limit(limit)?;
    let token = decode::page_token(&token.unwrap_or_default())?;
    let (volumes, next) = shell.within(shell.limits.unary, shell.files.volumes(limit, &token)).await?;
    Ok(json_response(StatusCode::OK, &json::volumes(&volumes, &next)))
}

pub(super) async fn delete(State(shell): State<SharedShell>, uri: Uri) -> Answer {
    let name = volume_of(&uri)?;
    let [with_files] = query(&uri, ["with_files"])?;
    let with_files = flag("with_files", with_files)?;
    shell.within(shell.limits.unary, shell.files.delete_volume(&name, with_files)).await?;
    Ok(json_response(StatusCode::OK, &serde_json::json!({})))
}
