//! Kubernetes Services as one atomic nftables ruleset: a node's service proxy, to embed.
//!
//! ```text
//!  Kubernetes objects                      engine                          kernel
//!       │ k8s            ┌───────────────────────────────────────────┐      ▲  │
//!       ▼          Event │                    sync                   │commit│  │ list
//!  model::… ────────────▶│ State ── compile ─▶ FamilyRuleset ─ diff ─┼─ Delta  ▼
//!                        │                        │        ▲         │  Observed
//!  Outcome ◀─────────────│                  render, trace  └─────────┼─────────┘
//!                        └───────────────────────────────────────────┘
//! ```
//!
//! Start with [`engine::Engine`], which is the whole proxy, driven by its owner, or with
//! [`driver::Driver`], which drives one on a thread:
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//!
//! use nftproxy_core::driver::Driver;
//! use nftproxy_core::engine::{Engine, Event, Options};
//! # use nftproxy_core::model::{Endpoint, EndpointSlice, Protocol, Service, ServiceName, ServicePort, SlicePort, V4};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let name = ServiceName::new("shop", "api")?;
//! let port = ServicePort::new(Protocol::Tcp, 80.try_into()?);
//! let target = SlicePort::new(Protocol::Tcp, 8080.try_into()?);
//! let endpoints = [Endpoint::<V4>::ready([10, 244, 1, 11].into())];
//! let slice = EndpointSlice::of(&name, [target], endpoints.into_iter().collect());
//! let service = Service::at(name, [10, 96, 0, 20].into(), [port]);
//!
//! let engine = Engine::open(Options::default(), Instant::now())?;
//! let driver = Driver::start(engine, |outcome| eprintln!("{outcome:?}"))?;
//! let handle = driver.handle();
//! handle.send(Event::Replaced { services: vec![service], slices: vec![slice] })?;
//! handle.wait_until_synced(Duration::from_secs(10))?;
//! # Ok(())
//! # }
//! ```
//!
//! The parts beneath can be used alone. [`model`] holds what the cluster asks for, [`ruleset`] what
//! the kernel is to hold, [`compile`] leads from one to the other, and [`diff`] finds the way from
//! what is there to what should be. [`apply`] takes that way, in the kernel or in memory, and
//! [`sync`] keeps at it change by change for one family. [`render`] and [`trace`] read a ruleset:
//! the one for people and for nft(8), the other to say what becomes of a packet.
//!
//! - Nothing in the kernel is named after a Service: Services and endpoints are elements of a
//!   fixed handful of maps. Besides these there is one chain per number of endpoints in use.
//! - Only [`apply::netlink`] touches the kernel, [`host`] reads from it, and only [`driver`] starts
//!   threads that last. The clock is read by the latter, and by [`sync`] to report durations.
//!   Everything else is a function of its arguments: the same state gives the same bytes.
//! - A delta is complete: whoever applies it makes no decision of its own.
//! - One bad object never stops a sync: it becomes a [`k8s::Problem`] or a [`compile::Note`].
//!
//! The whole way through the parts, with a kernel in memory:
//!
//! ```
//! # #[cfg(not(feature = "k8s"))] fn main() {}
//! # #[cfg(feature = "k8s")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use nftproxy_core::{apply, compile::compile, k8s, model, render, sync::Syncer};
//! # let service = serde_json::from_str(
//! #     r#"{
//! #       "metadata": {"namespace": "shop", "name": "api"},
//! #       "spec": {"clusterIP": "10.96.0.20", "ports": [{"port": 80}]}
//! #     }"#,
//! # )?;
//! # let slice = serde_json::from_str(
//! #     r#"{
//! #       "metadata": {
//! #         "namespace": "shop",
//! #         "name": "api-1",
//! #         "labels": {"kubernetes.io/service-name": "api"}
//! #       },
//! #       "addressType": "IPv4",
//! #       "ports": [{"name": "", "port": 8080}],
//! #       "endpoints": [{"addresses": ["10.244.2.20"]}, {"addresses": ["10.244.2.21"]}]
//! #     }"#,
//! # )?;
//! # let kernel = apply::fake::FakeKernel::<model::V4>::default();
//! let (mut state, mut problems) = (model::State::default(), Vec::new());
//! if let Some(service) = k8s::service(&service, &mut problems) {
//!     state.apply_service(service);
//! }
//! if let Some(slice) = k8s::endpoint_slice(&slice, "worker-1", &mut problems) {
//!     state.apply_slice(slice);
//! }
//! let node = model::Node::default();
//! let script = render::ruleset(&compile(&state, &node).v4);
//! assert!(script.contains("10.96.0.20 . tcp . 80 comment \"shop/api\" : goto pick-2"));
//!
//! let mut syncer = Syncer::<model::V4, _>::new(kernel);
//! let dirty = state.take_dirty();
//! let report = syncer.sync(&state, &node, &dirty)?;
//! # assert_eq!(problems, []);
//! # assert!(report.full && report.appeared.is_empty());
//! # // cluster-ips and services, then a slot for each endpoint. Neither can be on this node
//! # // for sure, so both may have to be masqueraded when they reach themselves.
//! # assert_eq!(report.counts.added_elements, 1 + 1 + 2 + 2);
//! # assert_eq!(syncer.kernel().ruleset(), Some(compile(&state, &node).v4));
//! # let again = syncer.sync(&state, &node, &dirty)?;
//! # assert!(!again.full && again.counts.elements() == 0);
//! # Ok(())
//! # }
//! ```
//!
//! [`apply::netlink::Netlink::open`] gives the real kernel; read [`engine::Engine`] next.

pub mod apply;
pub mod compile;
pub mod counts;
pub mod diff;
pub mod driver;
pub mod engine;
pub mod host;
pub mod inspect;
mod jhash;
#[cfg(feature = "k8s")]
pub mod k8s;
pub mod listing;
pub mod model;
pub mod neighbour;
pub mod provenance;
pub mod render;
pub mod ruleset;
pub mod sync;
pub mod trace;
