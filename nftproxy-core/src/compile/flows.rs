//! UDP flows that changed rules do not reach.
//!
//! The rules decide over the first packet of a flow. What is decided stays, for UDP as long as the
//! flow goes on, so whatever changes for a UDP destination has to be told to connection tracking.

use std::num::NonZeroU16;

use crate::model::{EndpointAddress, Family};

/// Where UDP flows were sent to at first, and where they may lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleFlows<F: Family> {
    /// The address that packets are sent to.
    pub address: F::Address,
    /// The port that they are sent to.
    pub port: NonZeroU16,
    /// Endpoints that may keep their flows, in order. Without any, flows that were led somewhere
    /// are forgotten, and those that were not are left alone.
    pub serving: Box<[EndpointAddress<F>]>,
}
