//! A core of a real process, in the eyes of gdb.

use super::process::ProcessImage;
use super::records::{Life, Manifest, Vma, VmaKind};
use super::{Writer, sample};
use crate::ids::VirtualPid;
use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits in a system call below several functions of libc.
fn sleeper() -> Option<Killed> {
    let child = Command::new("sleep").arg("1000").spawn().ok()?;
    let child = Killed(child);
    let syscall = format!("/proc/{}/syscall", child.0.id());
    for _ in 0..1000 {
        // 230 is clock_nanosleep.
        if std::fs::read_to_string(&syscall).is_ok_and(|text| text.starts_with("230 ")) {
            return Some(child);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    None
}

fn registers(pid: Pid) -> nix::Result<[u64; 27]> {
    ptrace::attach(pid)?;
    waitpid(pid, None)?;
    let r = ptrace::getregs(pid)?;
    ptrace::detach(pid, None)?;
    Ok([
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ])
}

/// `/proc/PID/maps`: anonymous memory and private files.
fn mappings(pid: u32) -> Vec<Vma> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    text.lines().filter_map(mapping).collect()
}

fn mapping(line: &str) -> Option<Vma> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (start, end) = words[0].split_once('-')?;
    let hex = |word| u64::from_str_radix(word, 16).ok();
    let bit = |letter, bit| if words[1].contains(letter) { bit } else { 0 };
    let kind = match words.get(5) {
        Some(path) if path.starts_with('/') => VmaKind::PrivateFile {
            path: path.to_string(),
            offset: hex(words[2])?,
        },
        Some(&"[vdso]" | &"[vvar]" | &"[vvar_vclock]" | &"[vsyscall]") => return None,
        _ => VmaKind::Anon,
    };
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        prot: bit('r', 1) | bit('w', 2) | bit('x', 4),
        kind,
        flags: Vec::new(),
        huge_bytes: 0,
        guards: Vec::new(),
        policy: None,
        key: 0,
    })
}

fn image(pid: u32, vmas: Vec<Vma>, regs: [u64; 27]) -> ProcessImage {
    let mut image = sample::process(2, 1);
    image.threads.truncate(1);
    image.threads[0].regs = regs;
    image.threads[0].record.comm = "sleep".into();
    image.comm = "sleep".into();
    image.process.posix_timers.clear();
    image.process.fds.clear();
    image.process.ctty = None;
    image.process.exe = std::fs::read_link(format!("/proc/{pid}/exe"))
        .unwrap()
        .to_str()
        .unwrap()
        .to_string();
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).unwrap();
    let words = auxv
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    image.process.mm.auxv = words.collect();
    image.vmas = vmas;
    childless(&mut image);
    image
}

/// As the manifest has it.
fn childless(image: &mut ProcessImage) {
    image.process.untold_stops.clear();
    image.process.untold_continues.clear();
}

fn manifest() -> Manifest {
    let mut manifest = sample::manifest();
    manifest.processes.truncate(1);
    manifest.processes[0].life = Life::Alive { part: "2.core".into() };
    manifest.processes[0].pid = VirtualPid(2);
    manifest.files.clear();
    manifest.shmem.clear();
    manifest.semaphores.clear();
    manifest.posix_queues.clear();
    manifest
}

fn write(dest: &Path, child: &Killed) -> String {
    let pid = child.0.id();
    let regs = registers(Pid::from_raw(pid.cast_signed())).unwrap();
    let vmas = mappings(pid);
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let writer = Writer::create(dest).unwrap();
    let mut core = writer.core(VirtualPid(2)).unwrap();
    for vma in vmas.iter().filter(|vma| vma.prot & 1 != 0) {
        let mut bytes = vec![0; usize::try_from(vma.end - vma.start).unwrap()];
        if memory.read_exact_at(&mut bytes, vma.start).is_ok() {
            core.pages(vma.start, vma.prot, &bytes).unwrap();
        }
    }
    let image = image(pid, vmas, regs);
    core.finish(&image).unwrap();
    let mut manifest = manifest();
    manifest.processes[0].comm = "sleep".into();
    writer.close().unwrap().seal(manifest).unwrap();
    image.process.exe
}

#[test]
fn gdb_gives_a_backtrace() {
    let Some(child) = sleeper() else {
        eprintln!("skipped: needs the command sleep");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("sleep.appshot");
    let exe = write(&dest, &child);
    let gdb = Command::new("gdb")
        .args(["-nx", "-batch", "-ex", "bt", &exe])
        .arg(dest.join("2.core"))
        .output();
    let Ok(output) = gdb else {
        eprintln!("skipped: needs gdb");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let shown = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("nanosleep"), "{shown}");
    assert!(text.contains("#3 ") || text.contains("in main"), "{shown}");
    for complaint in ["may not match", "Unexpected size", "truncated"] {
        assert!(!shown.contains(complaint), "{shown}");
    }
}

/// More program headers than fit into e_phnum.
#[test]
fn very_many_mappings() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("many.appshot");
    let mut process = sample::process(2, 1);
    process.process.fds.clear();
    process.process.ctty = None;
    childless(&mut process);
    let vma = |index: u64| Vma {
        start: 0x10_0000 + index * 8192,
        end: 0x10_0000 + index * 8192 + 4096,
        prot: 1,
        kind: VmaKind::Anon,
        flags: Vec::new(),
        huge_bytes: 0,
        guards: Vec::new(),
        policy: None,
        key: 0,
    };
    process.vmas = (0..70_000).map(vma).collect();
    let writer = Writer::create(&dest).unwrap();
    let mut core = writer.core(VirtualPid(2)).unwrap();
    core.pages(vma(69_999).start, 3, &[7; 4096]).unwrap();
    core.finish(&process).unwrap();
    writer.close().unwrap().seal(manifest()).unwrap();
    let appshot = super::Appshot::open(&dest).unwrap();
    assert_eq!(appshot.cores[0].image, process);
    assert_eq!(appshot.cores[0].segments[0].vaddr, vma(69_999).start);
    let Ok(output) = Command::new("readelf").arg("-hW").arg(dest.join("2.core")).output() else {
        eprintln!("skipped: needs readelf");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("(70001)"), "{text}");
}
