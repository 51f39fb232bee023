//! Questions to servers, and recorded answers to compare with.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{Handler, serve};

/// The head of an answer, but for its date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines().filter(|line| !line.is_empty());
        let status = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        });
        let mut headers: BTreeMap<_, _> = headers.collect();
        assert!(headers.remove("Date").is_some(), "{text}");
        Self { status, headers }
    }

    pub(crate) fn names(&self) -> Vec<&String> {
        self.headers.keys().collect()
    }

    pub(crate) fn without_length(mut self) -> Self {
        self.headers.remove("Content-Length");
        self
    }
}

/// Serves on a port of its own, and says where.
pub(crate) async fn start<H: Handler>(handler: Arc<H>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, handler));
    address
}

/// Sends `METHOD PATH` with these headers, and reads the answer.
pub(crate) async fn ask(address: SocketAddr, line: &str, headers: &[&str]) -> (Head, String) {
    let (head, body) = ask_with_body(address, line, headers, "").await;
    (head, String::from_utf8(body).unwrap())
}

/// The same with a body.
pub(crate) async fn ask_with_body(
    address: SocketAddr,
    line: &str,
    headers: &[&str],
    body: &str,
) -> (Head, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut request = format!("{line} HTTP/1.1\r\nHost: node\r\n");
    for header in headers {
        request += &format!("{header}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += body;
    stream.write_all(request.as_bytes()).await.unwrap();
    read_answer(stream, line.starts_with("HEAD")).await
}

async fn read_answer(stream: TcpStream, is_head: bool) -> (Head, Vec<u8>) {
    let mut stream = BufReader::new(stream);
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        let n = stream.read_line(&mut text).await.unwrap();
        assert_ne!(n, 0, "the answer ends in its head: {text:?}");
    }
    let head = Head::parse(&text);
    let mut body = Vec::new();
    if is_head {
        return (head, body);
    }
    if let Some(length) = head.headers.get("Content-Length") {
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).await.unwrap();
        return (head, body);
    }
    assert_eq!(head.headers["Transfer-Encoding"], "chunked");
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).await.unwrap();
        if length == 0 {
            return (head, body);
        }
        body.extend_from_slice(&chunk[..length]);
    }
}

/// What a running kube-proxy 1.36.2 answered.
pub(crate) fn recorded(name: &str) -> (Head, String) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/testdata/kube-proxy-http");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    let text = text.replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    (Head::parse(head), body.to_owned())
}
