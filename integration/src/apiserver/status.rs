//! The error object of the Kubernetes API, as a response and as the object of an ERROR event.
//!
//! It must not know what is refused or why. Entry point: [`Status`].

use http::StatusCode;
use serde_json::{Value, json};

/// A failure: HTTP status, machine-readable reason and message, as a `Status` object carries them.
#[derive(Debug, Clone)]
pub struct Status {
    pub(super) code: StatusCode,
    reason: &'static str,
    message: String,
    retry_after: Option<u32>,
}

impl Status {
    /// The failure with an HTTP status code, with reason and message as a kube-apiserver says it.
    ///
    /// # Panics
    ///
    /// If the code is none of HTTP's.
    pub fn of(code: u16) -> Self {
        let (reason, message) = match code {
            400 => (
                "BadRequest",
                "the server rejected our request for an unknown reason",
            ),
            401 => ("Unauthorized", "Unauthorized"),
            403 => (
                "Forbidden",
                "services is forbidden: User \"system:anonymous\" cannot list resource \
                 \"services\" in API group \"\" at the cluster scope",
            ),
            404 => (
                "NotFound",
                "the server could not find the requested resource",
            ),
            405 => (
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ),
            406 => (
                "NotAcceptable",
                "only the following media types are accepted: application/json, \
                 application/vnd.kubernetes.protobuf",
            ),
            410 => ("Expired", "too old resource version: 1 (2)"),
            422 => ("Invalid", "ListOptions.meta.k8s.io \"\" is invalid"),
            429 => (
                "TooManyRequests",
                "Too many requests, please try again later.",
            ),
            500 => (
                "InternalError",
                "Internal error occurred: etcdserver: no leader",
            ),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => (
                "Timeout",
                "Timeout: request did not complete within the allotted timeout",
            ),
            _ => (
                "",
                "an error on the server has prevented the request from succeeding",
            ),
        };
        let code = StatusCode::from_u16(code).expect("a status code has three digits");
        Self::new(code, reason, message)
    }

    /// The same with another message.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// The same with a header `Retry-After` of that many seconds, which the object says, too.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    pub(super) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    /// List options that contradict themselves or ask for what the server does not have.
    pub(super) fn invalid_options(message: &str) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("ListOptions.meta.k8s.io \"\" is invalid: {message}"),
        )
    }

    /// The value of the header `Retry-After`.
    pub(super) fn seconds_to_wait(&self) -> Option<u32> {
        self.retry_after
    }

    pub(super) fn object(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        if let Some(seconds) = self.retry_after {
            object["details"] = json!({"retryAfterSeconds": seconds});
        }
        object
    }
}
