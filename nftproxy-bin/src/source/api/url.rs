//! Addresses of API servers, as Go's clients take them.

use anyhow::{Context, bail, ensure};
use http::Uri;

/// Reads an address. One without a scheme is `https` where there are settings for TLS, and `http`
/// where there are none.
pub(super) fn parse(text: &str, has_tls_settings: bool) -> anyhow::Result<Uri> {
    let text = text.trim();
    let has_scheme = text.contains("://");
    let scheme = if has_tls_settings { "https" } else { "http" };
    let url: Uri = if has_scheme {
        text.parse()
    } else {
        format!("{scheme}://{text}").parse()
    }
    .with_context(|| format!("{text:?} is not a URL"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        bail!("{text:?} is neither http nor https");
    }
    ensure!(
        url.host().is_some_and(|host| !host.is_empty()),
        "{text:?} names no host"
    );
    ensure!(
        has_scheme || matches!(url.path(), "" | "/"),
        "{text:?} is neither a URL nor a host with a port"
    );
    ensure!(url.query().is_none(), "{text:?} has a query");
    Ok(url)
}

/// The port that a connection to a URL goes to.
pub(super) fn port(url: &Uri) -> u16 {
    let by_scheme = if url.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    url.port_u16().unwrap_or(by_scheme)
}

/// Its host, an IPv6 address without brackets.
pub(super) fn host(url: &Uri) -> &str {
    let host = url.host().unwrap_or_default();
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_go_clients_do() {
        for (text, has_tls_settings, expected) in [
            ("https://api:6443", false, "https://api:6443/"),
            ("https://api/k8s/c-1", true, "https://api/k8s/c-1"),
            ("127.0.0.1:8001", false, "http://127.0.0.1:8001/"),
            ("127.0.0.1:8001", true, "https://127.0.0.1:8001/"),
            ("localhost:8001/", false, "http://localhost:8001/"),
            ("apiserver.example", true, "https://apiserver.example/"),
            ("[::1]:6443", true, "https://[::1]:6443/"),
            (" http://api ", true, "http://api/"),
        ] {
            let url = parse(text, has_tls_settings).unwrap();
            assert_eq!(url.to_string(), expected, "{text}");
        }
        assert_eq!(host(&"https://[::1]:6443".parse().unwrap()), "::1");
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in [
            "",
            "ftp://api",
            "https://",
            "api/path",
            "a b",
            "::1",
            "http://a?b",
        ] {
            let error = format!("{:#}", parse(text, false).unwrap_err());
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
