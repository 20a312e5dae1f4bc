//! The test harness: starts programs as apps, freezes and restores them, and
//! judges what is left.
//!
//! - [`programs`] builds the small C programs of `tests/apps`.
//! - [`app`] is one app in a temporary directory: start, snapshot, restore, end.
//! - [`trial`] puts a C program through its variants (`app_test!`).
//! - [`judge`] decides whether an app was untouched (A1) and whether nothing is
//!   left on the host (A3). It runs after every trial.
//! - [`daemon`] is a daemon as a process, and what every daemon must do (`daemon_tests!`).
//! - [`clients`] speaks redis and HTTP to real servers, one connection a request.
//!
//! The engine uses ptrace, which binds to a thread: every trial runs wholly on
//! one thread of its own ([`verdict::on_own_thread`]) and waits only for pids it started.

#![forbid(unsafe_code)]

pub mod app;
pub mod clients;
pub mod daemon;
pub mod judge;
pub mod programs;
pub mod trial;
pub mod verdict;
