//! Files that the library makes, files made by hand, and what becomes of both when they are bent: the library decides.

use liblzma::stream::{Action, Check, Filters, LzmaOptions, Status, Stream};

use super::*;
use crate::random::Random;

fn pack(mut stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(bytes.len() + 0x1000);
    let status = stream.process_vec(bytes, &mut file, Action::Finish).expect("memory");
    assert_eq!(status, Status::StreamEnd);
    file
}

fn options() -> LzmaOptions {
    let mut options = LzmaOptions::new_preset(1).expect("a preset");
    options.dict_size(0x1_0000);
    options
}

fn with(filters: &Filters, check: Check, bytes: &[u8]) -> Vec<u8> {
    pack(Stream::new_stream_encoder(filters, check).expect("memory"), bytes)
}

fn usual() -> Filters {
    let mut filters = Filters::new();
    filters.x86().lzma2(&options());
    filters
}

/// The library's result, if it is so many bytes.
fn theirs(file: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut kernel = vec![0; bytes];
    let mut stream = Stream::new_stream_decoder(u64::MAX, 0).expect("memory");
    loop {
        let (read, filled) = (stream.total_in() as usize, stream.total_out() as usize);
        match stream.process(&file[read..], &mut kernel[filled..], Action::Finish).ok()? {
            Status::StreamEnd => return (stream.total_out() as usize == bytes).then_some(kernel),
            Status::MemNeeded => return None,
            _ => {}
        }
    }
}

/// Ours, the same way. `None` if it is left to the library.
fn ours(file: &[u8], bytes: usize) -> Option<Result<Vec<u8>, String>> {
    let block = Block::of(file)?;
    let mut kernel = vec![0; bytes];
    Some(match block.unpack(u64::MAX, &mut kernel) {
        Ok(size) if size == bytes => Ok(kernel),
        Ok(size) => Err(format!("{size} bytes")),
        Err(reason) => Err(reason),
    })
}

/// What we make of a file is what the library makes of it. Whether it is taken here.
fn judge(file: &[u8], bytes: usize) -> bool {
    let ours = ours(file, bytes);
    if let Some(ours) = &ours {
        assert!(
            ours.as_ref().ok() == theirs(file, bytes).as_ref(),
            "{:?} of {file:02x?}",
            ours.as_ref().err()
        );
    }
    ours.is_some()
}

/// Calls to one place, and now and then something else.
fn code(bytes: usize) -> Vec<u8> {
    let mut random = Random::fixed(bytes as u64);
    let mut code = Vec::new();
    while code.len() < bytes {
        match random.draw() % 4 {
            0 => code.extend(random.draw().to_le_bytes()),
            1 => code.extend([0xe9, 0, 0xe8, 0xff, 0xff, 0xff]),
            _ => {
                code.push(0xe8);
                code.extend(0x10_0000u32.wrapping_sub(code.len() as u32).to_le_bytes());
            }
        }
    }
    code.truncate(bytes);
    code
}

/// A number as the format writes it.
fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// A file of `kernel`, stored, in parts that can be bent before they get their checksums.
struct Parts {
    flags: Vec<u8>,
    header: Vec<u8>,
    body: Vec<u8>,
    index: Vec<u8>,
    footer: Vec<u8>,
}

impl Parts {
    /// With such bits for fields that may be there, and the x86 filter with such an offset.
    fn of(kernel: &[u8], fields: u8, start: Option<&[u8]>, window: u8) -> Self {
        let mut data = vec![1];
        data.extend((kernel.len() as u16 - 1).to_be_bytes());
        data.extend(kernel);
        data.push(0);
        let mut unpacked = kernel.to_vec();
        let mut header = vec![0, fields | u8::from(start.is_some())];
        let sizes = [data.len() as u64, kernel.len() as u64];
        for (bit, size) in [0x40, 0x80].into_iter().zip(sizes) {
            if fields & bit != 0 {
                header.extend(number(size));
            }
        }
        if let Some(start) = start {
            header.extend([4, start.len() as u8]);
            header.extend(start);
            let start = start.try_into().map_or(0, u32::from_le_bytes);
            Filter::new(start).undo(&mut unpacked);
        }
        header.extend([0x21, 1, window]);
        header.resize(header.len().next_multiple_of(4) + 4, 0);
        header[0] = (header.len() / 4) as u8;
        let packed = header.len() as u64 + 4 + sizes[0] + 4;
        let mut body = data;
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(crc32fast::hash(&unpacked).to_le_bytes());
        let mut index = [vec![0, 1], number(packed), number(sizes[1])].concat();
        index.resize(index.len().next_multiple_of(4), 0);
        let mut footer = (index.len() as u32 / 4).to_le_bytes().to_vec();
        footer.extend([0, 1]);
        Self { flags: vec![0, 1], header, body, index, footer }
    }

    fn file(&self) -> Vec<u8> {
        let footer = [&crc32fast::hash(&self.footer).to_le_bytes()[..], &self.footer].concat();
        let ends = [&MAGIC[..], &FOOTER_MAGIC];
        let [flags, header, index] =
            [&self.flags, &self.header, &self.index].map(|part| seal(part.clone()));
        [ends[0], &flags, &header, &self.body, &index, &footer, ends[1]].concat()
    }

    fn all(&mut self) -> [&mut Vec<u8>; 5] {
        [&mut self.flags, &mut self.header, &mut self.body, &mut self.index, &mut self.footer]
    }
}

/// Without the x86 filter, and with it.
const STARTS: [Option<&[u8]>; 3] = [None, Some(&[]), Some(&[0x10, 0x32, 0x54, 0x76])];

#[test]
fn usual_files_are_unpacked_here() {
    let mut plain = Filters::new();
    plain.lzma2(&options());
    let mut started = Filters::new();
    started.x86_properties(&0x1234_5678u32.to_le_bytes()).expect("an offset").lzma2(&options());
    for filters in [usual(), plain, started] {
        for check in [Check::Crc32, Check::None] {
            for bytes in [0, 1, 4, 5, 6, 4095, 0x1_0000, PIECE_BYTES, PIECE_BYTES + 3, 3_000_000] {
                let kernel = code(bytes);
                let file = with(&filters, check, &kernel);
                // An empty file has no block.
                assert_eq!(ours(&file, bytes).is_some(), bytes > 0);
                assert!(bytes == 0 || ours(&file, bytes) == Some(Ok(kernel)), "{check:?} {bytes}");
                assert!(bytes == 0 || matches!(ours(&file, bytes + 1), Some(Err(_))));
            }
        }
    }
    for fields in [0, 0x40, 0x80, 0xc0] {
        for start in STARTS {
            let file = Parts::of(&code(300), fields, start, 22).file();
            let unpacked = ours(&file, 300).expect("usual").expect("sound");
            assert!(judge(&file, 300) && (start.is_some() || unpacked == code(300)));
        }
    }
}

#[test]
fn other_files_are_left_to_the_library() {
    let kernel = code(20_000);
    let mut delta = Filters::new();
    delta.delta_properties(&[3]).expect("a distance").lzma2(&options());
    let mut twice = Filters::new();
    twice.x86().x86().lzma2(&options());
    let mut blocks = Stream::new_stream_encoder(&usual(), Check::Crc32).expect("memory");
    let mut two = Vec::with_capacity(0x1_0000);
    blocks.process_vec(&kernel[..7000], &mut two, Action::FullFlush).expect("memory");
    blocks.process_vec(&kernel[7000..], &mut two, Action::Finish).expect("memory");
    let good = with(&usual(), Check::Crc32, &kernel);
    let behind = [&good[..], &[0; 4]].concat();
    let files = [
        with(&usual(), Check::Crc64, &kernel),
        with(&usual(), Check::Sha256, &kernel),
        with(&delta, Check::Crc32, &kernel),
        with(&twice, Check::Crc32, &kernel),
        two,
        behind,
    ];
    for (n, file) in files.iter().enumerate() {
        assert!(Block::of(file).is_none(), "{n}");
        assert!(theirs(file, kernel.len()).as_ref() == Some(&kernel), "{n}");
    }
    for len in 0..good.len() {
        assert!(Block::of(&good[..len]).is_none(), "{len}");
    }
}

#[test]
fn bent_files_are_what_the_library_makes_of_them() {
    // Compressed, longer than its window, and with a checksum that finds everything.
    let kernel = code(0x1_4000);
    let good = with(&usual(), Check::Crc32, &kernel);
    let mut taken = 0;
    for at in (0..good.len()).step_by(good.len() / 600) {
        let mut bent = good.clone();
        bent[at] ^= 1 << (at % 8);
        taken += usize::from(judge(&bent, kernel.len()));
        assert!(!matches!(ours(&bent, kernel.len()), Some(Ok(_))), "{at}");
    }
    assert!(taken > 500, "{taken}");
}

/// With checksums that are right again.
#[test]
fn bent_fields_are_what_the_library_makes_of_them() {
    let kernel = code(23);
    let mut random = Random::fixed(1);
    let (mut taken, mut sound) = (0, 0);
    let mut each = |parts: &Parts| {
        let file = parts.file();
        taken += usize::from(judge(&file, kernel.len()));
        sound += usize::from(theirs(&file, kernel.len()).is_some());
        // What the library takes is taken here, if it is of the usual kind.
        let usual = parts.flags == [0, 1] && parts.header.get(1).is_some_and(|flags| flags & 3 < 2);
        let is_known = parts.header.windows(2).any(|pair| pair == [0x21, 1]);
        assert!(
            ours(&file, kernel.len()).is_some()
                || theirs(&file, kernel.len()).is_none()
                || !usual
                || !is_known,
            "{file:02x?}"
        );
    };
    for (fields, start) in
        [0, 0xc0].into_iter().flat_map(|fields| STARTS.map(|start| (fields, start)))
    {
        let new = || Parts::of(&kernel, fields, start, 22);
        for part in 0..5 {
            for at in 0..new().all()[part].len() {
                for bit in 0..8 {
                    let mut parts = new();
                    parts.all()[part][at] ^= 1 << bit;
                    each(&parts);
                }
            }
            // Bytes that are too many, or missing; several that are wrong.
            for _ in 0..300 {
                let mut parts = new();
                for _ in 0..=random.draw() % 3 {
                    let bent = &mut parts.all()[part];
                    let at = random.draw() as usize % (bent.len() + 1);
                    match random.draw() % 4 {
                        0 if at < bent.len() => drop(bent.remove(at)),
                        1 => bent.insert(at, (random.draw() & random.draw()) as u8),
                        2 => bent.splice(at..at, [0; 4]).for_each(drop),
                        _ if at < bent.len() => bent[at] = random.draw() as u8,
                        _ => {}
                    }
                }
                each(&parts);
            }
        }
    }
    // A header of no bytes, whose checksum is zero.
    let mut parts = Parts::of(&kernel, 0, None, 22);
    parts.index[2] -= parts.header.len() as u8;
    parts.header.clear();
    assert!(!judge(&parts.file(), kernel.len()));
    assert!(taken > 2000 && sound > 300, "{taken} {sound}");
}

#[test]
fn windows_are_no_larger_than_memory() {
    let kernel = code(0x8000);
    let file = with(&usual(), Check::Crc32, &kernel);
    let block = Block::of(&file).expect("usual");
    let reason = block.unpack(0x8000, &mut vec![0; 0x8000]).expect_err("too little");
    assert!(reason.contains("memory"), "{reason}");
    // The largest, of which only what there is to look back at is taken.
    let large = Parts::of(&kernel, 0, None, 40).file();
    let block = Block::of(&large).expect("usual");
    assert_eq!(block.unpack(1 << 20, &mut vec![0; 0x8000]), Ok(0x8000));
}
