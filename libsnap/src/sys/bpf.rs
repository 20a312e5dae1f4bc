//! Words of the kernel's own memory, through a program of its own (bpf(2)): the only way to
//! what no interface tells. Needs CAP_BPF and CAP_PERFMON; a kernel that is locked down for
//! confidentiality answers EPERM.

use super::fd::owned;
use super::{Sys, check, check_raw};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
/// Run by a system call, for nothing else (Linux 5.14).
const PROG_TYPE_SYSCALL: u64 = 31;
const SLEEPABLE: u64 = 1 << 4;
const GET_CURRENT_TASK: i32 = 35;
const PROBE_READ_KERNEL: i32 = 113;

/// Words that one run reads.
pub const WORDS: usize = 32;

/// The program. What it is run with: address, then the answer of the helper, then words.
#[derive(Debug)]
pub struct Peek(OwnedFd);

type Exchange = [u64; 2 + WORDS];

/// `struct bpf_insn`: operation, registers, offset, immediate.
const fn instruction(operation: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    operation as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

fn program() -> Vec<u64> {
    const LOAD: u8 = 0x79;
    const STORE: u8 = 0x7b;
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const CALL: u8 = 0x85;
    const BYTES: i16 = 8 * WORDS as i16;
    let mut read = vec![
        instruction(MOVE, 1, 10, 0, 0),
        instruction(ADD, 1, 0, 0, -i32::from(BYTES)),
        instruction(SET, 2, 0, 0, i32::from(BYTES)),
        instruction(MOVE, 3, 7, 0, 0),
        instruction(CALL, 0, 0, 0, PROBE_READ_KERNEL),
        instruction(STORE, 6, 0, 8, 0),
    ];
    for at in (0..BYTES).step_by(8) {
        read.push(instruction(LOAD, 1, 10, at - BYTES, 0));
        read.push(instruction(STORE, 6, 1, 16 + at, 0));
    }
    let mut all = vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD, 7, 6, 0, 0),
        // Without an address: the task that asks.
        instruction(0x55, 7, 0, 3, 0),
        instruction(CALL, 0, 0, 0, GET_CURRENT_TASK),
        instruction(STORE, 6, 0, 8, 0),
        instruction(0x05, 0, 0, read.len() as i16, 0),
    ];
    all.append(&mut read);
    all.extend([instruction(SET, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]);
    all
}

impl Peek {
    pub fn new() -> Sys<Peek> {
        let program = program();
        // Reading kernel memory is for programs under this licence.
        let licence = c"GPL";
        let mut attr = [0u64; 16];
        attr[0] = PROG_TYPE_SYSCALL | (program.len() as u64) << 32;
        attr[1] = program.as_ptr().addr() as u64;
        attr[2] = licence.as_ptr().addr() as u64;
        attr[5] = SLEEPABLE << 32;
        bpf(PROG_LOAD, &attr).and_then(|fd| owned(fd as i32)).map(Peek)
    }

    fn run(&self, address: u64) -> Sys<Exchange> {
        let mut exchange: Exchange = [0; 2 + WORDS];
        exchange[0] = address;
        let mut attr = [0u64; 10];
        attr[0] = self.0.as_raw_fd() as u64;
        attr[5] = size_of::<Exchange>() as u64;
        attr[6] = exchange.as_mut_ptr().expose_provenance() as u64;
        bpf(PROG_TEST_RUN, &attr)?;
        Ok(exchange)
    }

    /// The `task_struct` of the calling thread.
    pub fn current(&self) -> Sys<u64> {
        Ok(self.run(0)?[1])
    }

    /// What stands at an address of the kernel.
    pub fn words(&self, address: u64) -> Sys<[u64; WORDS]> {
        if address == 0 {
            return Err(Errno::EFAULT);
        }
        let exchange = self.run(address)?;
        check_raw(exchange[1] as i64)?;
        let mut words = [0; WORDS];
        words.copy_from_slice(&exchange[2..]);
        Ok(words)
    }
}

fn bpf(command: i32, attr: &[u64]) -> Sys<i64> {
    // SAFETY: `attr` is at least as long as the kernel's union up to what the command uses,
    // and holds addresses of live memory of the callers only, of the sizes that it states.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of_val(attr)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_who_asks() {
        let Ok(peek) = Peek::new() else {
            return; // without the right to it
        };
        let task = peek.current().unwrap();
        assert!(task > u64::MAX / 2, "{task:#x} is no address of the kernel");
        assert!(peek.words(task).is_ok());
        assert!(peek.words(8).is_err());
    }
}
