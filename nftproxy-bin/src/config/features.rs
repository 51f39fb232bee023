//! Feature gates: which ones are known, and what a given map of them switches.
//!
//! Every Kubernetes gate name is legal input; only a locked gate set against its lock is refused.
//! Entry point: [`FeatureGates::resolve`].

use std::collections::BTreeMap;

/// The gates that change what nftproxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FeatureGates {
    /// Whether `spec.externalIPs` of a Service is programmed.
    pub(crate) allow_service_external_ips: bool,
    /// Whether `/flagz` is served.
    pub(crate) component_flagz: bool,
    /// Whether `/statusz` is served.
    pub(crate) component_statusz: bool,
    /// Whether non-default `logging.options` pass validation.
    pub(super) logging_alpha_options: bool,
}

/// What resolving a map of gates gave.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) gates: FeatureGates,
    pub(super) warnings: Vec<String>,
    /// Each locked gate set against its lock, with the reason.
    pub(super) errors: Vec<(String, String)>,
}

struct Gate {
    name: &'static str,
    stage: Stage,
    default: bool,
    effective: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
    Stable,
    /// Stable, and no longer to be changed.
    Locked,
}

const GATES: &[Gate] = &[
    gate("AllowServiceExternalIPs", Stage::Stable, true, true),
    gate("ComponentFlagz", Stage::Beta, true, true),
    gate("ComponentStatusz", Stage::Beta, true, true),
    gate("ContextualLogging", Stage::Beta, true, false),
    gate("LoggingAlphaOptions", Stage::Alpha, false, true),
    gate("LoggingBetaOptions", Stage::Beta, true, false),
    gate("MultiCIDRServiceAllocator", Stage::Locked, true, true),
    gate("NFTablesProxyMode", Stage::Locked, true, true),
    gate("NativeHistograms", Stage::Alpha, false, false),
    gate("PreferSameTrafficDistribution", Stage::Locked, true, true),
];

const fn gate(name: &'static str, stage: Stage, default: bool, effective: bool) -> Gate {
    Gate {
        name,
        stage,
        default,
        effective,
    }
}

impl FeatureGates {
    /// Name, stage and value of the gates that change something.
    pub(crate) fn list(&self) -> [(&'static str, &'static str, bool); 3] {
        [
            // Kubernetes leaves the stage of what is stable empty.
            (
                "AllowServiceExternalIPs",
                "",
                self.allow_service_external_ips,
            ),
            ("ComponentFlagz", "BETA", self.component_flagz),
            ("ComponentStatusz", "BETA", self.component_statusz),
        ]
    }

    /// Applies `given` over the defaults. `AllAlpha` and `AllBeta` set the gates of their stage
    /// that are not given by name.
    pub(super) fn resolve(given: &BTreeMap<String, bool>) -> Resolved {
        let mut warnings = Vec::new();
        let mut errors = Vec::new();
        for (name, value) in given {
            match GATES.iter().find(|gate| gate.name == name) {
                Some(gate) if gate.stage == Stage::Locked && *value != gate.default => {
                    let reason = format!("the feature is locked to {}", gate.default);
                    errors.push((name.clone(), format!("cannot set feature gate: {reason}")));
                }
                Some(gate) if !gate.effective && *value != gate.default => {
                    warnings.push(format!("feature gate {name} is accepted but has no effect"));
                }
                Some(_) => {}
                None if name == "AllAlpha" || name == "AllBeta" => {}
                None => warnings.push(format!("unrecognized feature gate: {name}")),
            }
        }

        let enabled = |name: &str| {
            let gate = GATES.iter().find(|gate| gate.name == name);
            let by_stage = match gate.map(|gate| gate.stage) {
                Some(Stage::Alpha) => given.get("AllAlpha"),
                Some(Stage::Beta) => given.get("AllBeta"),
                Some(Stage::Stable | Stage::Locked) | None => None,
            };
            let default = gate.is_some_and(|gate| gate.default);
            given.get(name).or(by_stage).copied().unwrap_or(default)
        };
        let gates = FeatureGates {
            allow_service_external_ips: enabled("AllowServiceExternalIPs"),
            component_flagz: enabled("ComponentFlagz"),
            component_statusz: enabled("ComponentStatusz"),
            logging_alpha_options: enabled("LoggingAlphaOptions"),
        };
        Resolved {
            gates,
            warnings,
            errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(given: &[(&str, bool)]) -> Resolved {
        FeatureGates::resolve(
            &given
                .iter()
                .map(|(name, on)| ((*name).to_owned(), *on))
                .collect(),
        )
    }

    #[test]
    fn o_65_defaults() {
        let Resolved {
            gates,
            warnings,
            errors,
        } = resolve(&[]);
        assert!(gates.allow_service_external_ips);
        assert!(gates.component_flagz && gates.component_statusz);
        assert!(!gates.logging_alpha_options);
        assert_eq!((warnings.len(), errors.len()), (0, 0));
    }

    #[test]
    fn o_65_a_gate_by_name_beats_its_stage() {
        let gates = resolve(&[
            ("AllBeta", false),
            ("ComponentFlagz", true),
            ("AllAlpha", true),
        ])
        .gates;
        assert!(
            gates.allow_service_external_ips,
            "a stable gate follows no stage"
        );
        assert!(gates.component_flagz);
        assert!(!gates.component_statusz);
        assert!(gates.logging_alpha_options);
        assert!(
            !resolve(&[("AllowServiceExternalIPs", false)])
                .gates
                .allow_service_external_ips
        );
    }

    #[test]
    fn o_15_a_locked_gate_keeps_its_value() {
        for name in [
            "MultiCIDRServiceAllocator",
            "NFTablesProxyMode",
            "PreferSameTrafficDistribution",
        ] {
            assert!(resolve(&[(name, true)]).errors.is_empty());
            let errors = resolve(&[(name, false)]).errors;
            assert_eq!((errors.len(), errors[0].0.as_str()), (1, name));
            assert!(
                errors[0].1.starts_with("cannot set feature gate"),
                "{errors:?}"
            );
        }
    }

    #[test]
    fn o_15_other_gates_are_legal_and_named() {
        let Resolved {
            warnings, errors, ..
        } = resolve(&[("SidecarContainers", true), ("NativeHistograms", true)]);
        assert!(errors.is_empty());
        assert_eq!(
            warnings,
            [
                "feature gate NativeHistograms is accepted but has no effect",
                "unrecognized feature gate: SidecarContainers",
            ]
        );
    }
}
