//! What the command-line tools and the daemons share.
//!
//! | module | what |
//! |---|---|
//! | [`args`] | arguments that several programs take |
//! | [`out`] | results on stdout, messages on stderr, exit codes |
//! | [`hidden`] | the programs' second lives: worker and detached supervisor |
//! | [`worker`], [`interrupt`] | the process that takes a snapshot, safe from Ctrl-C |
//! | [`guard`] | the process that brings the app back when the worker is killed |
//! | [`jobs`] | what a worker does |
//! | [`start`], [`bring_up`], [`supervise`], [`detach`], [`ending`] | bringing an app up, owning it, ending it |
//! | [`daemon`], [`listen`], [`peer`], [`reply`], [`notify`], [`log`] | the daemons' common shape |
//! | [`client`] | asking a daemon |
//!
//! Nothing here forks: a second process is always `/proc/self/exe` started
//! anew, since a fork of a program with threads may only call async-signal-safe
//! functions.
#![forbid(unsafe_code)]

pub mod args;
pub mod bring_up;
pub mod client;
pub mod daemon;
pub mod detach;
pub mod ending;
pub mod guard;
pub mod hidden;
pub mod interrupt;
pub mod jobs;
pub mod listen;
pub mod log;
pub mod notify;
pub mod out;
pub mod peer;
pub mod process;
pub mod progress;
pub mod reply;
pub mod signals;
pub mod start;
pub mod supervise;
pub mod worker;
