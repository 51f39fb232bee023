//! The engine driven by an event loop that is there already, here one of poll(2) over standard
//! input. Each line is a change of one Service: `10.96.0.1:80 10.244.1.11:8080 10.244.1.12:8080`,
//! or just its address to delete it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::io::Read;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::time::Instant;

use nftproxy_core::engine::{Engine, Event, Options, Outcome};
use nftproxy_core::model::{
    Endpoint, EndpointSlice, Protocol, Service, ServiceName, ServicePort, SlicePort, V4,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// What a line means.
fn events(line: &str) -> Result<Vec<Event>, Box<dyn Error>> {
    let mut words = line.split_whitespace();
    let address: SocketAddrV4 = words.next().ok_or("an empty line")?.parse()?;
    let endpoints = words
        .map(str::parse)
        .collect::<Result<Vec<SocketAddrV4>, _>>()?;
    let name = ServiceName::new("lines", &address.to_string().replace(['.', ':'], "-"))?;
    let port = ServicePort::new(Protocol::Tcp, address.port().try_into()?);
    let target = endpoints
        .first()
        .map_or(Ok(port.port), |at| at.port().try_into())?;
    let ready = endpoints.iter().map(|at| Endpoint::<V4>::ready(*at.ip()));
    let slice = EndpointSlice::of(
        &name,
        [SlicePort::new(Protocol::Tcp, target)],
        ready.collect(),
    );
    Ok(if endpoints.is_empty() {
        vec![Event::ServiceDeleted(name), Event::SliceDeleted(slice.name)]
    } else {
        let service = Service::at(name, (*address.ip()).into(), [port]);
        vec![Event::ServiceApplied(service), Event::SliceApplied(slice)]
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut engine = Engine::open(Options::default(), Instant::now())?;
    // There is nothing yet, and that is all there is.
    engine.apply(
        Event::Replaced {
            services: Vec::new(),
            slices: Vec::new(),
        },
        Instant::now(),
    );
    let mut input = std::io::stdin();
    let mut buffer = Vec::new();
    loop {
        let now = Instant::now();
        let due = engine.next(now);
        let timeout = match due {
            // Rounded up, so as not to ask again just before it is time.
            Some(due) => {
                PollTimeout::try_from((due.at - now).as_millis() + u128::from(due.at > now))?
            }
            None => PollTimeout::NONE,
        };
        let mut descriptors = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, timeout)? == 0 {
            for outcome in due
                .map(|due| engine.perform(due.task, Instant::now()))
                .into_iter()
                .flatten()
            {
                match outcome {
                    Outcome::Synced { family, report, .. } => {
                        println!("{family}: {} elements changed", report.counts.elements());
                    }
                    outcome => println!("{outcome:?}"),
                }
            }
            continue;
        }
        let mut chunk = [0; 4096];
        match input.read(&mut chunk)? {
            0 => return Ok(()),
            length => buffer.extend_from_slice(&chunk[..length]),
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = buffer.drain(..=end).collect();
            for event in events(std::str::from_utf8(&line)?)? {
                engine.apply(event, Instant::now());
            }
        }
    }
}
