//! Kernels compressed in each way, sound and not, and where they are put.

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

use super::*;

/// Where small kernels are linked for.
const AT: u64 = 16 << 20;
const WINDOW: u64 = 0xffff_ffff_8000_0000;
const PAGE_OFFSET: u64 = 0xc000_0000;
/// In a test's image: where the compressed kernel begins.
const PAYLOAD_AT: usize = 0x200;
const MEMORY: u64 = 128 << 20;

/// A kernel of one segment with `body`, and as many zeroes behind it, linked at [`AT`]; `behind` follows the file.
fn vmlinux(wide: bool, body: &[u8], behind: &[u32]) -> Vec<u8> {
    let mut image = elf(wide, body, b"");
    let (header, table) = (if wide { 56 } else { 32 }, 64);
    let base = if wide { WINDOW } else { PAGE_OFFSET };
    let mut word = |narrow: usize, wide_at: usize, value: u64| {
        if wide {
            put(&mut image, wide_at, &value.to_le_bytes());
        } else {
            put(&mut image, narrow, &(value as u32).to_le_bytes());
        }
    };
    word(24, 24, AT + 0x10);
    word(table + 8, table + 16, base + AT);
    word(table + 12, table + 24, AT);
    // No second one.
    put(&mut image, table + header, &0u32.to_le_bytes());
    // The file ends with its section headers, of which there are none.
    let end = image.len() as u64;
    if wide {
        put(&mut image, 40, &end.to_le_bytes());
    } else {
        put(&mut image, 32, &(end as u32).to_le_bytes());
    }
    image.extend(behind.iter().flat_map(|word| word.to_le_bytes()));
    image
}

/// What a kernel's code looks like to a filter for it: calls to the same place from everywhere.
fn code() -> Vec<u8> {
    (0..5000u32)
        .flat_map(|n| [vec![0xe8], (0x10_0000 - 5 * n).to_le_bytes().to_vec()].concat())
        .collect()
}

fn encode(mut stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; bytes.len() + 0x1000];
    let status = stream.process(bytes, &mut out, Action::Finish).expect("memory");
    assert_eq!(status, Status::StreamEnd);
    out.truncate(stream.total_out() as usize);
    out
}

/// The compressed kernel with its size behind it, in the way of the name.
fn compress(format: &str, kernel: &[u8]) -> Vec<u8> {
    let options = LzmaOptions::new_preset(6).expect("a preset");
    let size = (kernel.len() as u32).to_le_bytes();
    let mut packed = match format {
        "gzip" => {
            let mut member = vec![0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 3];
            // An extra field, a name, a comment, the header's checksum.
            member.extend(b"\x03\0xyzname\0comment\0cc");
            member.extend(miniz_oxide::deflate::compress_to_vec(kernel, 6));
            member.extend(crc32fast::hash(kernel).to_le_bytes());
            member
        }
        "lz4" => {
            let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
            for block in kernel.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                frame.extend((block.len() as u32).to_le_bytes());
                frame.extend(block);
            }
            frame
        }
        "lzma" => encode(Stream::new_lzma_encoder(&options).expect("memory"), kernel),
        "xz" => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&options);
            encode(Stream::new_stream_encoder(&filters, Check::Crc32).expect("memory"), kernel)
        }
        "zstd" => zstd::bulk::compress(kernel, 3).expect("memory"),
        _ => panic!("{format} is no format"),
    };
    packed.extend(size);
    packed
}

const FORMATS: [&str; 5] = ["gzip", "lz4", "lzma", "xz", "zstd"];

/// A bzImage with that payload, whose unpacker has `words` in it.
fn image(payload: &[u8], words: &[u8]) -> Vec<u8> {
    let mut code = vec![0x90; PAYLOAD_AT];
    code.extend(payload);
    code.extend(words);
    let mut image = bzimage(code.len());
    image.truncate(1024);
    image.extend(&code);
    put(&mut image, 0x248, &(PAYLOAD_AT as u32).to_le_bytes());
    put(&mut image, 0x24c, &(payload.len() as u32).to_le_bytes());
    image
}

struct Boot<'a> {
    unpacker: Unpacker,
    long_mode: bool,
    command_line: &'a str,
    initrd: Option<Vec<u8>>,
    seed: u64,
}

const HERE: Boot<'_> = Boot {
    unpacker: Unpacker::Host,
    long_mode: true,
    command_line: "quiet",
    initrd: None,
    seed: 0,
};
const AUTO: Boot<'_> = Boot { unpacker: Unpacker::Auto, ..HERE };

impl Boot<'_> {
    fn load(&self, kernel: &[u8]) -> Result<Loaded, ConfigError> {
        let map = MemoryMap::new(MEMORY);
        let kernel = kernel.to_vec().into();
        let request = Request {
            unpacker: self.unpacker,
            long_mode: self.long_mode,
            command_line: self.command_line,
            ..request(&kernel, &map, self.initrd.clone())
        };
        let loaded = load_image(request, &mut Random::fixed(self.seed))?;
        check(&loaded, &map, Path::new("k"))?;
        Ok(loaded)
    }
}

/// Whether the kernel's own unpacker is entered.
fn by_guest(loaded: &Loaded) -> bool {
    let own = loaded.pieces.iter().any(|piece| piece.gpa == 0x10_0000);
    assert_eq!(loaded.entry == 0x10_0000, own);
    assert!(!own || loaded.page_tables.is_none());
    own
}

/// It isn't unpacked here, for that reason, and starts all the same.
fn left_to_guest(kernel: &[u8], reason: &str) {
    assert!(by_guest(&AUTO.load(kernel).expect("never an error")), "{reason}");
    let error = HERE.load(kernel).expect_err(reason).to_string();
    assert!(error.starts_with("--kernel k: it can't be unpacked here: "), "{error}");
    assert!(error.contains(reason), "{error} has no {reason:?}");
}

#[test]
fn kernels_are_unpacked_from_every_format() {
    for format in FORMATS {
        for wide in [false, true] {
            let body = code();
            let kernel = image(&compress(format, &vmlinux(wide, &body, &[])), b"");
            let loaded = HERE.load(&kernel).expect(format);
            assert_eq!((u64::from(loaded.entry), loaded.esi), (AT + 0x10, 0x7000), "{format}");
            assert!(bytes_at(&loaded, AT, body.len()) == body, "{format}");
            assert_eq!(loaded.page_tables.is_some(), wide);
            assert!(loaded.pieces.iter().all(|piece| piece.gpa != 0x10_0000));
            // No address was chosen.
            assert_eq!(bytes_at(&loaded, place::BOOT_PARAMS + 0x211, 1), [1]);
            let guest = Boot { unpacker: Unpacker::Guest, ..HERE }.load(&kernel).expect(format);
            assert!(by_guest(&guest));
        }
    }
}

#[test]
fn large_kernels_have_several_blocks() {
    let body: Vec<u8> = (0..5_000_000u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
    for format in ["lz4", "zstd"] {
        let mut kernel = image(&compress(format, &vmlinux(true, &body, &[])), b"");
        put(&mut kernel, 0x260, &0x400_0000u32.to_le_bytes());
        let loaded = HERE.load(&kernel).expect(format);
        assert!(bytes_at(&loaded, AT, body.len()) == body, "{format}");
    }
}

#[test]
fn unpacked_kernels_are_entered_as_the_boot_protocol_says() {
    for wide in [false, true] {
        let kernel = image(&compress("zstd", &vmlinux(wide, &code(), &[])), b"");
        let loaded = HERE.load(&kernel).expect("sound");
        let mut cpu = CpuState::reset(0);
        loaded.enter(&mut cpu);
        assert_eq!((cpu.rip, cpu.gpr[6], cpu.rflags), (AT + 0x10, 0x7000, 2));
        assert_eq!(cpu.seg.map(|segment| segment.selector), {
            let mut selectors = [0x18; 6];
            selectors[sreg::CS] = 0x10;
            selectors
        });
        assert_eq!((cpu.is_64bit(), cpu.long_mode(), cpu.cr0 >> 31 & 1 == 1), (wide, wide, wide));
        let code = u64_at(bytes_at(&loaded, cpu.gdtr.base + 0x10, 8), 0);
        assert_eq!(code, Some(if wide { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff }));
        if !wide {
            continue;
        }
        // Every page below 4 GiB is mapped to itself.
        let entry = |table: u64, n: u64| {
            u64_at(bytes_at(&loaded, (table & !0xfff) + 8 * n, 8), 0).expect("eight bytes")
        };
        for address in [0, 0x20_0000, AT, 0x3fff_ffff, 0x4000_0000, 0xbfff_ffff, 0xffff_ffff] {
            let top = entry(cpu.cr3, address >> 39);
            let upper = entry(top, address >> 30 & 0x1ff);
            let page = entry(upper, address >> 21 & 0x1ff);
            assert_eq!((top & 0xfff, upper & 0xfff), (3, 3));
            assert_eq!(page, address & !0x1f_ffff | 0x83, "{address:#x}");
        }
    }
}

#[test]
fn damaged_payloads_are_left_to_the_guest() {
    for format in FORMATS {
        let good = compress(format, &vmlinux(true, &code(), &[]));
        for len in (0..good.len()).step_by(97).chain(good.len() - 12..good.len()) {
            let kernel = image(&good[..len], b"");
            assert!(by_guest(&AUTO.load(&kernel).expect("never an error")), "{format} {len}");
        }
        for at in (0..good.len()).step_by(53).chain(good.len() - 12..good.len()) {
            let mut bent = good.clone();
            bent[at] ^= 0x41;
            let loaded = AUTO.load(&image(&bent, b"")).expect("never an error");
            // LZ4, LZMA and this Zstandard have no checksum: a wrong byte may be the kernel's.
            assert!(
                by_guest(&loaded) || !["gzip", "xz"].contains(&format) || at < 32,
                "{format} {at}"
            );
        }
        // A size that is not the kernel's.
        for change in [-1i64, 1, 0x1000] {
            let mut bent = good.clone();
            let at = good.len() - 4;
            let size = i64::from(u32_at(&good, at).expect("four bytes")) + change;
            put(&mut bent, at, &(size as u32).to_le_bytes());
            assert!(by_guest(&AUTO.load(&image(&bent, b"")).expect("never an error")), "{format}");
        }
    }
}

#[test]
fn hostile_sizes_are_not_believed() {
    let good = compress("lzma", &vmlinux(true, &code(), &[]));
    for size in [0x100_0001u32, 0x8000_0000, 0xffff_ffff] {
        let mut bent = good.clone();
        put(&mut bent, good.len() - 4, &size.to_le_bytes());
        left_to_guest(&image(&bent, b""), "has room for 0x1000000");
    }
    // A dictionary of almost 4 GiB.
    let mut window = good.clone();
    put(&mut window, 2, &[0xff; 3]);
    left_to_guest(&image(&window, b""), "memory");
}

#[test]
fn images_without_a_payload_that_we_know_are_left_to_the_guest() {
    let good = compress("xz", &vmlinux(true, &code(), &[]));
    left_to_guest(&image(b"BZh91AY&SY and more", b""), "compression is unknown");
    left_to_guest(&image(b"", b""), "compression is unknown");
    left_to_guest(&image(&compress("xz", b"a flat kernel"), b""), "neither 32-bit nor 64-bit");
    let mut none = image(&good, b"");
    put(&mut none, 0x248, &[0; 8]);
    left_to_guest(&none, "doesn't say where");
    for (offset, len) in [(u32::MAX, 100), (0x200, u32::MAX), (0x200, good.len() as u32 + 1)] {
        let mut outside = image(&good, b"");
        put(&mut outside, 0x248, &offset.to_le_bytes());
        put(&mut outside, 0x24c, &len.to_le_bytes());
        left_to_guest(&outside, "not inside the file");
    }
    // Protocol 2.07, whose header ended before the fields.
    let mut old = image(&good, b"");
    put(&mut old, 0x206, &0x0207u16.to_le_bytes());
    old[0x201] = 0x46;
    left_to_guest(&old, "doesn't say where");
    let kernel = image(&good, b"");
    let i686 = Boot { long_mode: false, ..AUTO };
    assert!(by_guest(&i686.load(&kernel).expect("as before")));
    let narrow = image(&compress("xz", &vmlinux(false, &code(), &[])), b"");
    assert!(!by_guest(&i686.load(&narrow).expect("sound")));
}

#[test]
fn kernels_that_do_not_fit_are_left_to_the_guest() {
    let (physical, memory_bytes, machine, entry) = (64 + 24, 64 + 40, 18, 24);
    let bent = |at: usize, value: u64| {
        let mut kernel = vmlinux(true, &code(), &[]);
        put(&mut kernel, at, &value.to_le_bytes());
        image(&compress("zstd", &kernel), b"")
    };
    for at in [0, 0x9000, 0xf_f000, MEMORY - 0x1000, 1 << 32, u64::MAX - 0x10_0000] {
        let mut kernel = vmlinux(true, &code(), &[]);
        put(&mut kernel, physical, &at.to_le_bytes());
        put(&mut kernel, entry, &at.to_le_bytes());
        left_to_guest(&image(&compress("zstd", &kernel), b""), "it wants memory");
    }
    left_to_guest(&bent(memory_bytes, MEMORY), "it wants memory");
    left_to_guest(&bent(memory_bytes, u64::MAX), "wraps around");
    left_to_guest(&bent(memory_bytes, 10), "larger in the file than in memory");
    left_to_guest(&bent(entry, AT - 1), "entry point");
    left_to_guest(&bent(entry, WINDOW + AT), "entry point");
    let of = |number: u16| {
        let mut kernel = vmlinux(true, &code(), &[]);
        put(&mut kernel, machine, &number.to_le_bytes());
        image(&compress("zstd", &kernel), b"")
    };
    left_to_guest(&of(3), "word size");
    left_to_guest(&of(183), "not for x86");
    // Its zeroed memory reaches into the initrd, which is at the end of memory.
    let wide = bent(memory_bytes, MEMORY - AT - 0x2000);
    assert!(!by_guest(&AUTO.load(&wide).expect("sound")));
    let with_initrd = Boot { initrd: Some(vec![7; 0x8000]), ..AUTO };
    assert!(by_guest(&with_initrd.load(&wide).expect("sound")));
    // Two segments at the same place.
    let mut twice = vmlinux(true, &code(), &[]);
    let segment = twice[64..64 + 56].to_vec();
    put(&mut twice, 64 + 56, &segment);
    left_to_guest(&image(&compress("zstd", &twice), b""), "two parts want the memory");
}

/// What an unpacker that knows random addresses has in it.
const KNOWS: &[u8] = b"nokaslr\0Physical KASLR disabled: no suitable memory region!\n\0";

/// A kernel with three words that depend on its address, and the tables that say so.
fn relocatable(wide: bool, inverse: bool) -> Vec<u8> {
    let base = if wide { WINDOW } else { PAGE_OFFSET };
    let mut body = vec![0; 0x1000];
    put(&mut body, 0x100, &((base + AT + 0x123) as u32).to_le_bytes());
    put(&mut body, 0x200, &0x5000u32.to_le_bytes());
    put(&mut body, 0x300, &(WINDOW + AT + 0x456).to_le_bytes());
    let at = |offset: u64| (base + AT + offset) as u32;
    let tables = match (wide, inverse) {
        (false, _) => vec![0, at(0x100)],
        (true, false) => vec![0, at(0x300), 0, at(0x100)],
        (true, true) => vec![0, at(0x300), 0, at(0x200), 0, at(0x100)],
    };
    vmlinux(wide, &body, &tables)
}

/// Of a loaded kernel: how far it is from where it was linked for, in memory and in its window.
fn moved(loaded: &Loaded, wide: bool) -> (u64, u64) {
    let at = u64::from(loaded.entry) - 0x10;
    let base = if wide { WINDOW } else { PAGE_OFFSET };
    let word = dword(loaded, at + 0x100);
    (at - AT, u64::from(word.wrapping_sub((base + AT + 0x123) as u32)))
}

#[test]
fn kernels_are_put_at_random_addresses() {
    for (wide, inverse) in [(false, false), (true, false), (true, true)] {
        let kernel = image(&compress("zstd", &relocatable(wide, inverse)), KNOWS);
        let mut places = std::collections::BTreeSet::new();
        for seed in 0..150 {
            let boot = Boot { initrd: Some(vec![7; 1 << 20]), seed, ..HERE };
            let loaded = boot.load(&kernel).expect("sound");
            assert!(loaded == boot.load(&kernel).expect("sound"), "a seed is a place");
            let (physical, linear) = moved(&loaded, wide);
            assert!(physical.is_multiple_of(2 << 20) && linear.is_multiple_of(2 << 20));
            assert!(wide || physical == linear);
            // The room that it says it needs is free, in memory and in its window.
            let initrd = u64::from(dword(&loaded, place::BOOT_PARAMS + 0x218));
            assert!(AT + physical + 0x100_0000 <= initrd && initrd + (1 << 20) <= MEMORY);
            assert!(!wide || AT + linear + 0x100_0000 <= 1 << 30);
            if wide {
                let at = u64::from(loaded.entry) - 0x10;
                let word = u64_at(bytes_at(&loaded, at + 0x300, 8), 0);
                assert_eq!(word, Some(WINDOW + AT + 0x456 + linear));
                let taken_off =
                    if inverse { 0x5000u32.wrapping_sub(linear as u32) } else { 0x5000 };
                assert_eq!(dword(&loaded, at + 0x200), taken_off);
            }
            assert_eq!(bytes_at(&loaded, place::BOOT_PARAMS + 0x211, 1), [3], "the kernel is told");
            places.insert((physical, linear));
        }
        // Of 48 places in memory, with 497 in the window each.
        let least = if wide { 120 } else { 30 };
        assert!(places.len() > least, "{} places", places.len());
    }
}

#[test]
fn kernels_stay_where_they_must() {
    let sound = compress("zstd", &relocatable(true, true));
    let fixed = |kernel: &[u8], command_line| {
        for seed in 0..20 {
            let boot = Boot { command_line, seed, ..HERE };
            let loaded = boot.load(kernel).expect("sound");
            assert_eq!(moved(&loaded, true), (0, 0));
            assert_eq!(bytes_at(&loaded, place::BOOT_PARAMS + 0x211, 1), [1]);
        }
    };
    fixed(&image(&sound, KNOWS), "console=ttyS0 nokaslr quiet");
    fixed(&image(&sound, b""), "quiet");
    fixed(&image(&sound, b"nokaslr\0"), "quiet");
    let mut bound = image(&sound, KNOWS);
    bound[0x234] = 0;
    fixed(&bound, "quiet");
    let mut odd = image(&sound, KNOWS);
    put(&mut odd, 0x230, &0x30_0000u32.to_le_bytes());
    fixed(&odd, "quiet");
    // Where memory is taken away it moves in its window only.
    let boot = Boot { command_line: "nokaslrx mem=64M", seed: 3, ..HERE };
    let (physical, linear) = moved(&boot.load(&image(&sound, KNOWS)).expect("sound"), true);
    assert!(physical == 0 && linear != 0);
}

#[test]
fn odd_relocations_are_left_to_the_guest() {
    let (kernel, at) = (vmlinux(true, &[0; 0x1000], &[]), (WINDOW + AT) as u32);
    let cases: [(&[u32], &str); 8] = [
        (&[], "no known form"),
        (&[0, at], "no known form"),
        (&[at, 0, at], "no known form"),
        (&[0, at, 0, at, 0, at, 0, at], "no known form"),
        (&[0, 0, at + 0xffe], "outside of it"),
        (&[0, at + 0xff9, 0], "outside of it"),
        (&[0, 0, at - 1], "outside of it"),
        (&[0, 0, 1], "outside of it"),
    ];
    for (tables, reason) in cases {
        let mut kernel = kernel.clone();
        kernel.extend(tables.iter().flat_map(|word| word.to_le_bytes()));
        left_to_guest(&image(&compress("zstd", &kernel), KNOWS), reason);
    }
}
