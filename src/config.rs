//! Checked configuration: parse, resolve against the machine, freeze.

/// How much a write must survive before it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Durability {
    /// In the runtime's memory: lost with its process.
    Volatile = 1,
    /// In the kernel's page cache: survives the death of the runtime, not of the machine.
    Process = 2,
    /// On the device: survives a power cut.
    Power = 3,
}
