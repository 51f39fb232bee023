//! Where API servers are: URLs as client-go takes them.

use anyhow::{Context, bail, ensure};
use http::Uri;

/// Reads a server's address. Without a scheme it is https where `has_tls` says that there is
/// something to do TLS with, else http.
///
/// ```text
/// 10.0.0.1:6443        -> https://10.0.0.1:6443/
/// api.example/cluster  -> https://api.example/cluster
/// ```
pub(super) fn parse(text: &str, has_tls: bool) -> anyhow::Result<Uri> {
    let text = text.trim();
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        let scheme = if has_tls { "https" } else { "http" };
        // An address of IPv6 alone has no brackets.
        match text.parse::<std::net::Ipv6Addr>() {
            Ok(address) => format!("{scheme}://[{address}]"),
            Err(_) => format!("{scheme}://{text}"),
        }
    };
    let uri: Uri = url
        .parse()
        .with_context(|| format!("{text:?} is not the URL of an API server"))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        scheme => bail!(
            "{text:?} is not the URL of an API server: scheme {:?}",
            scheme.unwrap_or_default()
        ),
    }
    ensure!(
        uri.host().is_some_and(|host| !host.is_empty()),
        "{text:?} is not the URL of an API server: it has no host"
    );
    Ok(uri)
}

/// The URL of a path with a query, below that of the server.
pub(super) fn join(server: &Uri, path_and_query: &str) -> Result<Uri, http::Error> {
    let prefix = server.path().trim_end_matches('/');
    let mut parts = server.clone().into_parts();
    parts.path_and_query = Some(format!("{prefix}{path_and_query}").try_into()?);
    Ok(Uri::from_parts(parts)?)
}

/// The port of a URL.
pub(super) fn port(uri: &Uri) -> u16 {
    let is_https = uri.scheme_str() == Some("https");
    uri.port_u16().unwrap_or(if is_https { 443 } else { 80 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_may_be_missing() {
        for (text, has_tls, url) in [
            ("10.0.0.1:6443", true, "https://10.0.0.1:6443/"),
            ("10.0.0.1:6443", false, "http://10.0.0.1:6443/"),
            ("api.example", true, "https://api.example/"),
            ("api.example/k8s/a", true, "https://api.example/k8s/a"),
            ("[::1]:6443", true, "https://[::1]:6443/"),
            ("2001:db8::1", true, "https://[2001:db8::1]/"),
            ("http://10.0.0.1", true, "http://10.0.0.1/"),
            (" https://10.0.0.1:6443 ", false, "https://10.0.0.1:6443/"),
        ] {
            assert_eq!(parse(text, has_tls).unwrap().to_string(), url, "{text}");
        }
        for text in ["", "ftp://10.0.0.1", "https://", "a b", "http://[::1"] {
            let error = parse(text, true).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn paths_go_below_that_of_the_server() {
        for (server, url) in [
            ("https://a:6443", "https://a:6443/api?x=1"),
            ("https://a/prefix/", "https://a/prefix/api?x=1"),
        ] {
            let server = parse(server, true).unwrap();
            assert_eq!(join(&server, "/api?x=1").unwrap().to_string(), url);
        }
    }
}
