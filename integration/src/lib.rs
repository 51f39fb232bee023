//! What it takes to test nftproxy as a whole: network namespaces, packets, a mock API server, and
//! the real binary.

pub mod apiserver;
mod background;
pub mod daemon;
pub mod example;
pub mod fixtures;
pub mod forward_proxy;
pub mod kube_proxy;
pub mod lab;
pub mod manifest;
pub mod netns;
pub mod nft;
pub mod node;
pub mod relay;
pub mod tls;
pub mod traffic;
