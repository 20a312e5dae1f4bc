//! The appshot format.
pub mod records;
