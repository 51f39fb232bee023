//! Programs of others, which know the formats of their own kernel interfaces.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Runs a program with this input; what it printed, or `None` if it is not installed.
pub(super) fn run(name: &str, arguments: &[&str], input: &str) -> anyhow::Result<Option<String>> {
    let child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("running {name}")),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A program that has seen enough says so by its exit code.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {name}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{name} {}: {}", arguments.join(" "), message.trim());
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}
