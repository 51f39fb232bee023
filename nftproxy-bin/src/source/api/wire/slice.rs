//! EndpointSlices.

use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};

use super::message::{Flag, Many, Number, One, Pointer, Text, Texts, message};
use super::meta::Meta;
use super::object;

object!(EndpointSlice);

message!(EndpointSlice {
    1 "metadata" metadata: Meta,
    2 "endpoints" endpoints: Many,
    3 "ports" ports: Many,
    4 "addressType" address_type: Text,
});

message!(Endpoint {
    1 "addresses" addresses: Texts,
    2 "conditions" conditions: One,
    6 "nodeName" node_name: Pointer,
    8 "hints" hints: One,
});

message!(EndpointConditions {
    1 "ready" ready: Flag,
    2 "serving" serving: Flag,
    3 "terminating" terminating: Flag,
});

message!(EndpointHints {
    1 "forZones" for_zones: Many,
    2 "forNodes" for_nodes: Many,
});

message!(ForZone {
    1 "name" name: Text,
});

message!(ForNode {
    1 "name" name: Text,
});

message!(EndpointPort {
    1 "name" name: Pointer,
    2 "protocol" protocol: Pointer,
    3 "port" port: Number,
});
