//! What the command-line tools and the daemons share.
//!
//! | module | what |
//! |---|---|
//! | [`program`], [`generate`] | the shape of every `main`; manual pages and completions |
//! | [`args`] | arguments that several programs take |
//! | [`out`] | results on stdout, messages on stderr, exit codes |
//! | [`hidden`] | the programs' second lives: worker and detached supervisor |
//! | [`worker`], [`interrupt`] | the process that takes a snapshot, safe from Ctrl-C |
//! | [`guard`] | the process that brings the app back when the worker is killed |
//! | [`jobs`] | what a worker does |
//! | [`periodic`] | snapshots of an app that runs on, one every so often |
//! | [`hooks`] | telling an app what is done to it |
//! | [`start`], [`bring_up`], [`supervise`], [`detach`], [`ending`] | bringing an app up, owning it, ending it |
//! | [`daemon`], [`listen`], [`peer`], [`reply`], [`notify`], [`log`] | the daemons' common shape |
//! | [`traces`] | spans of what the daemons do, for who collects them |
//! | [`keeper`], [`descriptors`] | descriptors that outlive a daemon; how many it may have |
//! | [`client`], [`remote`], [`fingerprint`] | asking a daemon, here or elsewhere |
//! | [`local`] | asking a server on this machine, to try it |
//!
//! A second process is always one of [`hidden`]: nothing else here forks.
#![forbid(unsafe_code)]

pub mod args;
pub mod bring_up;
pub mod client;
pub mod daemon;
pub mod descriptors;
pub mod detach;
pub mod ending;
pub mod fingerprint;
pub mod generate;
pub mod guard;
pub mod hidden;
pub mod hooks;
pub mod interrupt;
pub mod jobs;
pub mod keeper;
pub mod listen;
pub mod local;
pub mod log;
pub mod notify;
pub mod out;
pub mod peer;
pub mod periodic;
pub mod process;
pub mod program;
pub mod progress;
pub mod remote;
pub mod reply;
pub mod signals;
pub mod start;
pub mod supervise;
pub mod traces;
pub mod worker;
