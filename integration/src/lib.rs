//! Namespaces, packets and a mock API server, to test nftproxy as a whole.

pub mod apiserver;
