//! What a service proxy leaves behind in the kernel, and how it is taken away: our own tables, and
//! the rules of kube-proxy in each of its modes.
//!
//! Rules that stay go on translating connections to endpoints that may be gone. Sysctls, loaded
//! modules and connections are left alone, as kube-proxy leaves them, and so are the kubelet's
//! chains. Entry points:
//! [`remove_other_modes_in_background`] and [`remove`].

mod iptables;
mod ipvs;
mod program;
mod served;
mod tables;

use nftproxy_core::model::IpFamily;
use nftproxy_core::ruleset::Table;
use tracing::{error, info};

pub(crate) use self::ipvs::is_there as has_ipvs;
pub(crate) use self::served::served as served_by_iptables;
pub(crate) use nftproxy_core::inspect::kube_proxy::TABLE as KUBE_PROXY_TABLE;

/// Removes what kube-proxy leaves behind in its modes iptables and ipvs. What fails is logged, and
/// is the next start's to try again; returns whether nothing did.
pub(crate) fn remove_other_modes() -> bool {
    // ipvs first: its chains refer to one of those of iptables.
    let results = [
        ("IPVS virtual servers and ipsets", ipvs::remove()),
        ("iptables chains", iptables::remove()),
        // Chains of mode ipvs refer to them.
        ("ipsets", ipvs::remove_sets()),
    ];
    let mut is_clean = true;
    for (what, result) in results {
        match result {
            Ok(0) => {}
            Ok(count) => info!(count, "removed kube-proxy's {what}"),
            Err(error) => {
                is_clean = false;
                error!(
                    error = format!("{error:#}"),
                    "kube-proxy's {what} are not removed"
                );
            }
        }
    }
    is_clean
}

/// Removes our own rules, and unless they are to stay, kube-proxy's in all modes.
pub(crate) fn remove(only_ours: bool) -> bool {
    let ours = Table::default();
    let gone = ours.of_gone();
    let mut names = vec![gone.name(), ours.name()];
    let mut is_clean = true;
    if !only_ours {
        is_clean = remove_other_modes();
        names.insert(0, KUBE_PROXY_TABLE);
    }
    for name in names {
        for family in [IpFamily::V4, IpFamily::V6] {
            is_clean &= remove_table(family, name);
        }
    }
    is_clean
}

fn remove_table(family: IpFamily, name: &str) -> bool {
    let family_name = family.nft_name();
    match tables::remove(family, name) {
        Ok(was_there) => {
            if was_there {
                info!("removed table {family_name} {name}");
            }
            true
        }
        Err(error) => {
            let error = format!("{error:#}");
            error!(error, "table {family_name} {name} is not removed");
            false
        }
    }
}

/// Removes what kube-proxy left behind in its other modes, on a thread of its own. It is for when our
/// rules are there, which serve whatever those did, so no connection finds neither. A failure is
/// logged, and is the next start's to try again.
pub(crate) fn remove_other_modes_in_background() {
    let thread = std::thread::Builder::new().name("leftovers".into());
    let started = thread.spawn(|| {
        remove_other_modes();
    });
    if let Err(error) = started {
        error!(%error, "what kube-proxy left behind in its other modes is not removed");
    }
}
