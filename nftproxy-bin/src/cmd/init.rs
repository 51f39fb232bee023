//! `--init-only`: everything that takes privileges, and nothing that stays.
//!
//! An init container runs it with all rights, so that the proxy itself needs few.

use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use crate::config::Settings;
use crate::metrics::Metrics;
use crate::source::{Event, api};
use crate::{host_settings, leftovers};

/// Removes what other modes left, waits for the node, and sets the host up.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    leftovers::remove_other_modes();
    // The checks load what the sysctls belong to, so they come first.
    super::run::check_kernel(settings, false)?;
    let node_name = super::node_name(settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let (sender, receiver) = mpsc::channel(16);
        api::start(settings, &node_name, &sender, &Metrics::new(&[], &[]).api)?;
        wait_for_node(receiver, super::NODE_PATIENCE).await;
        anyhow::Ok(())
    })?;
    host_settings::set_conntrack(&settings.conntrack, true)?;
    info!("System initialized and --init-only specified");
    Ok(())
}

/// Waits until the node has addresses; from the API server's first answer on, not for ever.
async fn wait_for_node(mut events: mpsc::Receiver<Event>, patience: Duration) {
    let mut deadline = None;
    let mut lacks = "to exist";
    loop {
        let by = deadline.unwrap_or_else(Instant::now);
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::NodeApplied { info, .. }) if !info.ips.is_empty() => {
                    info!(NodeIPs = ?info.ips, "Successfully retrieved NodeIPs");
                    return;
                }
                Some(Event::NodeApplied { .. }) => {
                    lacks = "to be assigned IPs";
                    deadline.get_or_insert_with(|| Instant::now() + patience);
                }
                Some(Event::NodeDeleted) => {
                    deadline.get_or_insert_with(|| Instant::now() + patience);
                }
                Some(_) => {}
                None => return,
            },
            () = sleep_until(by), if deadline.is_some() => {
                error!("Timed out waiting for node {lacks}");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nftproxy_core::model::NodeInfo;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn node(ips: &[[u8; 4]]) -> Event {
        Event::NodeApplied {
            info: NodeInfo {
                ips: ips.iter().map(|ip| (*ip).into()).collect(),
                ..NodeInfo::default()
            },
            is_eligible: true,
        }
    }

    /// O-14, O-70: no wait for what is there; half a minute for what is not, and for ever for an API
    /// server.
    #[tokio::test(start_paused = true)]
    async fn the_node_is_waited_for() {
        let (sender, receiver) = mpsc::channel(4);
        sender.send(node(&[[192, 0, 2, 1]])).await.unwrap();
        let start = Instant::now();
        wait_for_node(receiver, PATIENCE).await;
        assert_eq!(start.elapsed(), Duration::ZERO);

        let (sender, receiver) = mpsc::channel(4);
        let waiting = tokio::spawn(wait_for_node(receiver, PATIENCE));
        tokio::time::sleep(10 * PATIENCE).await;
        assert!(!waiting.is_finished(), "nobody has answered yet");
        sender.send(Event::NodeDeleted).await.unwrap();
        tokio::time::sleep(PATIENCE / 2).await;
        sender.send(node(&[])).await.unwrap();
        tokio::time::sleep(PATIENCE / 3).await;
        assert!(!waiting.is_finished());
        tokio::time::sleep(PATIENCE / 3).await;
        assert!(waiting.is_finished());
    }
}
