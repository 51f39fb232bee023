//! What was built, and what is switched on.

use super::Register;

/// Registers what never changes.
pub(super) fn register(register: &Register, features: &[(&'static str, &'static str, bool)]) {
    let build = register.gauges(
        "kubernetes_build_info",
        "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
        &[
            "build_date",
            "compiler",
            "git_commit",
            "git_tree_state",
            "git_version",
            "go_version",
            "major",
            "minor",
            "platform",
        ],
    );
    let git_version = format!("v{}", env!("CARGO_PKG_VERSION"));
    let platform = format!("linux/{}", crate::version::architecture());
    build
        .with_label_values(&[
            "",
            "rustc",
            "",
            "",
            &git_version,
            crate::version::RUSTC,
            env!("CARGO_PKG_VERSION_MAJOR"),
            env!("CARGO_PKG_VERSION_MINOR"),
            &platform,
        ])
        .set(1);
    let enabled = register.gauges(
        "kubernetes_feature_enabled",
        "[BETA] This metric records the data about the stage and enablement of a k8s feature.",
        &["name", "stage"],
    );
    for (name, stage, is_on) in features {
        enabled
            .with_label_values(&[*name, *stage])
            .set((*is_on).into());
    }
}
