//! The usage ledger, and the bill that is made of it.
//!
//! ```text
//!   perfd ──> ledger ──> files ──> read ──> hours ──> rows ──> export, statement
//!       append, sync, sign        verify     max    rate card
//! ```
//!
//! * [`record`] draws a line of the ledger; [`ledger`] appends, [`read`] verifies.
//! * [`books`] holds what each open account has counted by now, [`hours`] what each has used
//!   hour by hour.
//! * [`meter`] is what has a price, [`card`] is what a provider pays, [`money`] the exact arithmetic of it.
//! * [`bill`] makes the rows of a period, [`export`] writes them.
//! * [`correct`] makes corrections, [`archive`] thins out what is old.
//! * [`verify`] does all of it again.
//!
//! Nothing here knows of cgroups or of daemons.
#![forbid(unsafe_code)]

pub mod archive;
pub mod bill;
pub mod books;
pub mod card;
pub mod correct;
pub mod export;
pub mod hours;
pub mod ledger;
pub mod meter;
pub mod money;
pub mod period;
pub mod read;
pub mod record;
pub mod rollups;
pub mod statement;
pub mod verify;
