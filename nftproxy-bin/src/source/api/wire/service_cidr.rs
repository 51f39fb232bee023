//! ServiceCIDRs.

use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};

use super::message::{One, Texts, message};
use super::meta::Meta;
use super::object;

object!(ServiceCIDR);

message!(ServiceCIDR {
    1 "metadata" metadata: Meta,
    2 "spec" spec: One,
});

message!(ServiceCIDRSpec {
    1 "cidrs" cidrs: Texts,
});
