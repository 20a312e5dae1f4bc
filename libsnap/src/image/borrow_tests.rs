//! Pages that an appshot borrows: from a process of its own, and from parents.

use super::records::{Vma, VmaKind};
use super::{
    Appshot, Former, LEAF, Layout, Memory, PAGE, Segment, Writer, children, flatten, flatten_in_place, identity,
    needed, notes, pack, sample, unpack, whole_core,
};
use crate::error::{Kind, Result};
use crate::ids::VirtualPid;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// More than a leaf.
const PAGES: u64 = 40;
const START: u64 = 0x6000_0000_0000;

/// Each page tells its address; those in `changed` another than before.
#[derive(Debug)]
struct Told {
    version: u8,
    changed: Vec<u64>,
}

impl Memory for Told {
    fn read(&self, spans: &[Range<u64>], buffer: &mut [u8]) -> Result<()> {
        let pages = spans.iter().flat_map(|span| span.clone().step_by(PAGE as usize));
        for (content, vaddr) in buffer.chunks_exact_mut(PAGE as usize).zip(pages) {
            content[..8].copy_from_slice(&vaddr.to_le_bytes());
            content[8..].fill(1);
            if self.changed.contains(&((vaddr - START) / PAGE)) {
                content[9] = self.version;
            }
        }
        Ok(())
    }
}

fn told(version: u8, changed: &[u64]) -> Arc<dyn Memory> {
    let changed = changed.to_vec();
    Arc::new(Told { version, changed })
}

fn at(from: u64, to: u64) -> Range<u64> {
    START + from * PAGE..START + to * PAGE
}

fn image(pid: i32, ppid: i32) -> super::ProcessImage {
    let mut image = sample::process(pid, ppid);
    let Range { start, end } = at(0, PAGES);
    let whole = Vma {
        start,
        end,
        prot: 3,
        kind: VmaKind::Anon,
        flags: Vec::new(),
        huge_bytes: 0,
        guards: Vec::new(),
        policy: None,
        key: 0,
    };
    let before = image.vmas.partition_point(|vma| vma.end <= start);
    image.vmas.insert(before, whole);
    image
}

/// Two processes, the second with pages of the first besides its own.
fn write(writer: Writer, memory: &Arc<dyn Memory>) -> Result<Layout> {
    let mut first = writer.core(VirtualPid(2))?;
    first.memory(at(0, PAGES), 3, memory)?;
    let first = first.finish(&image(2, 1))?;
    let mut second = writer.core(VirtualPid(7))?;
    second.memory(at(0, 2), 3, &told(9, &[0, 1]))?;
    second.borrow(at(2, PAGES), &first)?;
    let second = second.finish(&image(7, 2))?;
    blobs(&writer);
    writer.close()?.seal(sample::manifest())?;
    Ok(second)
}

fn blobs(writer: &Writer) {
    for (name, bytes) in [("shm-0.data", 5000), ("unlinked-3.data", 10)] {
        let mut blob = writer.blob(name).unwrap();
        blob.write_all(&vec![0x5a; bytes]).unwrap();
        blob.finish().unwrap();
    }
}

fn expected(memory: &Arc<dyn Memory>, span: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (span.end - span.start) as usize];
    memory.read(&[span], &mut bytes).unwrap();
    bytes
}

/// The memory of both processes is what was written.
fn holds(appshot: &Appshot, memory: &Arc<dyn Memory>) {
    let mut bytes = vec![0; (PAGES * PAGE) as usize];
    for core in &appshot.cores {
        assert!(appshot.read_memory(core, START, &mut bytes).unwrap());
        let mut all = expected(memory, at(0, PAGES));
        if core.image.process.pid == VirtualPid(7) {
            let own = expected(&told(9, &[0, 1]), at(0, 2));
            all[..own.len()].copy_from_slice(&own);
        }
        assert!(bytes == all);
        assert!(!appshot.read_memory(core, START + PAGE, &mut bytes).unwrap());
    }
}

/// How many pages the processes have of their own, of each other, and of parents.
fn counts(appshot: &Appshot) -> (u64, u64, u64) {
    let parts = appshot.manifest.parts.len();
    let mut counts = (0, 0, 0);
    for core in &appshot.cores {
        for Segment { part, bytes, .. } in &core.segments {
            let count = match *part {
                part if part == core.part => &mut counts.0,
                part if part < parts => &mut counts.1,
                _ => &mut counts.2,
            };
            *count += bytes / PAGE;
        }
    }
    counts
}

fn on(path: &Path, parent: &Path, memory: &Arc<dyn Memory>) -> Result<()> {
    write(Writer::create_on(path, Former::open(parent, path)?)?, memory).map(drop)
}

#[test]
fn a_page_of_two_processes_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.appshot");
    let memory = told(1, &[]);
    write(Writer::create(&path).unwrap(), &memory).unwrap();
    let appshot = Appshot::open(&path).unwrap();
    assert_eq!(counts(&appshot), (PAGES + 2, PAGES - 2, 0));
    holds(&appshot, &memory);
    let small = path.join("7.core").metadata().unwrap().len();
    assert!(small < 64 << 10, "{small}");
    let packed = dir.path().join("a.packed");
    pack(&path, &packed, crate::image::packed::LEVEL).unwrap();
    holds(
        &Appshot::open(&unpack(&packed, &dir.path().join("again")).unwrap()).unwrap(),
        &memory,
    );
}

/// Three appshots, each on the one before: what is borrowed is the owner's.
#[test]
fn what_a_parent_has_is_borrowed_of_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| dir.path().join(name));
    write(Writer::create(&a).unwrap(), &told(1, &[])).unwrap();
    let (second, third) = (told(2, &[3, 20]), told(3, &[4, 20]));
    on(&b, &a, &second).unwrap();
    let appshot = Appshot::open(&b).unwrap();
    // The second process has its own two pages of its own past.
    assert_eq!(counts(&appshot), (2, 2, 2 * PAGES - 4));
    holds(&appshot, &second);
    assert_eq!(needed(&b).unwrap()[0].path, Some(a.canonicalize().unwrap()));
    on(&c, &b, &third).unwrap();
    let appshot = Appshot::open(&c).unwrap();
    assert_eq!(counts(&appshot).0, 3, "3 as at first, which the parent has not");
    holds(&appshot, &third);
    let names = |path: &Path| {
        needed(path)
            .unwrap()
            .into_iter()
            .map(|one| one.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&c), ["a"], "b has nothing that it needs");
    std::fs::remove_dir_all(&b).unwrap();
    holds(&Appshot::open(&c).unwrap(), &third);
    // Under another name it is the same.
    std::fs::rename(&a, &d).unwrap();
    holds(&Appshot::open(&c).unwrap(), &third);
    assert_eq!(needed(&c).unwrap()[0].path, Some(d.canonicalize().unwrap()));
    // Another one under its name is not.
    write(Writer::create(&a).unwrap(), &told(5, &[5])).unwrap();
    holds(&Appshot::open(&c).unwrap(), &third);
    std::fs::remove_dir_all(&d).unwrap();
    let error = Appshot::open(&c).unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(
        error.to_string().contains("the appshot a, which was replaced"),
        "{error}"
    );
    std::fs::remove_dir_all(&a).unwrap();
    let error = Appshot::open_unverified_memory(&c).unwrap_err();
    assert!(error.to_string().contains("the appshot a, which is missing"), "{error}");
}

/// What is borrowed is verified; what is not is nothing to the child.
#[test]
fn damage_of_a_parent_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    write(Writer::create(&a).unwrap(), &told(1, &[])).unwrap();
    let leaf = LEAF as u64 / PAGE;
    // All of the second leaf but what lies before and behind.
    let changed: Vec<u64> = (leaf - 1..2 * leaf - 1).collect();
    let memory = told(2, &changed);
    let writer = Writer::create_on(&b, Former::open(&a, &b).unwrap()).unwrap();
    write(writer, &memory).unwrap();
    let damage = |offset: u64| {
        let part = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(a.join("2.core"));
        let (part, mut byte) = (part.unwrap(), [0]);
        part.read_exact_at(&mut byte, offset).unwrap();
        part.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    };
    damage(LEAF as u64 + 5000);
    holds(&Appshot::open(&b).unwrap(), &memory);
    assert!(Appshot::open(&a).is_err());
    damage(2 * LEAF as u64 + 5000);
    let error = Appshot::open(&b).unwrap_err();
    assert!(error.to_string().contains("a/2.core"), "{error}");
    assert!(Appshot::open_unverified_memory(&b).is_ok());
    assert!(
        on(&dir.path().join("c"), &b, &told(1, &[])).is_err(),
        "nor is it borrowed again"
    );
    let other = tempfile::tempdir().unwrap();
    let error = Former::open(&a, &other.path().join("c")).unwrap_err();
    assert!(error.to_string().contains("another directory"), "{error}");
}

#[test]
fn a_malformed_table_is_refused() {
    let segment = |page: u64, part: usize, offset: u64, bytes: u64| Segment {
        vaddr: START + page * PAGE,
        part,
        offset,
        bytes,
    };
    let decoded = |table: &[Segment]| {
        let bytes = notes::encode(&image(2, 1), table).unwrap();
        notes::decode("core", &bytes)
    };
    let good = [segment(0, 1, PAGE, PAGE), segment(1, 2, PAGE, 2 * PAGE)];
    assert_eq!(decoded(&good).unwrap().1, good);
    assert_eq!(decoded(&[]).unwrap().1, []);
    let bad = [
        segment(0, 0, PAGE, PAGE),
        segment(0, 1 << 30, PAGE, PAGE),
        segment(0, 1, 0, PAGE),
        segment(0, 1, PAGE, 0),
        segment(0, 1, PAGE, 100),
        segment(0, 1, PAGE + 8, PAGE),
        segment(0, 1, u64::MAX - PAGE + 1, PAGE),
        segment(1 << 50, 1, PAGE, PAGE),
    ];
    for bad in bad {
        assert!(decoded(&[bad]).is_err(), "{bad:?}");
    }
    assert!(decoded(&[good[1], good[0]]).is_err(), "not in order");
    assert!(decoded(&[good[0], segment(0, 2, PAGE, PAGE)]).is_err(), "twice");
}

/// In its place or beside it, and packed: the same memory, and no parent any more.
#[test]
fn what_is_flattened_needs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
    write(Writer::create(&a).unwrap(), &told(1, &[])).unwrap();
    let memory = told(2, &[3, 20]);
    on(&b, &a, &memory).unwrap();
    assert_eq!(children(&a).unwrap(), std::slice::from_ref(&b));
    flatten(&b, &c).unwrap();
    let packed = dir.path().join("packed");
    pack(&b, &packed, crate::image::packed::LEVEL).unwrap();
    let before = identity(&b).unwrap();
    flatten_in_place(&b).unwrap();
    assert_ne!(identity(&b).unwrap(), before);
    assert_eq!(children(&a).unwrap(), [] as [std::path::PathBuf; 0]);
    std::fs::remove_dir_all(&a).unwrap();
    for path in [b, c, unpack(&packed, &dir.path().join("d")).unwrap()] {
        let appshot = Appshot::open(&path).unwrap();
        holds(&appshot, &memory);
        // What both processes had of the parent is stored once, as it was there.
        assert_eq!(counts(&appshot), (PAGES + 2, PAGES - 2, 0), "{}", path.display());
    }
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 4, "b, c, d and the packed file");
}

/// A packed appshot comes from anywhere: it leads to nothing that is here already.
#[test]
fn what_is_packed_has_no_parent() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    write(Writer::create(&a).unwrap(), &told(1, &[])).unwrap();
    on(&b, &a, &told(2, &[3])).unwrap();
    let packed = dir.path().join("packed");
    super::packed::pack_opened(Appshot::open(&b).unwrap(), &packed).unwrap();
    let error = unpack(&packed, &dir.path().join("c")).unwrap_err();
    assert!(error.to_string().contains("it needs other appshots"), "{error}");
}

/// For gdb: all its memory in one file, with the same notes.
#[test]
fn a_core_can_be_had_whole() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    write(Writer::create(&a).unwrap(), &told(1, &[])).unwrap();
    let memory = told(2, &[3, 20]);
    on(&b, &a, &memory).unwrap();
    let file = dir.path().join("7.core");
    let open = || Appshot::open(&b).unwrap();
    whole_core(open(), VirtualPid(7), &file).unwrap();
    let whole = std::fs::File::open(&file).unwrap();
    let (image, segments) = super::parse_core("7.core", &whole).unwrap();
    assert_eq!(image, open().cores[1].image);
    let [segment] = segments[..] else {
        panic!("{segments:?}")
    };
    assert_eq!((segment.part, segment.vaddr, segment.bytes), (0, START, PAGES * PAGE));
    let mut bytes = vec![0; segment.bytes as usize];
    whole.read_exact_at(&mut bytes, segment.offset).unwrap();
    let own = expected(&told(9, &[0, 1]), at(0, 2));
    let rest = expected(&memory, at(2, PAGES));
    assert!(bytes == [own, rest].concat());
    assert!(whole_core(open(), VirtualPid(7), &file).is_err(), "there already");
    let nobody = whole_core(open(), VirtualPid(99), &dir.path().join("x")).unwrap_err();
    assert_eq!(nobody.kind, Kind::NotFound);
}

/// What a process borrowed while it was copied, and lost or changed since, needs nobody.
#[test]
fn a_lender_for_nobody_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let (memory, all) = (told(1, &[]), (0..PAGES).collect::<Vec<_>>());
    write(Writer::create(&a).unwrap(), &memory).unwrap();
    let writer = Writer::create_on(&b, Former::open(&a, &b).unwrap()).unwrap();
    let mut gone = writer.core(VirtualPid(7)).unwrap();
    gone.memory(at(0, PAGES), 3, &memory).unwrap();
    writer.discard(gone).unwrap();
    let mut core = writer.core(VirtualPid(2)).unwrap();
    core.memory(at(0, PAGES), 3, &memory).unwrap();
    assert_eq!(core.stored_bytes(), 0);
    core.retain(&[(at(10, 20), 3)]).unwrap();
    let changed = told(2, &all);
    assert_eq!(core.replace(at(10, 20), &changed).unwrap(), [at(10, 20)]);
    core.memory(at(10, 20), 3, &changed).unwrap();
    assert_eq!(core.stored_bytes(), 10 * PAGE);
    core.memory(at(0, 10), 3, &changed).unwrap();
    core.memory(at(20, PAGES), 3, &changed).unwrap();
    assert!(core.memory(at(19, 21), 3, &memory).is_err(), "twice");
    let first = core.finish(&image(2, 1)).unwrap();
    let mut second = writer.core(VirtualPid(7)).unwrap();
    second.memory(at(0, 2), 3, &told(3, &all)).unwrap();
    let nothing = at(PAGES, PAGES + 1);
    assert!(second.borrow(nothing, &first).is_err());
    second.finish(&image(7, 2)).unwrap();
    blobs(&writer);
    writer.close().unwrap().seal(sample::manifest()).unwrap();
    let appshot = Appshot::open(&b).unwrap();
    assert_eq!((counts(&appshot), needed(&b).unwrap()), ((PAGES + 2, 0, 0), Vec::new()));
    assert_eq!(appshot.manifest.lenders, []);
}
