//! Whether a proxy stands between, by the rules that Go's programs have
//! (golang.org/x/net/http/httpproxy).

use std::env;
use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

use super::address;

/// Which destinations are reached through which proxy.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    /// That of the kubeconfig, which counts for all of them.
    fixed: Option<Uri>,
    https: Option<Uri>,
    http: Option<Uri>,
    except: Vec<Exception>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpNet),
    Address(IpAddr, Option<u16>),
    /// A domain in lower case without the dot in front, and its port. Those below it count too;
    /// itself only if there was no dot.
    Domain {
        name: String,
        is_below_only: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// Those of a kubeconfig's `proxy-url`, else of the environment.
    pub(super) fn new(proxy_url: Option<&str>) -> Result<Self, String> {
        let variable = |name: &str| {
            let value = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
            value(name).or_else(|| value(&name.to_lowercase()))
        };
        let fixed = proxy_url.filter(|url| !url.is_empty());
        Ok(Self {
            fixed: fixed.map(|url| parse("proxy-url", url)).transpose()?,
            https: variable("HTTPS_PROXY")
                .map(|url| parse("HTTPS_PROXY", &url))
                .transpose()?,
            http: variable("HTTP_PROXY")
                .map(|url| parse("HTTP_PROXY", &url))
                .transpose()?,
            except: exceptions(&variable("NO_PROXY").unwrap_or_default()),
        })
    }

    /// The proxy that leads to a URL; `None` if none does.
    pub(super) fn for_url(&self, url: &Uri) -> Option<&Uri> {
        if self.fixed.is_some() {
            return self.fixed.as_ref();
        }
        let proxy = match url.scheme_str() {
            Some("https") => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        let host = url.host()?.trim_matches(['[', ']']);
        let host = host.trim_end_matches('.').to_lowercase();
        let port = address::port(url);
        let address: Option<IpAddr> = host.parse().ok();
        // Nobody else is there.
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return None;
        }
        let is_excepted = self.except.iter().any(|except| match except {
            Exception::All => true,
            Exception::Network(network) => {
                address.is_some_and(|address| network.contains(&address))
            }
            Exception::Address(except, only) => {
                address == Some(*except) && only.is_none_or(|only| only == port)
            }
            Exception::Domain {
                name,
                is_below_only,
                port: only,
            } => {
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|rest| rest.ends_with('.') || rest.is_empty() && !is_below_only);
                address.is_none() && below && only.is_none_or(|only| only == port)
            }
        });
        (!is_excepted).then_some(proxy)
    }
}

/// A proxy without a scheme is http.
fn parse(name: &str, text: &str) -> Result<Uri, String> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri: Uri = url
        .parse()
        .map_err(|_| format!("{name} is not the URL of a proxy"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https" | "socks5" | "socks5h"), Some(host)) if !host.is_empty() => Ok(uri),
        (scheme, _) => Err(format!(
            "{name} is not the URL of a proxy: {:?} is not http, https or socks5",
            scheme.unwrap_or_default()
        )),
    }
}

/// What is empty or cannot be read is skipped.
fn exceptions(text: &str) -> Vec<Exception> {
    text.split(',').filter_map(exception).collect()
}

fn exception(text: &str) -> Option<Exception> {
    let text = text.trim().to_lowercase();
    if text.is_empty() {
        return None;
    }
    if text == "*" {
        return Some(Exception::All);
    }
    if let Ok(network) = text.parse::<IpNet>() {
        return Some(Exception::Network(network));
    }
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        return Some(Exception::Address(address, None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text.as_str(), None),
    };
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Some(Exception::Address(address, port));
    }
    let host = host.strip_prefix('*').unwrap_or(host);
    let name = host.strip_prefix('.').unwrap_or(host);
    if name.is_empty() || name.contains([':', '/']) {
        return None;
    }
    Some(Exception::Domain {
        name: name.to_owned(),
        is_below_only: name.len() < host.len(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_proxied(no_proxy: &str, url: &str) -> bool {
        let proxies = Proxies {
            https: Some(parse("HTTPS_PROXY", "192.0.2.99:3128").unwrap()),
            except: exceptions(no_proxy),
            ..Proxies::default()
        };
        proxies.for_url(&url.parse().unwrap()).is_some()
    }

    #[test]
    fn no_proxy_names_destinations() {
        for (no_proxy, url) in [
            ("192.0.2.10", "https://192.0.2.10:6443"),
            ("192.0.2.0/24", "https://192.0.2.10:6443"),
            ("192.0.2.10:6443", "https://192.0.2.10:6443"),
            ("2001:db8::1", "https://[2001:db8::1]:6443"),
            ("[2001:db8::1]:6443", "https://[2001:db8::1]:6443"),
            ("2001:db8::/32", "https://[2001:db8::1]"),
            ("API.example", "https://api.Example"),
            ("example", "https://api.example"),
            (".example", "https://api.example"),
            ("*.example", "https://api.example"),
            ("api.example:443", "https://api.example"),
            ("a, ,api.example,", "https://api.example."),
            ("no/nsense:x,::/x,192.0.2.10", "https://192.0.2.10"),
            ("*", "https://192.0.2.10"),
            ("", "https://127.0.0.1:6443"),
            ("", "https://[::1]:6443"),
            ("", "https://localhost:6443"),
        ] {
            assert!(!is_proxied(no_proxy, url), "{no_proxy} {url}");
        }
        for (no_proxy, url) in [
            ("", "https://192.0.2.10:6443"),
            // The proxy's own address is no destination.
            ("192.0.2.99", "https://192.0.2.10:6443"),
            ("192.0.2.10:443", "https://192.0.2.10:6443"),
            ("192.0.3.0/24", "https://192.0.2.10"),
            (".example", "https://example"),
            ("ample", "https://example"),
            ("api.example:80", "https://api.example"),
            ("api.example", "https://example"),
            (",,", "https://192.0.2.10"),
        ] {
            assert!(is_proxied(no_proxy, url), "{no_proxy} {url}");
        }
    }

    #[test]
    fn a_proxy_without_a_scheme_is_http() {
        for (text, url) in [
            ("127.0.0.1:9", "http://127.0.0.1:9/"),
            ("proxy.example", "http://proxy.example/"),
            ("https://proxy:1", "https://proxy:1/"),
            ("socks5://proxy:1", "socks5://proxy:1/"),
        ] {
            assert_eq!(parse("HTTPS_PROXY", text).unwrap().to_string(), url);
        }
        for text in ["ftp://a", "http://", "a b", "://"] {
            assert!(parse("HTTPS_PROXY", text).is_err(), "{text}");
        }
    }

    #[test]
    fn that_of_the_kubeconfig_counts_for_all() {
        let proxies = Proxies {
            fixed: Some(parse("proxy-url", "http://a").unwrap()),
            except: exceptions("*"),
            ..Proxies::default()
        };
        assert!(proxies.for_url(&"https://b".parse().unwrap()).is_some());
        // HTTPS_PROXY is not for http.
        let proxies = Proxies {
            https: Some(parse("HTTPS_PROXY", "a").unwrap()),
            ..Proxies::default()
        };
        assert!(proxies.for_url(&"http://b".parse().unwrap()).is_none());
    }
}
