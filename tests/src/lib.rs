//! The test harness: starts programs as apps, freezes and restores them, and
//! judges what is left.
//!
//! - [`programs`] builds the small C programs of `tests/apps`.
//! - [`app`] is one app in a temporary directory: start, snapshot, restore, end.
//! - [`trial`] puts a C program through its variants (`app_test!`).
//! - [`installed`] does it with the commands and daemons that were built.
//! - [`ledger`] counts, cycle by cycle, what must not grow.
//! - [`load`] asks without pause and notes how long each answer took.
//! - [`loads`] are programs that know what they used, and the bill of it.
//! - [`scenario`] puts the real software of [`servers`] and [`applications`] through cycles.
//! - [`judge`] decides whether an app was untouched (A1) and whether nothing is
//!   left on the host (A3). It runs after every trial.
//! - [`node`] is a node with all daemons, and apps that sleep and wake on it.
//! - [`daemon`] is a daemon as a process, and what every daemon must do (`daemon_tests!`).
//! - [`forge`] edits an appshot and seals it again, as a forger would.
//! - [`clients`] speaks redis and HTTP to real servers, one connection a request.
//!
//! The engine uses ptrace, which binds to a thread: every trial runs wholly on
//! one thread of its own ([`verdict::on_own_thread`]) and waits only for pids it started.

#![forbid(unsafe_code)]

pub mod app;
pub mod applications;
pub mod clients;
pub mod daemon;
pub mod disk;
pub mod forge;
pub mod installed;
pub mod judge;
pub mod ledger;
pub mod load;
pub mod loads;
pub mod node;
pub mod programs;
pub mod scenario;
pub mod servers;
pub mod trial;
pub mod verdict;
