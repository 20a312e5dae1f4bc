//! One module a group of commands; each function is one command.

pub mod apps;
pub mod clone;
pub mod completions;
pub mod diff;
pub mod doctor;
pub mod end;
pub mod events;
pub mod flatten;
pub mod inspect;
pub mod logs;
pub mod node;
pub mod periodic;
pub mod provider;
pub mod ps;
pub mod rehearse;
pub mod run;
pub mod secret;
pub mod snapshot;
pub mod store;
pub mod top;
pub mod up;
pub mod usage;
mod why;
