//! The list of kernels: where each comes from. It knows nothing of machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A line of the list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// What the table calls it.
    pub(crate) name: String,
    /// A Debian package that has it, or stands for the newest one that does.
    package: Option<String>,
    /// An image of one's own, in its place.
    image: Option<PathBuf>,
    /// `/lib/modules/RELEASE` for that image.
    modules: Option<PathBuf>,
}

/// A kernel on this disk.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What the table calls it.
    pub(crate) name: String,
    /// The image that is booted.
    pub(crate) image: PathBuf,
    /// `/lib/modules/RELEASE`, wherever it lies.
    pub(crate) modules: Option<PathBuf>,
}

/// Reads the list in a file.
///
/// # Errors
///
/// If it cannot be read, or is not such a list.
pub(crate) fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_norway::from_str(&text).with_context(|| format!("understanding {}", path.display()))
}

impl Entry {
    /// Reads `IMAGE` or `IMAGE,MODULES`, as on the command line.
    pub(crate) fn of_argument(text: &str) -> Self {
        let (image, modules) = match text.split_once(',') {
            Some((image, modules)) => (image, Some(modules.into())),
            None => (text, None),
        };
        let name = Path::new(image).file_name().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            package: None,
            image: Some(image.into()),
            modules,
        }
    }

    /// Gets it onto the disk: packages are downloaded and unpacked below `cache`, and installed
    /// nowhere.
    ///
    /// # Errors
    ///
    /// If there is no such package, or no image where one should be.
    pub(crate) fn fetch(&self, cache: &Path) -> Result<Kernel> {
        let (image, modules) = match (&self.image, &self.package) {
            (Some(image), None) => (image.clone(), self.modules.clone()),
            (None, Some(package)) => unpack(package, cache)?,
            _ => bail!("{} has to have either a package or an image", self.name),
        };
        ensure!(image.is_file(), "{} is no kernel image", image.display());
        if let Some(modules) = &modules {
            ensure!(modules.is_dir(), "{} is no folder", modules.display());
        }
        Ok(Kernel {
            name: self.name.clone(),
            image,
            modules,
        })
    }
}

/// The image and the modules of a package.
fn unpack(package: &str, cache: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let package = newest(package)?;
    let folder = cache.join(&package);
    if !folder.join("boot").is_dir() {
        println!("downloading {package}");
        let partial = cache.join(format!("{package}.partial"));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
        run(Command::new("apt-get")
            .args(["download", "--quiet", "--quiet", &package])
            .current_dir(&partial))?;
        let archive = only_entry(&partial, "")?;
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .args([&archive, &partial]))?;
        fs::remove_file(&archive).context("removing the archive")?;
        fs::rename(&partial, &folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let image = only_entry(&folder.join("boot"), "vmlinuz-")?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .find_map(|modules| only_entry(&folder.join(modules), "").ok());
    Ok((image, modules))
}

/// What a meta package depends on, or the package itself.
fn newest(package: &str) -> Result<String> {
    let text = run(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let mut kernels = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"));
    Ok(kernels.next().unwrap_or(package).to_owned())
}

/// The one entry of a folder whose name starts like this.
fn only_entry(folder: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(start))
        });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        (None, _) => bail!("{} has no {start}…", folder.display()),
        (Some(_), Some(_)) => bail!("{} has several {start}…", folder.display()),
    }
}

/// Runs a program to its end, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("running {shown}"))?;
    ensure!(
        output.status.success(),
        "{shown}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
