//! Debian packages that hold whole guests, unpacked for tests.
//!
//! Problem: tests of unmodified guests want them as Debian ships them, on a machine that doesn't have them
//! installed and must not change. Scheme: apt with lists and cache in a folder of ours and no installed packages,
//! but the machine's own sources and keys; a package is fetched and unpacked once. The cache is that of
//! [`crate::debian`]. Invariant: a package's folder has its name only when it is whole. Source: apt.conf(5).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use anyhow::{Context, Result, ensure};

/// The folder of an unpacked package, fetched if need be. `scratch` is the test's `CARGO_TARGET_TMPDIR`.
///
/// # Errors
/// It can't be fetched.
pub fn get(name: &str, scratch: &str) -> Result<PathBuf> {
    let cache =
        env::var_os("XENOLITH_CACHE").map_or(Path::new(scratch).join("guests"), PathBuf::from);
    let packages = cache.join("packages");
    let folder = packages.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let partial = packages.join(format!(".{name}.partial-{}", std::process::id()));
    let result =
        fetch(name, &partial).and_then(|()| match fs::rename(partial.join("files"), &folder) {
            // Another test was faster.
            Err(_) if folder.is_dir() => Ok(folder),
            renamed => Ok(renamed.map(|()| folder)?),
        });
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => result,
    }
}

fn fetch(name: &str, partial: &Path) -> Result<()> {
    for part in ["lists/partial", "archives/partial", "state"] {
        fs::create_dir_all(partial.join(part))?;
    }
    fs::write(partial.join("status"), "")?;
    let place = partial.to_str().context("a folder's name that is text")?;
    fs::write(
        partial.join("apt.conf"),
        format!(
            "Dir::State \"{place}/state\";\nDir::State::Lists \"{place}/lists\";\n\
             Dir::State::status \"{place}/status\";\nDir::Cache \"{place}\";\n\
             Dir::Cache::archives \"{place}/archives\";\nAPT::Sandbox::User \"\";\n"
        ),
    )?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("APT_CONFIG", partial.join("apt.conf"))
            .current_dir(partial)
            .arg("-q")
            .args(args);
        said(&mut command)
    };
    apt(&["update"])?;
    apt(&["download", name])?;
    let deb = fs::read_dir(partial)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|suffix| suffix == "deb"))
        .with_context(|| format!("apt-get has not downloaded {name}"))?;
    said(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(partial.join("files")))
}

/// Runs a program; its complaint is the error.
fn said(command: &mut Command) -> Result<()> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
