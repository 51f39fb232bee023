//! A client of HTTP/1.1 that shows what is on the wire.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use integration::apiserver::ApiServer;
use serde_json::Value;

use crate::cluster::TIMEOUT;

/// A response whose body is read chunk by chunk.
pub(crate) struct Response {
    pub(crate) status: u16,
    /// By their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    stream: BufReader<TcpStream>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Event(Value),
    /// The response ended as HTTP wants it.
    End,
    /// The connection was lost in the middle of the response.
    Cut,
}

impl Response {
    pub(crate) fn send(addr: SocketAddr, method: &str, path: &str) -> Self {
        Self::send_with(addr, method, path, &[])
    }

    pub(crate) fn send_with(
        addr: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        Self::receive(request(addr, method, path, headers)).unwrap()
    }

    pub(crate) fn receive(stream: TcpStream) -> io::Result<Self> {
        let mut response = Self {
            status: 0,
            headers: BTreeMap::new(),
            stream: BufReader::new(stream),
        };
        let status_line = response.line()?;
        response.status = status_line.split(' ').nth(1).unwrap().parse().unwrap();
        loop {
            let line = response.line()?;
            let Some((name, value)) = line.split_once(": ") else {
                return Ok(response);
            };
            response
                .headers
                .insert(name.to_lowercase(), value.to_owned());
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn length(&self) -> Option<usize> {
        Some(self.headers.get("content-length")?.parse().unwrap())
    }

    /// All bytes of the body that come, and how it ends.
    pub(crate) fn bytes(mut self) -> (Vec<u8>, Next) {
        let mut bytes = Vec::new();
        if let Some(length) = self.length() {
            let limit = length as u64;
            // A reset at the end loses nothing that has been read.
            drop(self.stream.take(limit).read_to_end(&mut bytes));
            let end = if bytes.len() == length {
                Next::End
            } else {
                Next::Cut
            };
            return (bytes, end);
        }
        loop {
            match self.chunk() {
                Ok(chunk) if chunk.is_empty() => return (bytes, Next::End),
                Ok(mut chunk) => bytes.append(&mut chunk),
                Err(_) => return (bytes, Next::Cut),
            }
        }
    }

    /// The whole body, which is one JSON value.
    pub(crate) fn body(mut self) -> Value {
        let Some(length) = self.length() else {
            let value = self.event();
            assert_eq!(self.next(), Next::End);
            return value;
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// The next chunk, which is empty at the end.
    pub(crate) fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let size = usize::from_str_radix(&self.line()?, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok(chunk)
    }

    /// The next event of a watch in JSON; the server sends one a chunk.
    pub(crate) fn next(&mut self) -> Next {
        match self.chunk() {
            Ok(chunk) if chunk.is_empty() => Next::End,
            Ok(chunk) => Next::Event(serde_json::from_slice(&chunk).unwrap()),
            Err(_) => Next::Cut,
        }
    }

    pub(crate) fn event(&mut self) -> Value {
        match self.next() {
            Next::Event(event) => event,
            other => panic!("{other:?} instead of an event"),
        }
    }

    /// Type, name and resourceVersion of the next event.
    pub(crate) fn event_summary(&mut self) -> (String, String, String) {
        let event = self.event();
        let metadata = &event["object"]["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        (
            text(&event["type"]),
            text(&metadata["name"]),
            text(&metadata["resourceVersion"]),
        )
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Sends a request and leaves the answer on the wire.
pub(crate) fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: mock\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    stream
}

pub(crate) fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    let response = Response::send(server.addr(), "GET", path);
    (response.status, response.body())
}

pub(crate) fn watch(server: &ApiServer, path: &str, query: &str) -> Response {
    let response = Response::send(server.addr(), "GET", &format!("{path}?watch=true&{query}"));
    assert_eq!(response.status, 200);
    response
}

#[track_caller]
pub(crate) fn assert_status(answer: &(u16, Value), code: u16, reason: &str) {
    let (status, body) = answer;
    assert_eq!(*status, code, "{body}");
    assert_eq!(body["kind"], "Status");
    assert_eq!(body["code"], code);
    assert_eq!(body["reason"], reason, "{body}");
}
