//! Kernel modules: which ones a set of wanted modules needs, and the tables for modprobe.
//!
//! Problem: a kernel package ships modules but no modules.dep (its installation would run depmod).
//! Scheme: each module says in its ELF section `.modinfo` what it depends on and by which aliases it is
//! asked for; from the wanted ones we follow `depends=` and write the tables ourselves. Invariants: only
//! reachable modules are read; a damaged module is an error with its name, never a panic; a dependency
//! cycle ends.
//! Source: Linux, include/linux/module.h (MODULE_INFO); modules.dep(5); ELF-64 Object File Format.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A module as modprobe needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// With underscores, as the kernel spells it.
    pub name: String,
    /// All that must be loaded before, in that order.
    pub depends: Vec<String>,
    pub aliases: Vec<String>,
    /// The ELF file, not compressed.
    pub elf: Vec<u8>,
}

/// Reads the modules `wanted` and what they need from below `folder`. Wanted modules that the kernel
/// doesn't have (perhaps they are built in) are left out. Ordered by name.
///
/// # Errors
/// A file that can't be read or is no module, or a dependency that is missing.
pub fn collect(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    list(folder, &mut files)?;
    let mut infos: BTreeMap<String, (Info, Vec<u8>)> = BTreeMap::new();
    let mut queue: Vec<String> =
        wanted.iter().map(|name| spell(name)).filter(|name| files.contains_key(name)).collect();
    while let Some(name) = queue.pop() {
        if infos.contains_key(&name) {
            continue;
        }
        let path = files.get(&name).with_context(|| {
            format!("the kernel package has no module {name}, which another needs")
        })?;
        let elf = read(path)?;
        let info = read_info(&elf).with_context(|| format!("{} is damaged", path.display()))?;
        queue.extend(info.depends.iter().cloned());
        infos.insert(name, (info, elf));
    }
    add_soft_dependencies(&mut infos);
    let graph: BTreeMap<&str, &[String]> =
        infos.iter().map(|(name, (info, _))| (name.as_str(), &info.depends[..])).collect();
    let orders: Vec<Vec<String>> = infos.keys().map(|name| load_order(name, &graph)).collect();
    Ok(infos
        .into_iter()
        .zip(orders)
        .map(|((name, (info, elf)), depends)| Module { name, depends, aliases: info.aliases, elf })
        .collect())
}

/// `modules.dep`: a file and those it needs, the last to be loaded first.
pub fn dep_table(modules: &[Module]) -> String {
    let mut table = String::new();
    for module in modules {
        table.push_str(&format!("{}.ko:", module.name));
        for name in module.depends.iter().rev() {
            table.push_str(&format!(" {name}.ko"));
        }
        table.push('\n');
    }
    table
}

/// `modules.alias`: pattern and module.
pub fn alias_table(modules: &[Module]) -> String {
    let mut table = String::new();
    for module in modules {
        for alias in &module.aliases {
            table.push_str(&format!("alias {alias} {}\n", module.name));
        }
    }
    table
}

/// The kernel's spelling: file names and `depends=` mix hyphens and underscores.
fn spell(name: &str) -> String {
    name.replace('-', "_")
}

/// All module files below `folder`, by module name.
fn list(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let kind = entry.file_type().context("cannot read a file's type")?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if let Some(file) = entry.file_name().to_str()
            && let Some(stem) = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")
        {
            files.insert(spell(stem), entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_none_or(|suffix| suffix != "xz") {
        return Ok(bytes);
    }
    let mut elf = Vec::new();
    liblzma::read::XzDecoder::new(bytes.as_slice())
        .read_to_end(&mut elf)
        .with_context(|| format!("cannot decompress {}", path.display()))?;
    Ok(elf)
}

/// A kernel asks for `crypto-crc32c` only when it mounts, and a program of ours may mount without a
/// modprobe at hand. So a `softdep=pre:` becomes a dependency where it can't fail: on the portable
/// ("generic") implementation, never on one that wants a CPU feature.
fn add_soft_dependencies(infos: &mut BTreeMap<String, (Info, Vec<u8>)>) {
    let generic: Vec<(String, Vec<String>)> = infos
        .iter()
        .filter(|(name, _)| name.ends_with("_generic"))
        .map(|(name, (info, _))| (name.clone(), info.aliases.clone()))
        .collect();
    for (info, _) in infos.values_mut() {
        for asked in std::mem::take(&mut info.before) {
            for (name, aliases) in &generic {
                if *name == spell(&asked) || aliases.contains(&asked) {
                    info.depends.push(name.clone());
                }
            }
        }
    }
}

/// What to load before `name`, each after its own needs.
fn load_order(name: &str, graph: &BTreeMap<&str, &[String]>) -> Vec<String> {
    /// The depth is bounded by the number of modules, as each is entered once.
    fn visit(
        name: &str,
        graph: &BTreeMap<&str, &[String]>,
        seen: &mut Vec<String>,
        order: &mut Vec<String>,
    ) {
        if seen.iter().any(|one| one == name) {
            return;
        }
        seen.push(name.to_owned());
        for need in graph.get(name).copied().unwrap_or_default() {
            visit(need, graph, seen, order);
        }
        order.push(name.to_owned());
    }
    let mut order = Vec::new();
    visit(name, graph, &mut Vec::new(), &mut order);
    order.retain(|one| one != name);
    order
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Info {
    depends: Vec<String>,
    /// `softdep=pre:`, names or aliases.
    before: Vec<String>,
    aliases: Vec<String>,
}

fn read_info(elf: &[u8]) -> Result<Info> {
    let mut info = Info::default();
    for field in section(elf, b".modinfo")?.split(|&byte| byte == 0) {
        let Ok(field) = std::str::from_utf8(field) else { continue };
        match field.split_once('=') {
            Some(("depends", names)) => {
                info.depends =
                    names.split(',').filter(|name| !name.is_empty()).map(spell).collect();
            }
            Some(("softdep", words)) => {
                let mut pre = false;
                for word in words.split_whitespace() {
                    match word {
                        "pre:" => pre = true,
                        "post:" => pre = false,
                        _ if pre => info.before.push(word.to_owned()),
                        _ => {}
                    }
                }
            }
            Some(("alias", alias)) => info.aliases.push(alias.to_owned()),
            _ => {}
        }
    }
    Ok(info)
}

/// A section of an ELF file of either class, little-endian.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Result<&'a [u8]> {
    let number = |at: u64, len: usize| -> Result<u64> {
        let at = usize::try_from(at)?;
        let bytes = at.checked_add(len).and_then(|end| elf.get(at..end));
        let bytes = bytes.context("it ends too early")?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte)))
    };
    let range = |at: u64, len: u64| -> Result<&'a [u8]> {
        let end = at.checked_add(len).context("a section lies outside")?;
        elf.get(usize::try_from(at)?..usize::try_from(end)?).context("a section lies outside")
    };
    if elf.get(..4) != Some(b"\x7fELF") {
        bail!("it is not an ELF file");
    }
    let wide = elf.get(4) == Some(&2);
    // e_shoff, e_shentsize, e_shnum, e_shstrndx; in a section header sh_offset and sh_size.
    let (word, table_at, counts_at, offset_at, size_at) =
        if wide { (8, 0x28, 0x3a, 0x18, 0x20) } else { (4, 0x20, 0x2e, 0x10, 0x14) };
    let table = number(table_at, word)?;
    let entry_size = number(counts_at, 2)?;
    let count = number(counts_at + 2, 2)?;
    let names_index = number(counts_at + 4, 2)?;
    // The table's start is the file's word; a sum that overflows lies outside like any other.
    let header =
        |index: u64| table.checked_add(index * entry_size).context("a header lies outside");
    let contents = |header: u64| -> Result<&'a [u8]> {
        let at = number(header.saturating_add(offset_at), word)?;
        let len = number(header.saturating_add(size_at), word)?;
        range(at, len)
    };
    let names = contents(header(names_index)?)?;
    for index in 0..count {
        let header = header(index)?;
        let name_at = usize::try_from(number(header, 4)?)?;
        let name = names.get(name_at..).unwrap_or_default();
        if name.split(|&byte| byte == 0).next() == Some(wanted) {
            return contents(header);
        }
    }
    bail!("it has no section {}", String::from_utf8_lossy(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with a `.modinfo` and the section of names, nothing else.
    fn module(wide: bool, info: &str) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let word = if wide { 8 } else { 4 };
        let put = |bytes: &mut Vec<u8>, at: usize, len: usize, value: usize| {
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[4] = if wide { 2 } else { 1 };
        let names_at = elf.len();
        elf.extend_from_slice(names);
        let info_at = elf.len();
        elf.extend_from_slice(info.as_bytes());
        let table = elf.len();
        let entry = if wide { 64 } else { 40 };
        elf.resize(table + 3 * entry, 0);
        let (offset_at, size_at) = if wide { (0x18, 0x20) } else { (0x10, 0x14) };
        for (index, name, at, len) in [(1, 1, names_at, names.len()), (2, 11, info_at, info.len())]
        {
            let header = table + index * entry;
            put(&mut elf, header, 4, name);
            put(&mut elf, header + offset_at, word, at);
            put(&mut elf, header + size_at, word, len);
        }
        let (table_at, counts_at) = if wide { (0x28, 0x3a) } else { (0x20, 0x2e) };
        put(&mut elf, table_at, word, table);
        put(&mut elf, counts_at, 2, entry);
        put(&mut elf, counts_at + 2, 2, 3);
        put(&mut elf, counts_at + 4, 2, 1);
        elf
    }

    #[test]
    fn modinfo_of_both_classes() {
        for wide in [true, false] {
            let elf =
                module(wide, "alias=fs-ext4\0softdep=pre: crypto-crc32c post: x\0depends=a,b-c\0");
            let info = read_info(&elf).expect("sound");
            assert_eq!(info.depends, ["a", "b_c"]);
            assert_eq!(info.before, ["crypto-crc32c"]);
            assert_eq!(info.aliases, ["fs-ext4"]);
        }
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let elf = module(true, "depends=\0");
        // The last header's tail holds nothing that is asked for.
        for len in 0..elf.len() - 24 {
            assert!(read_info(&elf[..len]).is_err(), "cut to {len}");
        }
        for at in 0..elf.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = elf.clone();
                damaged[at] = value;
                // Any answer will do, as long as there is one.
                let _ = read_info(&damaged);
            }
        }
        assert!(read_info(b"#!/bin/sh").is_err());
    }

    #[test]
    fn order_is_deepest_first_and_cycles_end() {
        let needs: BTreeMap<&str, Vec<String>> = [
            ("pci", vec!["ring", "modern", "virtio"]),
            ("virtio", vec!["ring"]),
            ("ring", vec![]),
            ("modern", vec![]),
            ("egg", vec!["hen"]),
            ("hen", vec!["egg"]),
        ]
        .into_iter()
        .map(|(name, needs)| (name, needs.into_iter().map(str::to_owned).collect()))
        .collect();
        let graph = needs.iter().map(|(name, needs)| (*name, &needs[..])).collect();
        assert_eq!(load_order("pci", &graph), ["ring", "modern", "virtio"]);
        assert_eq!(load_order("virtio", &graph), ["ring"]);
        assert_eq!(load_order("egg", &graph), ["hen"]);
    }

    #[test]
    fn a_folder_of_modules_becomes_tables() {
        let folder = std::env::temp_dir().join(format!("xenolith-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("kernel/fs")).expect("a folder");
        let put = |name: &str, info: &str| {
            fs::write(folder.join("kernel").join(name), module(true, info)).expect("a module");
        };
        put("fs/ext4.ko", "softdep=pre: crypto-crc32c\0depends=jbd2\0alias=fs-ext4\0");
        put("fs/jbd2.ko", "depends=\0");
        put("crc32c_generic.ko", "depends=\0alias=crypto-crc32c\0");
        put("virtio-rng.ko", "depends=\0alias=virtio:d4v*\0");
        put("unasked.ko", "depends=nothing-we-have\0");
        let modules =
            collect(&folder, &["ext4", "virtio_rng", "crc32c_generic", "built_in"]).expect("sound");
        fs::remove_dir_all(&folder).expect("ours");
        assert_eq!(
            dep_table(&modules),
            "crc32c_generic.ko:\next4.ko: crc32c_generic.ko jbd2.ko\njbd2.ko:\nvirtio_rng.ko:\n"
        );
        assert_eq!(
            alias_table(&modules),
            "alias crypto-crc32c crc32c_generic\nalias fs-ext4 ext4\nalias virtio:d4v* virtio_rng\n"
        );
    }

    #[test]
    fn compressed_modules_are_read() {
        let elf = module(true, "depends=\0");
        let mut compressed = Vec::new();
        let mut compressor = liblzma::read::XzEncoder::new(elf.as_slice(), 1);
        compressor.read_to_end(&mut compressed).expect("memory");
        let path = std::env::temp_dir().join(format!("xenolith-{}.ko.xz", std::process::id()));
        fs::write(&path, compressed).expect("a file");
        let back = read(&path);
        fs::remove_file(&path).expect("ours");
        assert_eq!(back.expect("sound"), elf);
    }
}
