//! Numbers that must not be mixed up.
//!
//! The kernel hands out small integers for everything. An app sees *virtual*
//! numbers (those of its own PID namespace, kept equal across restores), the
//! host sees *system* numbers. Both are `i32` underneath; the types keep them
//! apart.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A process or thread number as the host (the tracer's PID namespace) sees it.
    /// It names a task only while we hold it stopped or hold its pidfd.
    HostPid(i32)
}
number! {
    /// A process, thread, session or group number as the app sees it.
    #[derive(Default)]
    VirtualPid(i32)
}
number! {
    /// A file descriptor number inside the app. Never valid in our own process.
    FdNum(i32)
}
number! {
    /// An open file description of an appshot: descriptors that share it share
    /// offset and flags. Numbered from 0 within one appshot.
    FileId(u32)
}
number! {
    /// A memory object that several mappings share. Numbered from 0 within one appshot.
    ShmId(u32)
}
