//! Nodes.

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, Taint};

use super::message::{Many, One, Text, Texts, message};
use super::meta::Meta;
use super::object;

object!(Node);

message!(Node {
    1 "metadata" metadata: Meta,
    2 "spec" spec: One,
    3 "status" status: One,
});

message!(NodeSpec {
    5 "taints" taints: Many,
    7 "podCIDRs" pod_cidrs: Texts,
});

// What keeps pods away is no concern of a proxy's; who is to go, some keys tell.
message!(Taint {
    1 "key" key: Text,
});

message!(NodeStatus {
    5 "addresses" addresses: Many,
});

message!(NodeAddress {
    1 "type" type_: Text,
    2 "address" address: Text,
});
