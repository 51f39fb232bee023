//! What this program was built with and for.

/// The compiler, as it names itself: `rustc 1.92.0`.
pub(crate) const RUSTC: &str = env!("NFTPROXY_RUSTC");
/// The Kubernetes version whose kube-proxy this one stands in for.
pub(crate) const KUBERNETES: &str = "1.36";

/// The architecture, in Go's words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
