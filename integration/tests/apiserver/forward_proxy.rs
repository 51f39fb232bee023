//! The proxy between a client and the server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use integration::forward_proxy::ForwardProxy;

use crate::cluster::{NODES, TIMEOUT, cluster_small, parse};
use crate::http::{Response, request};

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// A tunnel to what is named, and what the proxy says of it.
fn tunnel(proxy: &ForwardProxy, target: &str) -> (TcpStream, String) {
    let mut stream = connect(proxy.addr());
    write!(
        stream,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic dTpw\r\n\r\n"
    )
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap().to_owned();
    (stream, line)
}

fn nodes_through(mut tunnel: TcpStream) -> Response {
    write!(tunnel, "GET /api/v1/nodes HTTP/1.1\r\nHost: mock\r\n\r\n").unwrap();
    Response::receive(tunnel).unwrap()
}

#[test]
fn tunnels_lead_where_they_are_told() {
    let server = cluster_small();
    let proxy = ForwardProxy::start().unwrap();
    let target = server.addr().to_string();
    let (stream, line) = tunnel(&proxy, &target);
    assert_eq!(line, "HTTP/1.1 200 OK");
    assert_eq!(nodes_through(stream).body(), parse(NODES));
    let [request] = &proxy.requests()[..] else {
        panic!("one request");
    };
    assert_eq!(
        (request.method.as_str(), &request.target),
        ("CONNECT", &target)
    );
    assert_eq!(request.headers["proxy-authorization"], "Basic dTpw");
}

#[test]
fn tunnels_lead_to_one_place_whatever_they_are_told() {
    let server = cluster_small();
    let proxy = ForwardProxy::start_to(server.addr()).unwrap();
    let (stream, _) = tunnel(&proxy, "api.example.com:6443");
    assert_eq!(nodes_through(stream).status, 200);
    assert_eq!(proxy.requests()[0].target, "api.example.com:6443");
}

#[test]
fn plain_requests_reach_the_server_without_what_is_for_the_proxy() {
    let server = cluster_small();
    let proxy = ForwardProxy::start().unwrap();
    let url = format!("{}/api/v1/nodes?limit=1", server.url());
    let headers = [("Proxy-Authorization", "Basic dTpw"), ("X-Who", "me")];
    let response = Response::receive(request(proxy.addr(), "GET", &url, &headers)).unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(proxy.requests()[0].target, url);
    let received = server.requests().pop().unwrap();
    assert_eq!(received.path, "/api/v1/nodes");
    assert_eq!(received.query["limit"], "1");
    assert_eq!(received.headers["x-who"], "me");
    assert!(!received.headers.contains_key("proxy-authorization"));
}

#[test]
fn a_proxy_says_no() {
    let server = cluster_small();
    let proxy = ForwardProxy::start().unwrap();
    let target = server.addr().to_string();
    proxy.refuse(Some(407));
    let (_, line) = tunnel(&proxy, &target);
    assert!(line.starts_with("HTTP/1.1 407 "), "{line}");
    proxy.refuse(None);
    let (_, line) = tunnel(&proxy, &target);
    assert!(line.starts_with("HTTP/1.1 200 "), "{line}");

    // Nobody listens there.
    let (_, line) = tunnel(&proxy, "127.0.0.1:1");
    assert!(line.starts_with("HTTP/1.1 502 "), "{line}");
    let odd = Response::receive(request(proxy.addr(), "GET", "ftp://x/", &[])).unwrap();
    assert_eq!(odd.status, 400);
    assert_eq!(proxy.requests().len(), 4);
    assert_eq!(server.requests(), []);

    let (mut stream, _) = tunnel(&proxy, &target);
    drop(proxy);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
}
