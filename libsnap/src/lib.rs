//! The appshot engine: freezes process trees into appshots and brings them back.
pub mod cgroup;
pub mod error;
pub mod executor;
pub mod files;
pub mod freeze;
pub mod ids;
pub mod image;
pub mod memory;
pub mod nsthread;
pub mod proc;
pub mod process;
pub mod refusals;
pub mod snapshot;
pub mod survey;
pub mod sys;
pub mod target;
