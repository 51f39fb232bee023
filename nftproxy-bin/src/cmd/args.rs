//! The command line: which command to run, on what, with which flags.
//!
//! kube-proxy's own command line, which has no commands, works as that of `run`. What the flags of
//! the configuration mean is the business of the `config` module. Entry point:
//! [`Cli::parse_from_env`].

mod looking;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use nftproxy_core::model::IpFamily;

use super::describe::Describe;
use crate::config::ConfigFlags;
use looking::{
    AUDIT_EXIT_CODES, DIFF_EXIT_CODES, DIGEST_EXIT_CODES, EXPLAIN_EXIT_CODES, LIST_EXIT_CODES,
    TRACE_EXIT_CODES,
};
pub(crate) use looking::{
    AuditArgs, AuditFormat, Basis, DesiredFlags, DiffArgs, DiffFormat, DigestArgs, DigestFormat,
    ExplainArgs, ExplainFormat, ListArgs, ObservedFlags, Origin, TraceArgs,
};

/// A Kubernetes service proxy for nftables
#[derive(Debug, Parser)]
#[command(
    name = "nftproxy",
    version,
    propagate_version = true,
    args_override_self = true,
    after_help = "kube-proxy's command line works too: without a command, flags are those of `run`."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    invocation: Invocation,
}

/// What a command line asks for.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub(crate) enum Invocation {
    #[command(flatten)]
    Work(Command),
    #[command(flatten)]
    Describe(Describe),
}

const CHECK_EXIT_CODES: &str = "\
Exit code: 0 if all is well, 1 if the proxy runs and something will not work, 2 if it cannot run.

It can run beside the proxy, or in its place before it starts; while the proxy runs, its own ports \
are taken.";

const CLEANUP_EXIT_CODES: &str = "\
Exit code: 0 if nothing is left, 1 if something could not be removed.

Without --only-ours, Services stop working for new connections on this node until a proxy runs \
again. Stop the proxy first: one that runs makes its rules anew.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep this node's nftables rules in step with its Services
    #[command(args_override_self = true)]
    Run(RunArgs),
    /// Look whether this host has what the proxy needs, without changing anything
    #[command(args_override_self = true, after_help = CHECK_EXIT_CODES)]
    Check(CheckArgs),
    /// Remove nftproxy's tables, and kube-proxy's rules in all its modes
    #[command(args_override_self = true, after_help = CLEANUP_EXIT_CODES)]
    Cleanup(CleanupArgs),
    /// Print the rules for a set of manifests, as `nft` reads them, without touching the kernel
    #[command(args_override_self = true)]
    Render(RenderArgs),
    /// Show Services as this node sees them: destinations, endpoints, and why some are not used
    #[command(args_override_self = true, after_help = LIST_EXIT_CODES)]
    List(ListArgs),
    /// Compare the kernel's rules, or a saved listing of them, with what the cluster asks for
    #[command(args_override_self = true, after_help = AUDIT_EXIT_CODES)]
    Audit(AuditArgs),
    /// Tell what becomes of a connection, and why
    #[command(args_override_self = true, after_help = EXPLAIN_EXIT_CODES)]
    Explain(ExplainArgs),
    /// Compare two states of a node, as Services and as a script for `nft`
    #[command(args_override_self = true, after_help = DIFF_EXIT_CODES)]
    Diff(DiffArgs),
    /// Print what the rules amount to, in one line for each IP family
    #[command(args_override_self = true, after_help = DIGEST_EXIT_CODES)]
    Digest(DigestArgs),
    /// Follow real packets of a flow through this node's rules, beside what `explain` says of them
    #[command(args_override_self = true, after_help = TRACE_EXIT_CODES)]
    Trace(TraceArgs),
}

impl Command {
    /// The configuration, which each of these commands has.
    pub(crate) fn config(&self) -> &ConfigFlags {
        match self {
            Self::Run(args) => &args.config,
            Self::Check(args) => &args.config,
            Self::Cleanup(args) => &args.config,
            Self::Render(args) => &args.config,
            Self::List(args) => &args.config,
            Self::Audit(args) => &args.config,
            Self::Explain(args) => &args.config,
            Self::Diff(args) => &args.config,
            Self::Digest(args) => &args.config,
            Self::Trace(args) => &args.config,
        }
    }
}

#[derive(Debug, Args)]
#[command(group = needs_manifests())]
pub(crate) struct RunArgs {
    /// Take Services, EndpointSlices and Nodes from this file or directory instead of a cluster
    #[arg(long, value_name = "PATH", help_heading = "Manifests")]
    pub(crate) manifests: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Remove kube-proxy's rules in all its modes once ours are there, those of its nftables mode in
    /// the same transaction [default: true, or false with --manifests]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Takeover"
    )]
    pub(crate) take_over: Option<bool>,
    /// Hold the tables where the kernel can (from 6.9 on): nobody else can change them while this
    /// runs, and `nft flush ruleset` passes them by. Not every nft can load again what it lists of
    /// such tables
    #[arg(long, help_heading = "Tables")]
    pub(crate) hold_tables: bool,
    /// Tell clients of endpoints that are gone: for five minutes whoever still sends to one by a
    /// Service's address over TCP gets a reset, rather than hang until TCP gives up
    #[arg(long, help_heading = "Traffic")]
    pub(crate) fail_fast: bool,
    /// Count new connections to each Service port and endpoint, and those that are refused or dropped,
    /// for metrics and for `list`. The tables are made anew when this changes, and remember clients as
    /// before
    #[arg(long, help_heading = "Tables")]
    pub(crate) count_connections: bool,
    #[command(flatten)]
    pub(crate) dry_run: DryRun,
    #[command(flatten)]
    pub(crate) instead: Instead,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

/// A trial beside a kube-proxy that runs.
#[derive(Debug, Args)]
pub(crate) struct DryRun {
    /// Follow the cluster and compute all rules, but change nothing on this host; log what a takeover
    /// from the kube-proxy that runs here would change for traffic
    #[arg(long, conflicts_with = "take_over", help_heading = "Dry run")]
    pub(crate) dry_run: bool,
    /// Listener of the health check in a dry run; kube-proxy has the usual one [default: none]
    #[arg(
        long,
        value_name = "IP:PORT",
        requires = "dry_run",
        help_heading = "Dry run"
    )]
    pub(crate) dry_run_healthz: Option<SocketAddr>,
    /// Listener of the metrics in a dry run [default: none]
    #[arg(
        long,
        value_name = "IP:PORT",
        requires = "dry_run",
        help_heading = "Dry run"
    )]
    pub(crate) dry_run_metrics: Option<SocketAddr>,
}

/// What kube-proxy does instead of running. The first of these counts.
#[derive(Debug, Args)]
pub(crate) struct Instead {
    /// Write the effective configuration to this file and exit
    #[arg(long, value_name = "FILE", help_heading = "Instead of running")]
    pub(crate) write_config_to: Option<PathBuf>,
    /// Remove nftproxy's tables and kube-proxy's rules and exit, as the command `cleanup` does
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        hide_default_value = true,
        help_heading = "Instead of running"
    )]
    pub(crate) cleanup: bool,
    /// Do what takes privileges, such as sysctls, and exit; for an init container
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        hide_default_value = true,
        help_heading = "Instead of running"
    )]
    pub(crate) init_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Leave kube-proxy's rules: the last step back to it, which nobody notices once it serves
    #[arg(long, help_heading = "What to remove")]
    pub(crate) only_ours: bool,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// How to print the findings
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t = OutputFormat::Text,
        help_heading = "Output"
    )]
    pub(crate) output: OutputFormat,
    /// Exit with 0 if the proxy runs, as an init container needs it
    #[arg(long, help_heading = "Output")]
    pub(crate) allow_warnings: bool,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum OutputFormat {
    /// One line each
    #[default]
    Text,
    /// One JSON document
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct RenderArgs {
    /// Take Services, EndpointSlices and Nodes from this file or directory; `-` is standard input
    #[arg(long, value_name = "PATH", help_heading = "Manifests")]
    pub(crate) manifests: PathBuf,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Family whose rules are printed
    #[arg(long, value_enum, default_value_t = FamilyChoice::Both, help_heading = "Output")]
    pub(crate) family: FamilyChoice,
    /// Write to this file [default: standard output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

/// A cluster knows its nodes, so that flags about them are for manifests only.
fn needs_manifests() -> ArgGroup {
    let flags = ArgGroup::new("about the node").args(["ips", "zone"]);
    flags.multiple(true).requires("manifests")
}

/// What the API server would say about this node.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NodeFlags {
    /// Address of this node, primary first; may be repeated [default: those of its interfaces]
    #[arg(
        long = "node-ip",
        value_name = "IP",
        action = clap::ArgAction::Append,
        help_heading = "Manifests"
    )]
    pub(crate) ips: Vec<IpAddr>,
    /// Topology zone of this node
    #[arg(long = "node-zone", value_name = "ZONE", help_heading = "Manifests")]
    pub(crate) zone: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FamilyChoice {
    Ipv4,
    Ipv6,
    Both,
}

impl FamilyChoice {
    pub(crate) fn families(self) -> &'static [IpFamily] {
        match self {
            Self::Ipv4 => &[IpFamily::V4],
            Self::Ipv6 => &[IpFamily::V6],
            Self::Both => &[IpFamily::V4, IpFamily::V6],
        }
    }
}

impl Cli {
    /// Parses this process's arguments. Help and the version end the process with 0, anything that
    /// cannot be parsed with 1 and the usage on standard error.
    pub(crate) fn parse_from_env() -> Invocation {
        Self::parse_line(std::env::args_os()).unwrap_or_else(|error| {
            // Nothing is left to be done about a closed standard stream.
            let _ = error.print();
            let code = usage_code(&normalized(std::env::args_os()));
            std::process::exit(if error.use_stderr() { code } else { 0 })
        })
    }

    fn parse_line(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
        let args = normalized(args);
        match Self::try_parse_from(&args) {
            Ok(cli) => Ok(cli.invocation),
            // A command would print its own name before the version.
            Err(error) if error.kind() == ErrorKind::DisplayVersion => {
                Err(Self::try_parse_from(["nftproxy", "--version"])
                    .err()
                    .unwrap_or(error))
            }
            Err(error) => Err(with_usage(error, &args)),
        }
    }
}

/// What a wrong command line ends with: as in kube-proxy, but for commands whose 1 is an answer.
fn usage_code(args: &[OsString]) -> i32 {
    match args.get(1).and_then(|name| name.to_str()) {
        Some("list" | "audit" | "explain" | "diff" | "digest" | "trace") => {
            i32::from(crate::CANNOT_TELL)
        }
        _ => 1,
    }
}

/// Adds the usage to the errors that `clap` prints without it, such as those about a value.
fn with_usage(mut error: clap::Error, args: &[OsString]) -> clap::Error {
    if error.get(ContextKind::Usage).is_none() {
        let mut command = Cli::command();
        command.build();
        let chosen = args
            .get(1)
            .and_then(|name| command.find_subcommand_mut(name));
        let usage = chosen.map(|chosen| chosen.render_usage());
        let usage = usage.unwrap_or_else(|| command.render_usage());
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    error
}

/// Brings kube-proxy's habits into the form `clap` knows: `_` for `-` in flag names, `--version`
/// with a value, and flags without a command.
fn normalized(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags_end = false;
    let mut args: Vec<OsString> = args
        .into_iter()
        .map(|arg| {
            flags_end |= arg == "--";
            match arg
                .to_str()
                .filter(|text| !flags_end && text.starts_with("--"))
            {
                Some("--version=true" | "--version=raw") => "--version".into(),
                Some(flag) => match flag.split_once('=') {
                    Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
                    None => flag.replace('_', "-").into(),
                },
                None => arg,
            }
        })
        .collect();
    let first = args.get(1).and_then(|arg| arg.to_str());
    let lacks_command = first.is_some_and(|first| {
        first.starts_with('-') && !matches!(first, "-h" | "--help" | "-V" | "--version")
    });
    if lacks_command {
        args.insert(1, "run".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let line = format!("nftproxy {line}");
        Cli::parse_line(line.split_whitespace().map(OsString::from)).map(|invocation| {
            match invocation {
                Invocation::Work(command) => command,
                Invocation::Describe(what) => panic!("{line} is {what:?}"),
            }
        })
    }

    fn run_args(line: &str) -> RunArgs {
        match parse(line) {
            Ok(Command::Run(args)) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_without_a_command_are_those_of_run() {
        for line in [
            "run --config /etc/c.yaml",
            "--config /etc/c.yaml",
            "--config=/etc/c.yaml",
        ] {
            assert_eq!(
                run_args(line).config.config,
                Some("/etc/c.yaml".into()),
                "{line}"
            );
        }
        let args = run_args(
            "-v 2 --hostname_override=a_b --kube_api_burst 7 --master=http://a --master=http://b",
        );
        assert_eq!(args.config.hostname_override.as_deref(), Some("a_b"));
        assert_eq!(args.config.master.as_deref(), Some("http://b"));
        let settings = Settings::load(&args.config).unwrap();
        assert_eq!((settings.log.verbosity, settings.burst), (2, 7));
    }

    #[test]
    fn manifests_and_the_node_they_are_for() {
        let args =
            run_args("run --manifests /m --node-ip 10.0.0.1 --node-ip fd00::1 --node-zone a");
        assert_eq!(args.manifests, Some("/m".into()));
        assert_eq!(args.node.ips.len(), 2);
        assert_eq!(args.node.zone.as_deref(), Some("a"));
        assert!(
            parse("run --node-ip 10.0.0.1").is_err(),
            "a cluster knows its nodes"
        );
    }

    #[test]
    fn render_takes_the_same_configuration() {
        let line =
            "render --manifests /m --node-ip 10.0.0.1 --family ipv6 --output /o --masquerade-all";
        let Ok(Command::Render(args)) = parse(line) else {
            panic!("not render");
        };
        assert_eq!(args.family, FamilyChoice::Ipv6);
        assert_eq!(args.output, Some("/o".into()));
        assert!(Settings::load(&args.config).unwrap().masquerade_all);
        assert!(parse("render").is_err(), "there is nothing to render");
    }

    #[test]
    fn o_9_help_and_version_are_no_errors_and_the_rest_is() {
        let version = format!("nftproxy {}\n", env!("CARGO_PKG_VERSION"));
        for line in [
            "--version",
            "-V",
            "run --version",
            "--version=raw",
            "-v=2 --version",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(
                (error.use_stderr(), error.to_string()),
                (false, version.clone()),
                "{line}"
            );
        }
        assert!(!parse("--help").unwrap_err().use_stderr());
        for line in [
            "run --nonsense",
            "run extra",
            "extra",
            "",
            "run -v x",
            "--bind-address=x",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.use_stderr(), "{line}");
            assert!(
                error.to_string().contains("Usage: nftproxy"),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn a_wrong_command_line_is_no_answer() {
        for (line, code) in [
            ("", 1),
            ("--nonsense", 1),
            ("--nonsense audit", 1),
            ("run --nonsense", 1),
            ("check --nonsense", 1),
            ("nonsense", 1),
            ("audit --nonsense", 2),
            ("list --nonsense", 2),
            ("explain", 2),
            ("diff one", 2),
            ("digest --from nowhere", 2),
            ("trace", 2),
        ] {
            let args = std::iter::once("nftproxy").chain(line.split_whitespace());
            let args = normalized(args.map(OsString::from));
            assert_eq!(usage_code(&args), code, "{line}");
        }
    }

    #[test]
    fn help_shows_headings_and_defaults_and_hides_inert_flags() {
        let help = parse("run --help").unwrap_err().to_string();
        for shown in [
            "Traffic:",
            "Kernel:",
            "--cluster-cidr",
            "[default: 127.0.0.1:10249]",
        ] {
            assert!(help.contains(shown), "{shown} is missing from\n{help}");
        }
        for hidden in [
            "--ipvs-scheduler",
            "--vmodule",
            "--boot-id-file",
            "--healthz-port",
        ] {
            assert!(!help.contains(hidden), "{hidden} is shown");
        }
    }
}
