//! `--init-only`: everything that takes privileges, and nothing that stays.
//!
//! An init container runs it with all rights, so that the proxy itself needs few.

use anyhow::Context;
use nftproxy_core::host;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::check::Families;
use crate::config::Settings;
use crate::daemon::node::{NodeSettings, ThisNode};
use crate::metrics::Metrics;
use crate::source::{Event, api};
use crate::{host_settings, leftovers};

/// Removes what other modes left, waits for the node, and sets the host up.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    leftovers::remove_other_modes();
    // The checks load what the sysctls belong to, so they come first.
    let families = super::run::check_kernel(settings, false)?;
    let node_name = super::node_name(settings)?;
    let node = ThisNode::new(
        node_name.clone(),
        NodeSettings::new(settings),
        Families::new(settings, &families),
        None,
        host::addresses,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let node = runtime.block_on(async {
        let (sender, receiver) = mpsc::channel(16);
        api::start(settings, &node_name, &sender, &Metrics::new(&[], &[]).api)?;
        anyhow::Ok(wait_for_node(node, receiver).await)
    })?;
    node.judge()?;
    host_settings::set_conntrack(&settings.conntrack, true)?;
    info!("System initialized and --init-only specified");
    Ok(())
}

/// Waits until all is known of the node; from the API server's first answer on, not for ever.
async fn wait_for_node(mut node: ThisNode, mut events: mpsc::Receiver<Event>) -> ThisNode {
    let mut deadline = None;
    while !node.is_complete() {
        let by = deadline.unwrap_or_else(Instant::now);
        tokio::select! {
            event = events.recv() => match event {
                Some(event @ (Event::NodeApplied { .. } | Event::NodeDeleted)) => {
                    if let Event::NodeApplied { info, .. } = event {
                        node.learn(info);
                    }
                    deadline.get_or_insert_with(|| Instant::now() + node.patience());
                }
                Some(_) => {}
                None => break,
            },
            () = sleep_until(by), if deadline.is_some() => break,
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};
    use nftproxy_core::model::{IpFamily, NodeInfo};

    use super::*;
    use crate::config::ConfigFlags;
    use crate::daemon::node::NODE_PATIENCE;

    fn node(ips: &[[u8; 4]]) -> Event {
        Event::NodeApplied {
            info: NodeInfo {
                ips: ips.iter().map(|ip| (*ip).into()).collect(),
                ..NodeInfo::default()
            },
            is_eligible: true,
        }
    }

    fn this_node(arguments: &[&str]) -> ThisNode {
        let command = ConfigFlags::augment_args(Command::new("a")).no_binary_name(true);
        let matches = command.try_get_matches_from(arguments).unwrap();
        let flags = ConfigFlags::from_arg_matches(&matches).unwrap();
        let settings = Settings::load(&flags).unwrap();
        let families = Families::new(&settings, &[IpFamily::V4, IpFamily::V6]);
        let node_settings = NodeSettings::new(&settings);
        ThisNode::new("a".to_owned(), node_settings, families, None, || {
            Ok(Vec::new())
        })
    }

    /// O-14, O-70: no wait for what is there; half a minute for what is not, and for ever for an API
    /// server.
    #[tokio::test(start_paused = true)]
    async fn the_node_is_waited_for() {
        let (sender, receiver) = mpsc::channel(4);
        sender.send(node(&[[192, 0, 2, 1]])).await.unwrap();
        let start = Instant::now();
        wait_for_node(this_node(&[]), receiver).await;
        assert_eq!(start.elapsed(), std::time::Duration::ZERO);

        let (sender, receiver) = mpsc::channel(4);
        let waiting = tokio::spawn(wait_for_node(this_node(&[]), receiver));
        tokio::time::sleep(10 * NODE_PATIENCE).await;
        assert!(!waiting.is_finished(), "nobody has answered yet");
        sender.send(Event::NodeDeleted).await.unwrap();
        tokio::time::sleep(NODE_PATIENCE / 2).await;
        sender.send(node(&[])).await.unwrap();
        tokio::time::sleep(NODE_PATIENCE / 3).await;
        assert!(!waiting.is_finished());
        tokio::time::sleep(NODE_PATIENCE / 3).await;
        assert!(waiting.is_finished());
        assert_eq!(waiting.await.unwrap().judge(), Ok(()));
    }

    /// O-70: networks that tell pods are waited for five minutes longer, and there is no proxy
    /// without them.
    #[tokio::test(start_paused = true)]
    async fn pod_cidrs_are_waited_for_longer() {
        let start = Instant::now();
        let (sender, receiver) = mpsc::channel(4);
        sender.send(node(&[[192, 0, 2, 1]])).await.unwrap();
        let node = wait_for_node(this_node(&["--detect-local-mode=NodeCIDR"]), receiver).await;
        assert_eq!(start.elapsed().as_secs(), 330);
        assert_eq!(
            node.judge().unwrap_err().to_string(),
            "timeout waiting for PodCIDR allocation on node \"a\""
        );
        drop(sender);
    }
}
