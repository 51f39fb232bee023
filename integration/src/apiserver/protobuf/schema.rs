//! The messages of the Kubernetes API that the server encodes, as tables.
//!
//! Numbers and names are those of the `generated.proto` files of Kubernetes 1.36.
//! The Go types decide what is on the wire: a field that is no pointer there is written even when
//! it is empty, which these tables say with [`always`].
//! It must not know how fields are written. Entry point: [`of_kind`].

use self::Kind::{Bool, Int, IntOrString, Json, Map, Nested, Quantity, Text, Time};

pub(super) struct Message {
    pub(super) fields: &'static [Field],
}

pub(super) struct Field {
    pub(super) number: u32,
    /// The name in JSON.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) presence: Presence,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    Int,
    Bool,
    /// A number with a unit: text in JSON, and a message with that text in protobuf.
    Quantity,
    /// RFC 3339 in JSON, seconds and nanoseconds in protobuf; null is the zero time.
    Time,
    IntOrString,
    /// Any JSON, kept as it is in a message with one field of bytes.
    Json,
    /// An object with these values, in the order of its keys.
    Map(&'static Kind),
    Nested(&'static Message),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Always,
    IfSet,
    Repeated,
}

/// The message of a kind of object that is no list.
pub(super) fn of_kind(kind: &str) -> Option<&'static Message> {
    match kind {
        "Service" => Some(&SERVICE),
        "EndpointSlice" => Some(&ENDPOINT_SLICE),
        "Node" => Some(&NODE),
        "ServiceCIDR" => Some(&SERVICE_CIDR),
        "Status" => Some(&STATUS),
        _ => None,
    }
}

const fn always(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        presence: Presence::Always,
    }
}

const fn if_set(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        presence: Presence::IfSet,
    }
}

const fn repeated(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        presence: Presence::Repeated,
    }
}

/// Metadata of lists.
pub(super) static LIST_META: Message = Message {
    fields: &[
        always(1, "selfLink", Text),
        always(2, "resourceVersion", Text),
        always(3, "continue", Text),
        if_set(4, "remainingItemCount", Int),
    ],
};

static OBJECT_META: Message = Message {
    fields: &[
        always(1, "name", Text),
        always(2, "generateName", Text),
        always(3, "namespace", Text),
        always(4, "selfLink", Text),
        always(5, "uid", Text),
        always(6, "resourceVersion", Text),
        always(7, "generation", Int),
        always(8, "creationTimestamp", Time),
        if_set(9, "deletionTimestamp", Time),
        if_set(10, "deletionGracePeriodSeconds", Int),
        if_set(11, "labels", Map(&Text)),
        if_set(12, "annotations", Map(&Text)),
        repeated(13, "ownerReferences", Nested(&OWNER_REFERENCE)),
        repeated(14, "finalizers", Text),
        repeated(17, "managedFields", Nested(&MANAGED_FIELDS)),
    ],
};

static OWNER_REFERENCE: Message = Message {
    fields: &[
        always(1, "kind", Text),
        always(3, "name", Text),
        always(4, "uid", Text),
        always(5, "apiVersion", Text),
        if_set(6, "controller", Bool),
        if_set(7, "blockOwnerDeletion", Bool),
    ],
};

static MANAGED_FIELDS: Message = Message {
    fields: &[
        always(1, "manager", Text),
        always(2, "operation", Text),
        always(3, "apiVersion", Text),
        if_set(4, "time", Time),
        always(6, "fieldsType", Text),
        if_set(7, "fieldsV1", Json),
        always(8, "subresource", Text),
    ],
};

static CONDITION: Message = Message {
    fields: &[
        always(1, "type", Text),
        always(2, "status", Text),
        always(3, "observedGeneration", Int),
        always(4, "lastTransitionTime", Time),
        always(5, "reason", Text),
        always(6, "message", Text),
    ],
};

static STATUS: Message = Message {
    fields: &[
        always(1, "metadata", Nested(&LIST_META)),
        always(2, "status", Text),
        always(3, "message", Text),
        always(4, "reason", Text),
        if_set(5, "details", Nested(&STATUS_DETAILS)),
        always(6, "code", Int),
    ],
};

static STATUS_DETAILS: Message = Message {
    fields: &[
        always(1, "name", Text),
        always(2, "group", Text),
        always(3, "kind", Text),
        repeated(4, "causes", Nested(&STATUS_CAUSE)),
        always(5, "retryAfterSeconds", Int),
        always(6, "uid", Text),
    ],
};

static STATUS_CAUSE: Message = Message {
    fields: &[
        always(1, "reason", Text),
        always(2, "message", Text),
        always(3, "field", Text),
    ],
};

static SERVICE: Message = Message {
    fields: &[
        always(1, "metadata", Nested(&OBJECT_META)),
        always(2, "spec", Nested(&SERVICE_SPEC)),
        always(3, "status", Nested(&SERVICE_STATUS)),
    ],
};

static SERVICE_SPEC: Message = Message {
    fields: &[
        repeated(1, "ports", Nested(&SERVICE_PORT)),
        if_set(2, "selector", Map(&Text)),
        always(3, "clusterIP", Text),
        always(4, "type", Text),
        repeated(5, "externalIPs", Text),
        always(7, "sessionAffinity", Text),
        always(8, "loadBalancerIP", Text),
        repeated(9, "loadBalancerSourceRanges", Text),
        always(10, "externalName", Text),
        always(11, "externalTrafficPolicy", Text),
        always(12, "healthCheckNodePort", Int),
        always(13, "publishNotReadyAddresses", Bool),
        if_set(14, "sessionAffinityConfig", Nested(&SESSION_AFFINITY)),
        if_set(17, "ipFamilyPolicy", Text),
        repeated(18, "clusterIPs", Text),
        repeated(19, "ipFamilies", Text),
        if_set(20, "allocateLoadBalancerNodePorts", Bool),
        if_set(21, "loadBalancerClass", Text),
        if_set(22, "internalTrafficPolicy", Text),
        if_set(23, "trafficDistribution", Text),
    ],
};

static SERVICE_PORT: Message = Message {
    fields: &[
        always(1, "name", Text),
        always(2, "protocol", Text),
        always(3, "port", Int),
        always(4, "targetPort", IntOrString),
        always(5, "nodePort", Int),
        if_set(6, "appProtocol", Text),
    ],
};

static SESSION_AFFINITY: Message = Message {
    fields: &[if_set(1, "clientIP", Nested(&CLIENT_IP))],
};

static CLIENT_IP: Message = Message {
    fields: &[if_set(1, "timeoutSeconds", Int)],
};

static SERVICE_STATUS: Message = Message {
    fields: &[
        always(1, "loadBalancer", Nested(&LOAD_BALANCER)),
        repeated(2, "conditions", Nested(&CONDITION)),
    ],
};

static LOAD_BALANCER: Message = Message {
    fields: &[repeated(1, "ingress", Nested(&LOAD_BALANCER_INGRESS))],
};

static LOAD_BALANCER_INGRESS: Message = Message {
    fields: &[
        always(1, "ip", Text),
        always(2, "hostname", Text),
        if_set(3, "ipMode", Text),
        repeated(4, "ports", Nested(&PORT_STATUS)),
    ],
};

static PORT_STATUS: Message = Message {
    fields: &[
        always(1, "port", Int),
        always(2, "protocol", Text),
        if_set(3, "error", Text),
    ],
};

static ENDPOINT_SLICE: Message = Message {
    fields: &[
        always(1, "metadata", Nested(&OBJECT_META)),
        repeated(2, "endpoints", Nested(&ENDPOINT)),
        repeated(3, "ports", Nested(&ENDPOINT_PORT)),
        always(4, "addressType", Text),
    ],
};

static ENDPOINT: Message = Message {
    fields: &[
        repeated(1, "addresses", Text),
        always(2, "conditions", Nested(&ENDPOINT_CONDITIONS)),
        if_set(3, "hostname", Text),
        if_set(4, "targetRef", Nested(&OBJECT_REFERENCE)),
        if_set(5, "deprecatedTopology", Map(&Text)),
        if_set(6, "nodeName", Text),
        if_set(7, "zone", Text),
        if_set(8, "hints", Nested(&ENDPOINT_HINTS)),
    ],
};

static ENDPOINT_CONDITIONS: Message = Message {
    fields: &[
        if_set(1, "ready", Bool),
        if_set(2, "serving", Bool),
        if_set(3, "terminating", Bool),
    ],
};

static ENDPOINT_HINTS: Message = Message {
    fields: &[
        repeated(1, "forZones", Nested(&NAMED)),
        repeated(2, "forNodes", Nested(&NAMED)),
    ],
};

/// `ForZone` and `ForNode`.
static NAMED: Message = Message {
    fields: &[always(1, "name", Text)],
};

static ENDPOINT_PORT: Message = Message {
    fields: &[
        if_set(1, "name", Text),
        if_set(2, "protocol", Text),
        if_set(3, "port", Int),
        if_set(4, "appProtocol", Text),
    ],
};

static OBJECT_REFERENCE: Message = Message {
    fields: &[
        always(1, "kind", Text),
        always(2, "namespace", Text),
        always(3, "name", Text),
        always(4, "uid", Text),
        always(5, "apiVersion", Text),
        always(6, "resourceVersion", Text),
        always(7, "fieldPath", Text),
    ],
};

static NODE: Message = Message {
    fields: &[
        always(1, "metadata", Nested(&OBJECT_META)),
        always(2, "spec", Nested(&NODE_SPEC)),
        always(3, "status", Nested(&NODE_STATUS)),
    ],
};

static NODE_SPEC: Message = Message {
    fields: &[
        always(1, "podCIDR", Text),
        always(2, "externalID", Text),
        always(3, "providerID", Text),
        always(4, "unschedulable", Bool),
        repeated(5, "taints", Nested(&TAINT)),
        repeated(7, "podCIDRs", Text),
    ],
};

static TAINT: Message = Message {
    fields: &[
        always(1, "key", Text),
        always(2, "value", Text),
        always(3, "effect", Text),
        if_set(4, "timeAdded", Time),
    ],
};

static NODE_STATUS: Message = Message {
    fields: &[
        if_set(1, "capacity", Map(&Quantity)),
        if_set(2, "allocatable", Map(&Quantity)),
        always(3, "phase", Text),
        repeated(4, "conditions", Nested(&NODE_CONDITION)),
        repeated(5, "addresses", Nested(&NODE_ADDRESS)),
        always(6, "daemonEndpoints", Nested(&DAEMON_ENDPOINTS)),
        always(7, "nodeInfo", Nested(&NODE_INFO)),
        repeated(8, "images", Nested(&IMAGE)),
    ],
};

static NODE_CONDITION: Message = Message {
    fields: &[
        always(1, "type", Text),
        always(2, "status", Text),
        always(3, "lastHeartbeatTime", Time),
        always(4, "lastTransitionTime", Time),
        always(5, "reason", Text),
        always(6, "message", Text),
    ],
};

static NODE_ADDRESS: Message = Message {
    fields: &[always(1, "type", Text), always(2, "address", Text)],
};

static DAEMON_ENDPOINTS: Message = Message {
    fields: &[always(1, "kubeletEndpoint", Nested(&DAEMON_ENDPOINT))],
};

static DAEMON_ENDPOINT: Message = Message {
    fields: &[always(1, "Port", Int)],
};

static NODE_INFO: Message = Message {
    fields: &[
        always(1, "machineID", Text),
        always(2, "systemUUID", Text),
        always(3, "bootID", Text),
        always(4, "kernelVersion", Text),
        always(5, "osImage", Text),
        always(6, "containerRuntimeVersion", Text),
        always(7, "kubeletVersion", Text),
        always(8, "kubeProxyVersion", Text),
        always(9, "operatingSystem", Text),
        always(10, "architecture", Text),
    ],
};

static IMAGE: Message = Message {
    fields: &[repeated(1, "names", Text), always(2, "sizeBytes", Int)],
};

static SERVICE_CIDR: Message = Message {
    fields: &[
        always(1, "metadata", Nested(&OBJECT_META)),
        always(2, "spec", Nested(&SERVICE_CIDR_SPEC)),
        always(3, "status", Nested(&SERVICE_CIDR_STATUS)),
    ],
};

static SERVICE_CIDR_SPEC: Message = Message {
    fields: &[repeated(1, "cidrs", Text)],
};

static SERVICE_CIDR_STATUS: Message = Message {
    fields: &[repeated(1, "conditions", Nested(&CONDITION))],
};
