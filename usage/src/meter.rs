//! What has a price, and how it is counted.

use crate::record::Counters;
use serde::{Deserialize, Serialize};

/// What has a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum Meter {
    #[serde(rename = "core_second")]
    Core,
    #[serde(rename = "memory_gib_second")]
    Memory,
    #[serde(rename = "storage_gib_second")]
    Storage,
    #[serde(rename = "restore")]
    Restores,
    #[serde(rename = "request")]
    Requests,
    #[serde(rename = "sent_gib")]
    Sent,
    /// Of a guarantee: not metered, and priced with it.
    #[serde(rename = "reserved_core_second")]
    Reserved,
}

const SECOND: u128 = 1_000_000_000;
const GIB_SECOND: u128 = (1 << 30) * SECOND;

impl Meter {
    /// Those that are counted.
    pub const ALL: [Meter; 6] = [
        Meter::Core,
        Meter::Memory,
        Meter::Storage,
        Meter::Restores,
        Meter::Requests,
        Meter::Sent,
    ];

    /// As rate cards call it.
    pub fn name(self) -> &'static str {
        match self {
            Meter::Core => "core_second",
            Meter::Memory => "memory_gib_second",
            Meter::Storage => "storage_gib_second",
            Meter::Restores => "restore",
            Meter::Requests => "request",
            Meter::Sent => "sent_gib",
            Meter::Reserved => "reserved_core_second",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Meter::Core | Meter::Reserved => "Core-Seconds",
            Meter::Memory | Meter::Storage => "GiB-Seconds",
            Meter::Restores => "Restores",
            Meter::Requests => "Requests",
            Meter::Sent => "GiB",
        }
    }

    /// What is counted.
    pub fn counted_unit(self) -> &'static str {
        match self {
            Meter::Core | Meter::Reserved => "Core-Nanoseconds",
            Meter::Memory | Meter::Storage => "Byte-Nanoseconds",
            Meter::Restores => "Restores",
            Meter::Requests => "Requests",
            Meter::Sent => "Bytes",
        }
    }

    /// So many of them are one unit.
    pub fn per_unit(self) -> u128 {
        match self {
            Meter::Core | Meter::Reserved => SECOND,
            Meter::Memory | Meter::Storage => GIB_SECOND,
            Meter::Restores | Meter::Requests => 1,
            Meter::Sent => 1 << 30,
        }
    }

    pub fn of(self, counters: &Counters) -> u128 {
        match self {
            Meter::Core => counters.cpu_ns.into(),
            Meter::Memory => counters.memory_byte_ns,
            Meter::Storage => counters.stored_byte_ns,
            Meter::Restores => counters.restores.into(),
            Meter::Requests => counters.requests.into(),
            Meter::Sent => counters.sent_bytes.into(),
            Meter::Reserved => 0,
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Meter::Core => "Processor time of an instance",
            Meter::Memory => "Memory held by an instance",
            Meter::Storage => "Appshots stored",
            Meter::Restores => "Restore of an instance",
            Meter::Requests => "Requests served",
            Meter::Sent => "Bytes sent",
            Meter::Reserved => "Processors kept ready",
        }
    }
}
