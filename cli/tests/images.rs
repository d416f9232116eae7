//! `xenolith image`: what a person gets from it, and what QEMU's tool says of that.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{Scratch, xenolith};

fn image(folder: &Path, arguments: &[&str]) -> Output {
    let arguments = [&["image"], arguments].concat();
    xenolith(&arguments).current_dir(folder).output().expect("the program starts")
}

fn good(folder: &Path, arguments: &[&str]) -> String {
    let output = image(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(folder: &Path, arguments: &[&str], part: &str) {
    let output = image(folder, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(errors.lines().count() == 1 && errors.contains(part), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty());
}

/// Names in a folder.
fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("there").map(|entry| entry.expect("there").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn images_are_made_converted_and_told_of() {
    let scratch = Scratch::new("images");
    let folder = scratch.path();
    let mut bytes = vec![0; 3 << 20];
    for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| at >> 18 & 3 == 1) {
        *byte = (at / 3) as u8;
    }
    fs::write(folder.join("a.img"), &bytes).expect("writable");
    good(folder, &["convert", "a.img", "b.qcow2"]);
    good(folder, &["convert", "-O", "raw", "b.qcow2", "c"]);
    assert!(fs::read(folder.join("c")).expect("there") == bytes);
    let len = folder.join("b.qcow2").metadata().expect("there").len();
    assert!(len < 2 << 20, "zeroes take no room: {len}");

    good(folder, &["create", "-b", "b.qcow2", "top.qcow2"]);
    good(folder, &["create", "empty.qcow2", "20G"]);
    good(folder, &["create", "empty", "1000"]);
    assert_eq!(folder.join("empty").metadata().expect("there").len(), 1024);
    let info = good(folder, &["info", "top.qcow2"]);
    for part in ["format: qcow2", "3145728 bytes", "backing image: b.qcow2 (format: qcow2)"] {
        assert!(info.contains(part), "{part} is not in {info}");
    }
    assert!(good(folder, &["info", "a.img"]).contains("format: raw"));
    good(folder, &["convert", "top.qcow2", "d.img"]);
    assert!(fs::read(folder.join("d.img")).expect("there") == bytes);

    // QEMU's tool finds nothing wrong and reads the same.
    for name in ["b.qcow2", "top.qcow2", "empty.qcow2"] {
        let Ok(output) =
            Command::new("qemu-img").current_dir(folder).args(["check", name]).output()
        else {
            eprintln!("SKIPPED: qemu-img is not installed (apt install qemu-utils)");
            return;
        };
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
    let compared = Command::new("qemu-img")
        .current_dir(folder)
        .args(["compare", "top.qcow2", "a.img"])
        .status();
    assert!(compared.expect("it was there").success());
}

/// 60 TiB, of which a few sectors are there: nobody could wait for all of them.
#[test]
fn holes_of_a_large_disk_are_not_read() {
    use std::os::unix::fs::FileExt;
    let scratch = Scratch::new("images-holes");
    let folder = scratch.path();
    good(folder, &["create", "empty.qcow2", "60T"]);
    good(folder, &["create", "-b", "empty.qcow2", "top.qcow2"]);
    good(folder, &["convert", "top.qcow2", "copy.qcow2"]);
    assert!(good(folder, &["info", "copy.qcow2"]).contains("(65970697666560 bytes)"));
    let large = fs::File::create(folder.join("a.img")).expect("writable");
    if large.set_len(4 << 40).is_err() {
        eprintln!("SKIPPED: no files of 4 TiB here");
        return;
    }
    large.write_all_at(&[1; 600], (3 << 40) + 77).expect("writable");
    good(folder, &["convert", "a.img", "b.qcow2"]);
    good(folder, &["convert", "b.qcow2", "c.img"]);
    let copy = fs::File::open(folder.join("c.img")).expect("there");
    assert_eq!(copy.metadata().expect("there").len(), 4 << 40);
    let mut bytes = [0xa5; 700];
    copy.read_exact_at(&mut bytes, (3 << 40) + 27).expect("there");
    assert!(bytes[50..650] == [1; 600] && bytes[..50] == [0; 50] && bytes[650..] == [0; 50]);
}

#[test]
fn nothing_that_is_there_is_lost() {
    let scratch = Scratch::new("images-kept");
    let folder = scratch.path();
    fs::write(folder.join("here"), [1; 1024]).expect("writable");
    fs::create_dir(folder.join("folder")).expect("writable");
    fs::write(folder.join("noise"), [0xa5; 1 << 20]).expect("writable");
    refused(folder, &["create", "here", "1M"], "here: it is there already");
    refused(folder, &["convert", "here", "here"], "here: it is there already");
    // A file system that has no room, as far as this process can tell.
    let full = Command::new("sh")
        .current_dir(folder)
        .args(["-c", "ulimit -f 1000; trap '' XFSZ; exec \"$0\" image convert noise x.qcow2"])
        .arg(env!("CARGO_BIN_EXE_xenolith"))
        .output()
        .expect("a shell");
    let errors = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{errors}");
    assert!(errors.lines().count() == 1 && errors.contains("x.qcow2: cannot"), "{errors}");
    refused(folder, &["convert", "folder", "x"], "is a directory");
    refused(folder, &["convert", "gone", "x"], "gone: No such file");
    refused(folder, &["create", "none/x", "1M"], "none/x: cannot make it: No such file");
    refused(folder, &["create", "x", "0"], "at least 512 bytes");
    refused(folder, &["create", "x"], "<SIZE>");
    refused(folder, &["create", "-f", "vmdk", "x", "1M"], "neither raw nor qcow2");
    refused(folder, &["create", "-f", "raw", "-b", "here", "x"], "-f qcow2");
    refused(folder, &["create", "-b", "gone", "x"], "gone: No such file");
    refused(folder, &["create", "-b", "a:b", "x"], "put ./ before it");
    refused(folder, &["create", "x.qcow2", "9000000T"], "x.qcow2: cannot make it");
    refused(folder, &["info", "gone"], "gone: No such file");
    refused(folder, &["info", "folder"], "is a directory");
    // A header of a version that there isn't.
    let broken = [b"QFI\xfb\0\0\0\x09".as_slice(), &[0; 1016]].concat();
    fs::write(folder.join("broken"), &broken).expect("writable");
    refused(folder, &["info", "broken"], "broken: qcow2 version 9");
    refused(folder, &["convert", "broken", "x"], "broken: qcow2 version 9");
    refused(folder, &["create", "-b", "broken", "x.qcow2"], "broken: qcow2 version 9");
    assert_eq!(
        files(folder),
        ["broken", "folder", "here", "noise"],
        "nothing is left of what failed"
    );
    assert_eq!(fs::read(folder.join("broken")).expect("there"), broken);
    assert_eq!(fs::read(folder.join("here")).expect("there"), [1; 1024]);
}
