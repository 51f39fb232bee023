//! What is made of the command line's own description: completions for shells, and man pages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Cli;
use super::paint;

/// The section of man pages that is for administration.
const SECTION: &str = "8";

/// Commands that tell about the program, and need no configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Describe {
    /// Print completions for a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(CompletionsArgs),
    /// Write man pages, one for each command
    #[command(hide = true)]
    Man(ManArgs),
}

const COMPLETIONS_HELP: &str = "\
For this session:       source <(nftproxy completions bash)
For all, with bash:     nftproxy completions bash > /usr/share/bash-completion/completions/nftproxy
                zsh:    nftproxy completions zsh > /usr/local/share/zsh/site-functions/_nftproxy
                fish:   nftproxy completions fish > /etc/fish/completions/nftproxy.fish";

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder to write to, which is made if it is not there
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}

pub(crate) fn run(what: &Describe) -> anyhow::Result<()> {
    match what {
        Describe::Completions(args) => {
            let script = String::from_utf8(completions(args.shell)).context("a script is text")?;
            paint::print(&script)
        }
        Describe::Man(args) => write_man_pages(&args.folder),
    }
}

/// The script is not written at once because the library panics where it cannot write.
fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nftproxy", &mut script);
    script
}

/// Writes `nftproxy.8`, and `nftproxy-run.8` and the likes beside it.
fn write_man_pages(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let mut program = Cli::command().disable_help_subcommand(true);
    // Gives commands their full names.
    program.build();
    let shown = program.get_subcommands().filter(|c| !c.is_hide_set());
    for command in shown.chain([&program]) {
        let page = Man::new(command.clone())
            .section(SECTION)
            .source(format!("nftproxy {}", env!("CARGO_PKG_VERSION")))
            .manual("Kubernetes");
        let file = folder.join(page.get_filename());
        page.generate_to(folder)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The names of the commands that `--help` shows.
    fn shown() -> Vec<String> {
        let program = Cli::command();
        let shown = program.get_subcommands().filter(|c| !c.is_hide_set());
        let names: Vec<_> = shown.map(|c| c.get_name().to_owned()).collect();
        assert!(names.len() > 10, "{names:?}");
        names
    }

    #[test]
    fn completions_name_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).unwrap();
            for name in shown() {
                let is_there = script
                    .split(|c: char| !c.is_ascii_alphanumeric())
                    .any(|word| word == name);
                assert!(is_there, "{shell} does not complete {name}");
            }
        }
    }

    /// Asks bash itself what it would complete.
    #[test]
    fn bash_completes_commands_and_flags() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("nftproxy.bash");
        fs::write(&script, completions(Shell::Bash)).unwrap();
        let completed = |words: &[&str]| {
            let last = words.len() - 1;
            let asked = format!(
                "source {}; COMP_WORDS=({}); COMP_CWORD={last}; \
                 _nftproxy nftproxy {} {}; echo \"${{COMPREPLY[@]}}\"",
                script.display(),
                words.join(" "),
                words[last],
                words[last - 1]
            );
            let output = Command::new("bash").args(["-c", &asked]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        for name in shown() {
            let found = completed(&["nftproxy", &name]);
            assert!(found.split(' ').any(|word| word == name), "{name}: {found}");
        }
        assert_eq!(completed(&["nftproxy", "audit", "--rul"]), "--ruleset");
        assert_eq!(completed(&["nftproxy", "run", "--hold"]), "--hold-tables");
        assert_eq!(completed(&["nftproxy", "no-such-command"]), "");
    }

    #[test]
    fn each_command_has_a_man_page_and_the_first_names_all() {
        let folder = tempfile::tempdir().unwrap();
        // It need not be there.
        let pages = folder.path().join("share/man8");
        write_man_pages(&pages).unwrap();
        let read = |file: &str| {
            let page = fs::read_to_string(pages.join(file)).unwrap();
            page.replace("\\-", "-")
        };
        let all = read("nftproxy.8");
        for name in shown() {
            assert!(all.contains(&format!("\nnftproxy-{name}(8)\n")), "{name}");
            let page = read(&format!("nftproxy-{name}.8"));
            assert!(
                page.starts_with(".ie") && page.contains(".SH OPTIONS"),
                "{page}"
            );
        }
        assert!(read("nftproxy-run.8").contains("--cluster-cidr"));
        let n_pages = fs::read_dir(&pages).unwrap().count();
        assert_eq!(n_pages, shown().len() + 1, "and none of what is hidden");

        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = write_man_pages(&file).unwrap_err();
        let path = file.display().to_string();
        assert!(format!("{error:#}").contains(&path), "{error:#}");
    }
}
