//! Which proxy a connection goes through, by the rules that Go's clients have.
//!
//! The source is `golang.org/x/net/http/httpproxy`. Entry point: [`Proxies::of`].

use std::net::IpAddr;

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderValue, Uri};
use ipnet::IpNet;

use super::url;

/// A proxy, and what it wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// Without credentials.
    pub(super) url: Uri,
    /// For `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

/// What kubeconfig and environment say of proxies.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    /// For everything, whatever the environment says.
    explicit: Option<Proxy>,
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    Domain {
        /// With a dot in front.
        suffix: String,
        /// Whether the domain itself counts as well as what is below.
        includes_itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// Reads `proxy-url` of a kubeconfig, or else the environment. What the environment names and
    /// cannot be read is told by `problem` and left out.
    pub(super) fn new(
        proxy_url: Option<&str>,
        environment: impl Fn(&str) -> Option<String>,
        mut problem: impl FnMut(String),
    ) -> anyhow::Result<Self> {
        if let Some(text) = proxy_url.filter(|text| !text.is_empty()) {
            let proxy = Proxy::parse(text).with_context(|| format!("proxy-url {text:?}"))?;
            return Ok(Self {
                explicit: Some(proxy),
                ..Self::default()
            });
        }
        let variable = |upper: &str| {
            [upper.to_owned(), upper.to_lowercase()]
                .iter()
                .find_map(|name| environment(name).filter(|value| !value.is_empty()))
        };
        let mut proxy = |name: &str| match Proxy::parse(&variable(name)?) {
            Ok(proxy) => Some(proxy),
            Err(error) => {
                problem(format!("{name} is ignored: {error:#}"));
                None
            }
        };
        Ok(Self {
            explicit: None,
            http: proxy("HTTP_PROXY"),
            https: proxy("HTTPS_PROXY"),
            exceptions: exceptions(&variable("NO_PROXY").unwrap_or_default()),
        })
    }

    /// The proxy for connections to this server.
    pub(super) fn of(&self, server: &Uri) -> Option<&Proxy> {
        if let Some(proxy) = &self.explicit {
            return Some(proxy);
        }
        let proxy = match server.scheme_str() {
            Some("https") => &self.https,
            _ => &self.http,
        };
        proxy.as_ref().filter(|_| !self.is_excepted(server))
    }

    fn is_excepted(&self, server: &Uri) -> bool {
        let host = url::host(server).to_lowercase();
        let port = url::port(server);
        let address: Option<IpAddr> = host.parse().ok().map(|ip: IpAddr| ip.to_canonical());
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self
                .exceptions
                .iter()
                .any(|exception| exception.matches(&host, address, port))
    }
}

impl Proxy {
    /// Reads a proxy's address. One without a scheme is `http`.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let url: Uri = match text.contains("://") {
            true => text.parse(),
            false => format!("http://{text}").parse(),
        }
        .map_err(|_| anyhow::anyhow!("it is not a URL"))?;
        let scheme = url.scheme_str().unwrap_or_default();
        anyhow::ensure!(
            matches!(scheme, "http" | "https"),
            "proxies by {scheme} are not supported, only by http and https"
        );
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        anyhow::ensure!(!address.is_empty(), "it names no host");
        let authorization = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let mut plain = percent_decoded(name);
            plain.push(b':');
            plain.extend(percent_decoded(password));
            let text = format!("Basic {}", BASE64_STANDARD.encode(plain));
            let mut value = HeaderValue::try_from(text).expect("base64 can be a header");
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            url: format!("{scheme}://{address}").parse()?,
            authorization,
        })
    }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped.filter(|_| *byte == b'%') {
            Some(escaped) => {
                decoded.push(escaped);
                rest = &after[2..];
            }
            None => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded
}

/// Reads `NO_PROXY`. What cannot be read names nothing.
fn exceptions(text: &str) -> Vec<Exception> {
    text.split(',')
        .filter_map(|entry| Exception::parse(&entry.trim().to_lowercase()))
        .collect()
}

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::All);
        }
        if let Ok(network) = entry.parse::<IpNet>() {
            return Some(Self::Network(network));
        }
        // An IPv6 address without brackets has no port.
        if let Ok(address) = entry.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            // A port that is none can be no connection's.
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let domain = host.strip_prefix('*').filter(|rest| rest.starts_with('.'));
        let domain = domain.unwrap_or(host);
        if domain.trim_matches('.').is_empty() {
            return None;
        }
        let includes_itself = !domain.starts_with('.');
        Some(Self::Domain {
            suffix: if includes_itself {
                format!(".{domain}")
            } else {
                domain.to_owned()
            },
            includes_itself,
            port,
        })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Self::Address(excepted, only) => {
                address == Some(*excepted) && only.is_none_or(|only| only == port)
            }
            Self::Domain {
                suffix,
                includes_itself,
                port: only,
            } => {
                let is_below = host.ends_with(suffix.as_str());
                let is_itself = *includes_itself && host == &suffix[1..];
                (is_below || is_itself) && only.is_none_or(|only| only == port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let environment = |name: &str| {
            let variable = variables.iter().find(|(key, _)| *key == name);
            variable.map(|(_, value)| (*value).to_owned())
        };
        Proxies::new(None, environment, |_| {}).unwrap()
    }

    fn is_proxied(server: &str, no_proxy: &str) -> bool {
        let proxies = proxies(&[
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("HTTP_PROXY", "http://proxy:3128"),
            ("NO_PROXY", no_proxy),
        ]);
        proxies.of(&server.parse().unwrap()).is_some()
    }

    /// O-66: the variables for proxies.
    #[test]
    fn no_proxy_names_destinations() {
        for (server, no_proxy, expected) in [
            ("https://192.0.2.10:8443", "", true),
            ("https://192.0.2.10:8443", "192.0.2.10", false),
            ("https://192.0.2.10:8443", "192.0.2.11", true),
            ("https://192.0.2.10:8443", "proxy", true),
            ("https://192.0.2.10:8443", "192.0.2.0/24", false),
            ("https://192.0.2.10:8443", "198.51.100.0/24", true),
            ("https://192.0.2.10:8443", "192.0.2.10:8443", false),
            ("https://192.0.2.10:8443", "192.0.2.10:443", true),
            ("https://192.0.2.10", "192.0.2.10:443", false),
            ("https://192.0.2.10:8443", "localhost,192.0.2.10,", false),
            ("https://192.0.2.10:8443", " , 192.0.2.10 ,", false),
            (
                "https://192.0.2.10:8443",
                ":,192.0.2.0/99,a:b,192.0.2.10",
                false,
            ),
            ("https://192.0.2.10:8443", "*", false),
            ("https://[2001:db8::1]:6443", "2001:db8::1", false),
            ("https://[2001:db8::1]:6443", "2001:db8::/32", false),
            ("https://[2001:db8::1]:6443", "[2001:db8::1]:6443", false),
            ("https://[2001:db8::1]:6443", "[2001:db8::1]:443", true),
            ("https://api.example.com", "example.com", false),
            ("https://api.example.com", ".example.com", false),
            ("https://api.example.com", "*.example.com", false),
            ("https://API.example.com", "Example.COM", false),
            ("https://example.com", "example.com", false),
            ("https://example.com", ".example.com", true),
            ("https://badexample.com", "example.com", true),
            ("https://api.example.com:6443", "example.com:6443", false),
            ("https://api.example.com:6443", "example.com:443", true),
            ("https://127.0.0.1:6443", "", false),
            ("https://127.9.9.9:6443", "", false),
            ("https://[::1]:6443", "", false),
            ("https://localhost:6443", "", false),
            ("http://192.0.2.10", "192.0.2.10:80", false),
        ] {
            assert_eq!(
                is_proxied(server, no_proxy),
                expected,
                "{server} {no_proxy}"
            );
        }
    }

    #[test]
    fn proxies_are_read_leniently() {
        let server = "https://192.0.2.10".parse().unwrap();
        let of = |variables: &[(&str, &str)]| proxies(variables).of(&server).cloned();
        let url = |variables: &[(&str, &str)]| of(variables).map(|proxy| proxy.url.to_string());
        assert_eq!(
            url(&[("HTTPS_PROXY", "127.0.0.1:9")]).unwrap(),
            "http://127.0.0.1:9/"
        );
        assert_eq!(url(&[("https_proxy", "proxy")]).unwrap(), "http://proxy/");
        assert_eq!(
            url(&[("HTTPS_PROXY", ""), ("https_proxy", "proxy")]).unwrap(),
            "http://proxy/"
        );
        assert_eq!(url(&[("HTTP_PROXY", "proxy")]), None);
        assert_eq!(url(&[("HTTPS_PROXY", "http://")]), None);
        let proxy = of(&[("HTTPS_PROXY", "http://us%65r:p@ss@proxy:3128")]).unwrap();
        assert_eq!(proxy.url.to_string(), "http://proxy:3128/");
        // "user:p@ss"
        assert_eq!(proxy.authorization.unwrap(), "Basic dXNlcjpwQHNz");
    }

    #[test]
    fn the_kubeconfig_beats_the_environment() {
        let environment = |name: &str| (name == "NO_PROXY").then(|| "*".to_owned());
        let proxies = Proxies::new(Some("https://proxy"), environment, |_| {}).unwrap();
        let server = "http://127.0.0.1".parse().unwrap();
        assert_eq!(
            proxies.of(&server).unwrap().url.to_string(),
            "https://proxy/"
        );
        let error = Proxies::new(Some("ftp://x"), environment, |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains("ftp://x"), "{error:#}");
    }
}
