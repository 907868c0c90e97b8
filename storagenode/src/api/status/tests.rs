//! The catalogue is whole, and both wires say the same.

use http_body_util::BodyExt;

use super::*;
use crate::files::path::PathError;

/// Every code there is, from the protocol's own numbers.
fn all_codes() -> Vec<ErrorCode> {
    (0..1000).filter_map(|number| ErrorCode::try_from(number).ok()).collect()
}

#[test]
fn every_code_survives_the_way_through_a_grpc_status() {
    let codes = all_codes();
    assert!(codes.len() >= 32);
    for code in codes {
        let status = peer_status(code, "why");
        assert_eq!(code_of(&status), Some(code));
        assert_eq!(status.code(), entry(code).grpc);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata["cause"], "why");
        assert_eq!(info.metadata["help"], entry(code).help);
        assert_eq!(status.get_details_retry_info().is_some(), entry(code).retry_after_s.is_some());
        assert_ne!(status.code(), tonic::Code::Ok);
    }
}

#[tokio::test]
async fn every_code_has_a_problem_document() {
    for code in all_codes() {
        let response = Refusal::new(code, "why").into_response();
        let entry = entry(code);
        assert_eq!(response.status(), entry.http);
        assert!(entry.http.is_client_error() || entry.http.is_server_error());
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers().contains_key(header::RETRY_AFTER), entry.retry_after_s.is_some());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], code.as_str_name());
        assert_eq!(problem["status"], entry.http.as_u16());
        assert_eq!(problem["detail"], "why");
        assert_eq!(problem["help"], entry.help);
        assert_eq!(problem["title"], entry.title);
    }
}

#[test]
fn only_waiting_codes_promise_that_waiting_helps() {
    for code in all_codes() {
        let entry = entry(code);
        let waits = entry.http == StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(waits, entry.retry_after_s.is_some(), "{code:?}");
        assert!(entry.help.len() > 10 && !entry.help.ends_with('.'), "{code:?}");
    }
}

#[test]
fn other_peoples_statuses_have_no_code() {
    assert_eq!(code_of(&tonic::Status::unavailable("connection refused")), None);
    let foreign =
        ErrorDetails::with_error_info("FILE_NOT_FOUND", "example.org", HashMap::<String, String>::new());
    assert_eq!(code_of(&tonic::Status::with_error_details(tonic::Code::NotFound, "x", foreign)), None);
}

#[test]
fn long_causes_are_cut_between_characters() {
    let status = file_status(FileError::Internal("é".repeat(5_000)));
    assert!(status.message().len() <= MAX_CAUSE_BYTES + 3);
    assert!(status.message().ends_with('…'));
}

#[test]
fn errors_of_files_keep_their_words() {
    let refusal = Refusal::from(FileError::from(PathError::DotPart));
    assert_eq!(refusal.code, ErrorCode::InvalidPath);
    assert_eq!(refusal.cause, PathError::DotPart.to_string());
    let refusal = Refusal::from(IntentError::Stale { given: 1, known: 2 });
    assert_eq!(refusal.code, ErrorCode::StaleGeneration);
}
