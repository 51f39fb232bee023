//! Why a part of the kernel is not there: not built, a module that does not exist, or one that
//! cannot be loaded.
//!
//! It reads files below a root, and decides nothing else.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

/// Where modprobe(8) takes orders from.
const MODPROBE_FOLDERS: [&str; 4] = [
    "etc/modprobe.d",
    "run/modprobe.d",
    "usr/lib/modprobe.d",
    "lib/modprobe.d",
];

/// A running kernel, as its files describe it.
#[derive(Debug)]
pub(super) struct Kernel {
    root: PathBuf,
    release: String,
}

/// A reason, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) reason: String,
    pub(super) advice: String,
}

/// What the configuration says of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Built {
    In,
    AsModule,
    Not,
}

/// What becomes of a module that the kernel asks for.
#[derive(Debug, PartialEq, Eq)]
enum Module {
    /// It is there already.
    Present,
    /// It has a file.
    Loadable,
    /// It is listed, and its file is gone.
    Lost(PathBuf),
    /// There is none.
    Absent,
    /// The modules cannot be seen from here.
    Unknown,
}

impl Kernel {
    /// The kernel of this release, with files below `root`.
    pub(super) fn new(root: &Path, release: &str) -> Self {
        Self {
            root: root.to_owned(),
            release: release.to_owned(),
        }
    }

    /// Why something is not there that takes these options and modules, each after those that it
    /// takes. `refusal` is what the kernel said.
    pub(super) fn why(&self, options: &[&str], modules: &[&str], refusal: &str) -> Why {
        let config = self.config();
        let built = |option: &str| config.as_deref().map(|config| built(config, option));
        if let Some(option) = options
            .iter()
            .find(|option| built(option) == Some(Built::Not))
        {
            return Why {
                reason: format!("this kernel was built without CONFIG_{option}"),
                advice: "boot a kernel that has it".into(),
            };
        }
        let is_built_in = options
            .iter()
            .any(|option| built(option) == Some(Built::In));
        let states: Vec<_> = modules
            .iter()
            .map(|module| (*module, self.module(module)))
            .collect();
        // What does not exist explains why others cannot be loaded.
        for (module, state) in &states {
            match state {
                Module::Lost(path) => {
                    return Why {
                        reason: format!(
                            "module {module} does not exist: its file {} is gone",
                            path.display()
                        ),
                        advice: format!("install the modules of kernel {} again", self.release),
                    };
                }
                // One that is built in leaves no trace where there is no list of such.
                Module::Absent if !is_built_in => {
                    return Why {
                        reason: format!(
                            "module {module} does not exist for kernel {}",
                            self.release
                        ),
                        advice: "install the package with the rest of this kernel's modules, \
                                 or boot a kernel that has it"
                            .into(),
                    };
                }
                _ => {}
            }
        }
        // The kernel asks for the last one, which brings the others along.
        let missing = states
            .iter()
            .rfind(|(_, state)| matches!(state, Module::Loadable | Module::Unknown));
        match missing {
            Some((module, Module::Loadable)) => return self.why_not_loaded(module),
            Some((module, _)) => {
                return Why {
                    reason: format!(
                        "module {module} is not loaded, and whether it exists cannot be seen from \
                         here"
                    ),
                    advice: format!(
                        "on the node itself, `modprobe {module}` loads it or says why not"
                    ),
                };
            }
            None => {}
        }
        Why {
            reason: format!("the kernel refuses it: {refusal}"),
            advice: "boot another kernel".into(),
        }
    }

    /// Why a module that exists was not loaded when it was needed.
    fn why_not_loaded(&self, module: &str) -> Why {
        let cannot = |reason: String, advice: String| Why {
            reason: format!("module {module} exists and cannot be loaded: {reason}"),
            advice,
        };
        if self.sysctl("kernel/modules_disabled").as_deref() == Some("1") {
            return cannot(
                "kernel.modules_disabled is 1".into(),
                format!("have {module} loaded at boot, before that is set"),
            );
        }
        if let Some(place) = self.forbidden(module) {
            return cannot(format!("{place} forbids it"), "remove that line".into());
        }
        match self.sysctl("kernel/modprobe") {
            Some(program) if program.is_empty() => {
                return cannot(
                    "kernel.modprobe is empty, so that the kernel loads none by itself".into(),
                    format!("have {module} loaded at boot (/etc/modules-load.d)"),
                );
            }
            Some(program) if self.lacks_program(&program) => {
                return cannot(
                    format!("the kernel calls {program}, which is not there"),
                    format!("install kmod, or have {module} loaded at boot"),
                );
            }
            _ => {}
        }
        cannot(
            "the kernel has tried".into(),
            format!("`modprobe {module}` and the kernel's log say why"),
        )
    }

    /// The text of the kernel's configuration, from where it is first found.
    fn config(&self) -> Option<String> {
        if let Ok(file) = fs::File::open(self.root.join("proc/config.gz")) {
            let mut text = String::new();
            if GzDecoder::new(file).read_to_string(&mut text).is_ok() {
                return Some(text);
            }
        }
        let release = &self.release;
        [
            format!("boot/config-{release}"),
            format!("lib/modules/{release}/config"),
        ]
        .iter()
        .find_map(|path| fs::read_to_string(self.root.join(path)).ok())
    }

    fn module(&self, name: &str) -> Module {
        let is_module = |line: &&str| {
            let file = line.split(':').next().unwrap_or_default();
            let file = file.rsplit('/').next().unwrap_or_default();
            let stem = file.split('.').next().unwrap_or_default();
            stem.replace('-', "_") == name
        };
        if self.root.join("sys/module").join(name).exists() {
            return Module::Present;
        }
        let folder = self.root.join("lib/modules").join(&self.release);
        let list = |name: &str| fs::read_to_string(folder.join(name));
        if list("modules.builtin").is_ok_and(|text| text.lines().any(|line| is_module(&line))) {
            return Module::Present;
        }
        let Ok(text) = list("modules.dep") else {
            return Module::Unknown;
        };
        let Some(line) = text.lines().find(is_module) else {
            return Module::Absent;
        };
        let file = folder.join(line.split(':').next().unwrap_or_default());
        if file.exists() {
            Module::Loadable
        } else {
            Module::Lost(file)
        }
    }

    /// Which line keeps modprobe(8) from loading a module when the kernel asks for it.
    fn forbidden(&self, module: &str) -> Option<String> {
        let is_it = |word: Option<&str>| word.is_some_and(|word| word.replace('-', "_") == module);
        let command_line = fs::read_to_string(self.root.join("proc/cmdline")).unwrap_or_default();
        let mut lists = command_line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("modprobe.blacklist="));
        if lists.any(|list| list.split(',').any(|word| is_it(Some(word)))) {
            return Some("modprobe.blacklist= on the kernel's command line".into());
        }
        for folder in MODPROBE_FOLDERS {
            let Ok(entries) = fs::read_dir(self.root.join(folder)) else {
                continue;
            };
            for entry in entries.flatten() {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let line = text.lines().find(|line| {
                    let mut words = line.split_whitespace();
                    match words.next() {
                        Some("blacklist") => is_it(words.next()),
                        Some("install") => {
                            is_it(words.next())
                                && words
                                    .next()
                                    .is_some_and(|program| !program.ends_with("modprobe"))
                        }
                        _ => false,
                    }
                });
                if let Some(line) = line {
                    let file = entry.file_name();
                    let file = file.to_string_lossy();
                    return Some(format!("`{}` in /{folder}/{file}", line.trim()));
                }
            }
        }
        None
    }

    /// Whether a program is known to be missing where the kernel starts programs: at the first
    /// process's root. In a container that is somewhere else, and cannot be seen.
    fn lacks_program(&self, program: &str) -> bool {
        let is_host = fs::read_to_string(self.root.join("proc/2/comm"))
            .is_ok_and(|comm| comm.trim() == "kthreadd");
        let root = self.root.join("proc/1/root");
        is_host
            && fs::read_dir(&root).is_ok()
            && fs::symlink_metadata(root.join(program.trim_start_matches('/')))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    fn sysctl(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join("proc/sys").join(name)).ok()?;
        Some(text.trim().to_owned())
    }
}

fn built(config: &str, option: &str) -> Built {
    config
        .lines()
        .find_map(|line| {
            let value = line
                .strip_prefix("CONFIG_")?
                .strip_prefix(option)?
                .strip_prefix('=')?;
            Some(match value {
                "y" => Built::In,
                "m" => Built::AsModule,
                _ => Built::Not,
            })
        })
        .unwrap_or(Built::Not)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-13-amd64";

    /// A node's files.
    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Kernel) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let kernel = Kernel::new(root.path(), RELEASE);
        (root, kernel)
    }

    fn reason(files: &[(&str, &str)]) -> String {
        let (_root, kernel) = node(files);
        kernel
            .why(
                &["NFT_NUMGEN"],
                &["nft_numgen"],
                "No such file or directory",
            )
            .reason
    }

    const DEP: (&str, &str) = (
        "lib/modules/6.1.0-13-amd64/modules.dep",
        "kernel/net/netfilter/nft_fib.ko.xz:\nkernel/net/netfilter/nft-numgen.ko.xz: kernel/x.ko\n",
    );
    const FILE: (&str, &str) = (
        "lib/modules/6.1.0-13-amd64/kernel/net/netfilter/nft-numgen.ko.xz",
        "",
    );

    #[test]
    fn a_part_that_was_never_built_is_named_by_its_option() {
        let config = "CONFIG_NFT_NUMGEN_X=y\n# CONFIG_NFT_NUMGEN is not set\n";
        for path in [
            "boot/config-6.1.0-13-amd64",
            "lib/modules/6.1.0-13-amd64/config",
        ] {
            assert_eq!(
                reason(&[(path, config), DEP]),
                "this kernel was built without CONFIG_NFT_NUMGEN"
            );
        }
        let (root, kernel) = node(&[("proc/x", "")]);
        let file = fs::File::create(root.path().join("proc/config.gz")).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, config.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(
            kernel.why(&["NFT_NUMGEN"], &["nft_numgen"], "").reason,
            "this kernel was built without CONFIG_NFT_NUMGEN"
        );
    }

    #[test]
    fn a_module_that_does_not_exist_is_told_from_one_that_cannot_be_loaded() {
        assert_eq!(
            reason(&[("lib/modules/6.1.0-13-amd64/modules.dep", "kernel/other.ko:")]),
            "module nft_numgen does not exist for kernel 6.1.0-13-amd64"
        );
        assert!(reason(&[DEP]).ends_with("nft-numgen.ko.xz is gone"));
        let cannot = |more: &[(&str, &str)]| {
            let reason = reason(&[&[DEP, FILE], more].concat());
            let start = "module nft_numgen exists and cannot be loaded: ";
            reason
                .strip_prefix(start)
                .unwrap_or_else(|| panic!("{reason}"))
                .to_owned()
        };
        assert_eq!(cannot(&[]), "the kernel has tried");
        assert_eq!(
            cannot(&[("proc/sys/kernel/modules_disabled", "1\n")]),
            "kernel.modules_disabled is 1"
        );
        assert_eq!(
            cannot(&[("proc/sys/kernel/modprobe", "\n")]),
            "kernel.modprobe is empty, so that the kernel loads none by itself"
        );
        let host = [
            ("proc/sys/kernel/modprobe", "/sbin/modprobe\n"),
            ("proc/2/comm", "kthreadd\n"),
            ("proc/1/root/etc/hostname", "node"),
        ];
        assert_eq!(
            cannot(&host),
            "the kernel calls /sbin/modprobe, which is not there"
        );
        assert_eq!(
            cannot(&host[..1]),
            "the kernel has tried",
            "a container cannot tell"
        );
        assert_eq!(
            cannot(&[("etc/modprobe.d/a.conf", "# no\nblacklist nft-numgen\n")]),
            "`blacklist nft-numgen` in /etc/modprobe.d/a.conf forbids it"
        );
        assert_eq!(
            cannot(&[("lib/modprobe.d/b.conf", "install nft_numgen /bin/false\n")]),
            "`install nft_numgen /bin/false` in /lib/modprobe.d/b.conf forbids it"
        );
        assert_eq!(
            cannot(&[("proc/cmdline", "quiet modprobe.blacklist=a,nft_numgen\n")]),
            "modprobe.blacklist= on the kernel's command line forbids it"
        );
    }

    #[test]
    fn of_several_modules_the_one_that_is_missing_is_named() {
        let dep = "kernel/nf_reject_ipv4.ko:\nkernel/nft_reject.ko:\n";
        let folder = "lib/modules/6.1.0-13-amd64";
        let (_root, kernel) = node(&[
            (&format!("{folder}/modules.dep"), dep),
            (&format!("{folder}/kernel/nf_reject_ipv4.ko"), ""),
            (&format!("{folder}/kernel/nft_reject.ko"), ""),
        ]);
        let why = kernel.why(
            &[],
            &["nf_reject_ipv4", "nft_reject", "nft_reject_ipv4"],
            "",
        );
        let wanted = "module nft_reject_ipv4 does not exist for kernel 6.1.0-13-amd64";
        assert_eq!(why.reason, wanted);
        let why = kernel.why(&[], &["nf_reject_ipv4", "nft_reject"], "");
        assert!(
            why.reason.starts_with("module nft_reject exists"),
            "{}",
            why.reason
        );
    }

    #[test]
    fn what_cannot_be_seen_is_not_guessed() {
        assert_eq!(
            reason(&[]),
            "module nft_numgen is not loaded, and whether it exists cannot be seen from here"
        );
    }

    #[test]
    fn what_is_there_and_refused_is_reported_in_the_kernel_s_words() {
        for file in [
            ("sys/module/nft_numgen/refcnt", ""),
            (
                "lib/modules/6.1.0-13-amd64/modules.builtin",
                "kernel/nft_numgen.ko\n",
            ),
        ] {
            assert_eq!(
                reason(&[file]),
                "the kernel refuses it: No such file or directory"
            );
        }
    }
}
