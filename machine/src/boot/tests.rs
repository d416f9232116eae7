//! Images built byte by byte, then cut, bent and shuffled.

use super::*;

mod packed;

fn request<'a>(kernel: &'a Bytes, map: &'a MemoryMap, initrd: Option<Vec<u8>>) -> Request<'a> {
    Request {
        kernel,
        kernel_path: Path::new("k"),
        initrd: initrd.map(Bytes::from),
        initrd_path: Path::new("i"),
        command_line: "console=ttyS0 quiet",
        map,
        rsdp: 0xe_0000,
        unpacker: Unpacker::Auto,
        long_mode: true,
    }
}

fn load_from(kernel: &[u8], initrd: Option<Vec<u8>>) -> Result<Loaded, ConfigError> {
    let map = MemoryMap::new(64 << 20);
    let kernel = kernel.to_vec().into();
    let loaded = load_image(request(&kernel, &map, initrd), &mut Random::fixed(0))?;
    check(&loaded, &map, Path::new("k"))?;
    Ok(loaded)
}

/// The byte at `gpa` after loading.
fn bytes_at(loaded: &Loaded, gpa: u64, len: usize) -> &[u8] {
    let piece = loaded
        .pieces
        .iter()
        .find(|piece| piece.gpa <= gpa && gpa - piece.gpa < piece.bytes.len() as u64)
        .expect("something is loaded there");
    &piece.bytes[(gpa - piece.gpa) as usize..][..len]
}

fn dword(loaded: &Loaded, gpa: u64) -> u32 {
    u32_at(bytes_at(loaded, gpa, 4), 0).expect("four bytes")
}

/// A bzImage of protocol 2.15 with `code_bytes` of code.
fn bzimage(code_bytes: usize) -> Vec<u8> {
    let mut image = vec![0; 1024 + code_bytes];
    image[0x1f1] = 1;
    put(&mut image, 0x1f4, &((code_bytes as u32).div_ceil(16)).to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    image[0x234] = 1;
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x100_0000u32.to_le_bytes());
    for (n, byte) in image[1024..].iter_mut().enumerate() {
        *byte = n as u8;
    }
    image
}

/// An ELF of one segment at 1 MiB; `note` goes into a PT_NOTE segment.
fn elf(wide: bool, body: &[u8], note: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    put(&mut image, 0, b"\x7fELF\x01\x01\x01");
    put(&mut image, 16, &2u16.to_le_bytes());
    let header = if wide { 56 } else { 32 };
    let table = 64;
    let note_at = 0x400;
    let mut word = |narrow: usize, wide_at: usize, value: u64| {
        if wide {
            put(&mut image, wide_at, &value.to_le_bytes());
        } else {
            put(&mut image, narrow, &(value as u32).to_le_bytes());
        }
    };
    word(24, 24, 0x10_0010);
    word(28, 32, table as u64);
    for (n, (offset, len)) in [(0x1000, body.len()), (note_at, note.len())].into_iter().enumerate()
    {
        let at = table + n * header;
        word(at + 4, at + 8, offset as u64);
        word(at + 8, at + 16, 0x10_0000);
        word(at + 12, at + 24, 0x10_0000);
        word(at + 16, at + 32, len as u64);
        word(at + 20, at + 40, 2 * len as u64);
        word(at + 28, at + 48, 4);
    }
    put(&mut image, table, &1u32.to_le_bytes());
    put(&mut image, table + header, &4u32.to_le_bytes());
    image[4] = if wide { 2 } else { 1 };
    put(&mut image, 18, &(if wide { 62u16 } else { 3 }).to_le_bytes());
    let (size_at, count_at) = if wide { (54, 56) } else { (42, 44) };
    put(&mut image, size_at, &(header as u16).to_le_bytes());
    put(&mut image, count_at, &2u16.to_le_bytes());
    put(&mut image, note_at, note);
    image.extend(body);
    image
}

fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    // Another note in front: the search must walk.
    for field in [4u32, 3, 1] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"GNU\0abc\0");
    for field in [4u32, 4, 18] {
        note.extend(field.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(0x10_0020u32.to_le_bytes());
    note
}

fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    [magic, flags, 0u32.wrapping_sub(magic.wrapping_add(flags))]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

fn flat_multiboot() -> Vec<u8> {
    let mut image = vec![0x90; 64];
    image.extend(multiboot_header(0x1_0003));
    for field in [0x10_0040u32, 0x10_0000, 0x10_0080, 0x11_0000, 0x10_0070] {
        image.extend(field.to_le_bytes());
    }
    image.resize(0x200, 0xcc);
    image
}

#[test]
fn bzimage_gets_its_boot_parameters() {
    let loaded = load_from(&bzimage(5000), Some(vec![7; 10_000])).expect("sound");
    assert_eq!((loaded.entry, loaded.esi), (0x10_0000, 0x7000));
    assert_eq!(bytes_at(&loaded, 0x10_0000, 3), [0, 1, 2]);
    let zero_page = place::BOOT_PARAMS;
    assert_eq!(bytes_at(&loaded, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(bytes_at(&loaded, zero_page + 0x210, 1), [0xff]);
    let command_line = u64::from(dword(&loaded, zero_page + 0x228));
    assert_eq!(bytes_at(&loaded, command_line, 20), b"console=ttyS0 quiet\0");
    let ramdisk = u64::from(dword(&loaded, zero_page + 0x218));
    assert_eq!(dword(&loaded, zero_page + 0x21c), 10_000);
    assert_eq!(ramdisk, (64 << 20) - 0x3000);
    assert_eq!(bytes_at(&loaded, ramdisk, 1), [7]);
    assert_eq!(dword(&loaded, zero_page + 0x70), 0xe_0000);
    let entries = bytes_at(&loaded, zero_page + 0x1e8, 1)[0];
    assert_eq!(usize::from(entries), MemoryMap::new(64 << 20).e820().len());
    assert_eq!(dword(&loaded, zero_page + 0x2d0 + 8), 0x9_fc00);
}

#[test]
fn damaged_bzimages_are_refused() {
    let good = bzimage(5000);
    load_from(&good, None).expect("sound");
    let cut = load_from(&good[..4000], None).expect_err("cut");
    assert!(cut.to_string().contains("cut short"), "{cut}");
    assert!(load_from(&good[..0x210], None).is_err());
    for len in 0..700 {
        assert!(load_from(&good[..len], None).is_err(), "{len} bytes");
    }
    let mut old = good.clone();
    put(&mut old, 0x206, &0x0105u16.to_le_bytes());
    assert!(load_from(&old, None).is_err());
    let mut big = good.clone();
    put(&mut big, 0x260, &0x1000_0000u32.to_le_bytes());
    let text = load_from(&big, None).expect_err("needs more than there is").to_string();
    assert!(text.contains("-m"), "{text}");
    let mut short_line = good.clone();
    put(&mut short_line, 0x238, &10u32.to_le_bytes());
    assert!(matches!(load_from(&short_line, None), Err(ConfigError::CommandLine { max: 10, .. })));
    let mut real_mode = good.clone();
    put(&mut real_mode, 0x214, &0u32.to_le_bytes());
    let text = load_from(&real_mode, None).expect_err("iPXE's is such").to_string();
    assert!(text.contains("only firmware"), "{text}");
    // A start below 1 MiB, or so high that the end overflows 32 bits.
    for start in [0x9_0000u32, 0xffff_fff0] {
        let mut bent = good.clone();
        put(&mut bent, 0x214, &start.to_le_bytes());
        assert!(load_from(&bent, None).is_err(), "{start:#x}");
    }
}

#[test]
fn bzimages_without_the_end_of_their_signature_are_refused() {
    for (magic, certificates) in [(0x10bu16, 24 + 96 + 32), (0x20b, 24 + 112 + 32)] {
        let mut image = bzimage(5000);
        let end = image.len() as u32;
        put(&mut image, 0, b"MZ");
        put(&mut image, 0x3c, &0x40u32.to_le_bytes());
        put(&mut image, 0x40, b"PE\0\0");
        put(&mut image, 0x40 + 24, &magic.to_le_bytes());
        put(&mut image, 0x40 + certificates, &end.to_le_bytes());
        put(&mut image, 0x40 + certificates + 4, &100u32.to_le_bytes());
        image.extend([0; 100]);
        assert!(load_from(&image, None).is_ok());
        let error = load_from(&image[..image.len() - 1], None).expect_err("cut");
        assert!(error.to_string().contains("signature"), "{error}");
    }
}

#[test]
fn initrd_must_fit() {
    for kernel in [bzimage(5000), elf(true, &[0x90; 64], &pvh_note()), flat_multiboot()] {
        let error = load_from(&kernel, Some(vec![0; 70 << 20])).expect_err("too large");
        assert!(matches!(error, ConfigError::Initrd { .. }), "{error}");
    }
}

#[test]
fn pvh_kernels_start_at_their_note() {
    for wide in [false, true] {
        let image = elf(wide, &[0x90; 64], &pvh_note());
        let loaded = load_from(&image, Some(vec![1; 5])).expect("sound");
        assert_eq!(loaded.entry, 0x10_0020);
        let info = u64::from(loaded.ebx);
        assert_eq!(dword(&loaded, info), 0x336e_c578);
        assert_eq!(dword(&loaded, info + 12), 1);
        let module = u64::from(dword(&loaded, info + 16));
        assert_eq!(bytes_at(&loaded, u64::from(dword(&loaded, module)), 5), [1; 5]);
        assert_eq!(dword(&loaded, module + 8), 5);
        assert_eq!(dword(&loaded, info + 32), 0xe_0000);
        let memory_map = u64::from(dword(&loaded, info + 40));
        assert_eq!(dword(&loaded, memory_map + 8), 0x9_fc00);
        assert_eq!(dword(&loaded, memory_map + 16), 1);
    }
}

#[test]
fn elf_headers_may_be_loaded_below_1_mib() {
    // `gcc -Wl,-Ttext=0x100000` makes a segment of the headers, in the page below the code.
    for wide in [false, true] {
        for note in [pvh_note(), multiboot_header(3)] {
            let mut image = elf(wide, &note, &pvh_note());
            let (physical, linear) = if wide { (24, 16) } else { (12, 8) };
            let table = 64;
            for at in [physical, linear] {
                put(&mut image, table + at, &0xf_f000u32.to_le_bytes());
            }
            let loaded = load_from(&image, None).expect("sound");
            assert_eq!(bytes_at(&loaded, 0xf_f000, note.len()), note);
        }
    }
}

#[test]
fn damaged_elf_files_are_refused() {
    let image = elf(true, &[0x90; 64], &pvh_note());
    for len in 4..image.len() {
        assert!(load_from(&image[..len], None).is_err(), "{len} bytes");
    }
    assert!(load_from(&elf(true, &[0x90; 64], b""), None).is_err(), "no note");
    // Sections are not loaded, but a file that promises more of them was cut.
    for wide in [false, true] {
        let mut sections = elf(wide, &[0x90; 64], &pvh_note());
        let (offset_at, size_at) = if wide { (40, 58) } else { (32, 46) };
        let end = sections.len() as u32;
        put(&mut sections, offset_at, &end.to_le_bytes());
        put(&mut sections, size_at, &[40, 0, 2, 0]);
        sections.extend([0; 80]);
        assert!(load_from(&sections, None).is_ok());
        assert!(load_from(&sections[..sections.len() - 1], None).is_err(), "a section missing");
    }
    // Every byte of the headers and notes bent: an error or a sane result, never a panic.
    for at in 4..0x440 {
        for value in [0, 0x7f, 0xff] {
            let mut bent = image.clone();
            bent[at] = value;
            let _ = load_from(&bent, Some(vec![0; 100]));
        }
    }
}

#[test]
fn multiboot_by_addresses() {
    let loaded = load_from(&flat_multiboot(), Some(vec![9; 3])).expect("sound");
    assert_eq!((loaded.entry, loaded.eax), (0x10_0070, 0x2bad_b002));
    assert_eq!(bytes_at(&loaded, 0x10_0000, 1), [0x90]);
    let info = u64::from(loaded.ebx);
    let flags = dword(&loaded, info);
    assert_eq!(flags, 0x24d);
    assert_eq!(dword(&loaded, info + 4), 639);
    assert_eq!(dword(&loaded, info + 8), 63 << 10);
    let line = u64::from(dword(&loaded, info + 16));
    assert_eq!(bytes_at(&loaded, line, 22), b"k console=ttyS0 quiet\0");
    assert_eq!(dword(&loaded, info + 20), 1);
    let module = u64::from(dword(&loaded, info + 24));
    let (start, end) = (dword(&loaded, module), dword(&loaded, module + 4));
    assert_eq!((start, end), (0x11_0000, 0x11_0003), "behind the bss");
    assert_eq!(bytes_at(&loaded, u64::from(dword(&loaded, module + 8)), 2), b"i\0");
    let map_bytes = dword(&loaded, info + 44);
    let map = u64::from(dword(&loaded, info + 48));
    assert_eq!((dword(&loaded, map), dword(&loaded, map + 12)), (20, 0x9_fc00));
    assert_eq!(map_bytes as usize, 24 * MemoryMap::new(64 << 20).e820().len());
    assert_eq!(&bytes_at(&loaded, u64::from(dword(&loaded, info + 64)), 9), b"xenolith\0");
}

#[test]
fn multiboot_by_elf_headers() {
    for wide in [false, true] {
        let loaded = load_from(&elf(wide, &multiboot_header(3), b""), None).expect("sound");
        assert_eq!((loaded.entry, loaded.eax), (0x10_0010, 0x2bad_b002));
        assert_eq!(dword(&loaded, 0x10_0000), 0x1bad_b002);
    }
}

#[test]
fn multiboot_kernels_in_low_memory_get_their_information_around_them() {
    // From each start, with zeroed memory behind the image, over each of the loader's usual places.
    for start in [0x500u32, 0x1000, 0x7c00, 0xf000, 0x2_0000] {
        let mut image = flat_multiboot();
        let header_at = 64;
        let end = start + 0x1_8000;
        for (n, value) in [start + 64, start, 0, end, start + 0x70].into_iter().enumerate() {
            put(&mut image, header_at + 12 + 4 * n, &value.to_le_bytes());
        }
        for module in [None, Some(vec![9; 0x1_0000]), Some(vec![9; 1 << 20])] {
            let loaded = load_from(&image, module.clone()).expect("there is room");
            assert_eq!(loaded.entry, start + 0x70);
            let line = u64::from(dword(&loaded, u64::from(loaded.ebx) + 16));
            assert_eq!(bytes_at(&loaded, line, 22), b"k console=ttyS0 quiet\0");
            let within = |piece: &&Piece| {
                piece.gpa < u64::from(end)
                    && u64::from(start) < piece.gpa + piece.bytes.len() as u64
            };
            let inside: Vec<_> = loaded.pieces.iter().filter(within).collect();
            assert_eq!(inside.len(), 1, "only the kernel itself: {inside:?}");
            let table = loaded.pieces.iter().find(|piece| piece.gpa == loaded.gdt);
            assert_eq!(table.map(|piece| piece.bytes.len()), Some(48));
            if let Some(module) = module {
                let list = u64::from(dword(&loaded, u64::from(loaded.ebx) + 24));
                let at = dword(&loaded, list);
                assert!(at >= end && bytes_at(&loaded, u64::from(at), module.len()) == module);
            }
        }
    }
    let mut image = flat_multiboot();
    for (n, value) in [0x540u32, 0x500, 0, 0x9_fc00, 0x570].into_iter().enumerate() {
        put(&mut image, 76 + 4 * n, &value.to_le_bytes());
    }
    let error = load_from(&image, None).expect_err("no room").to_string();
    assert!(error.contains("leaves no room"), "{error}");
}

#[test]
fn damaged_multiboot_images_are_refused() {
    assert!(load_from(&elf(false, &multiboot_header(0x8), b""), None).is_err(), "unknown flag");
    assert!(load_from(&multiboot_header(0), None).is_err(), "neither addresses nor ELF");
    let image = flat_multiboot();
    for len in 0..0x80 {
        assert!(load_from(&image[..len], None).is_err(), "{len} bytes");
    }
    for at in 64..100 {
        for value in [0, 0x7f, 0xff] {
            let mut bent = image.clone();
            bent[at] = value;
            let _ = load_from(&bent, Some(vec![0; 100]));
        }
    }
    let mut checksum = image.clone();
    checksum[64 + 8] ^= 1;
    assert!(matches!(load_from(&checksum, None), Err(ConfigError::UnknownKernel { .. })));
}

#[test]
fn the_error_says_what_the_file_seems_to_be() {
    for (bytes, word) in [
        (&b"#!/bin/sh\necho hello\n"[..], "text"),
        (b"", "empty"),
        (b"\x1f\x8b\x08aaaaaaaaaa", "compressed"),
    ] {
        let text = load_from(bytes, None).expect_err("no kernel").to_string();
        assert!(text.contains(word) && text.contains("bzImage") && !text.contains('\n'), "{text}");
    }
}
