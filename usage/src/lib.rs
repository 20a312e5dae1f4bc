//! The usage ledger, and the bill that is made of it.
//!
//! ```text
//!   perfd ──> ledger (Writer) ──> files ──> read ──> books ──> rows ──> export, statement
//!               append, sync, sign          verify    max       rate card
//! ```
//!
//! * [`record`] draws a line of the ledger; [`ledger`] appends, [`read`] verifies.
//! * [`books`] holds what each account has counted, hour by hour.
//! * [`card`] is what a provider pays, [`money`] the exact arithmetic of it.
//! * [`bill`] makes the rows of a period, [`export`] writes them.
//! * [`verify`] does all of it again.
//!
//! Nothing here knows of cgroups or of daemons.
#![forbid(unsafe_code)]

pub mod bill;
pub mod books;
pub mod card;
pub mod export;
pub mod ledger;
pub mod money;
pub mod period;
pub mod read;
pub mod record;
pub mod statement;
pub mod verify;
