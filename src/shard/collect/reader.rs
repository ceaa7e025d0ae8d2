//! Stored bytes for a collection: copied, and compared with their id.
//!
//! Floor 2. Not through L2, from which they would push what agents read. What is not in memory is read by the
//! I/O core, one object at a time, while the shard serves.

use crate::segment::index::ObjectNo;
use crate::segment::{Disk, Read};
use crate::shard::store::{Refused, Store};

/// A buffer for one object.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// The I/O core brought the bytes of this one.
    arrived: Option<ObjectNo>,
}

impl Reader {
    /// The bytes of an object.
    ///
    /// # Errors
    /// [`Refused::Cold`]: bring them with [`Reader::take`]. [`Refused::Corrupt`].
    pub fn bytes<D: Disk>(&mut self, store: &mut Store<D>, no: ObjectNo) -> Result<&[u8], Refused> {
        if self.arrived.take() != Some(no) {
            store.copy_stored(no, &mut self.bytes)?;
        }
        Ok(&self.bytes)
    }

    /// The bytes that were asked for last.
    pub fn last(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes what the I/O core read of an object.
    pub fn take<D: Disk>(&mut self, store: &mut Store<D>, no: ObjectNo, stored: &[u8]) {
        let object = store.tables.objects.get(no);
        if object.kind.id_of(stored) != object.id {
            return store.quarantine(no);
        }
        self.bytes.clear();
        self.bytes.extend_from_slice(stored);
        self.arrived = Some(no);
    }
}

impl<D: Disk> Store<D> {
    /// Copies the stored bytes of an object into `out`, which holds nothing else then.
    ///
    /// # Errors
    /// [`Refused::Cold`], [`Refused::Corrupt`].
    fn copy_stored(&mut self, no: ObjectNo, out: &mut Vec<u8>) -> Result<(), Refused> {
        let object = self.tables.objects.get(no);
        let (at, id, kind) = (object.at, object.id, object.kind);
        if object.quarantined {
            return Err(Refused::Corrupt);
        }
        match self.log.read(&mut self.disk, at) {
            Read::Cold => Err(Refused::Cold(no)),
            Read::Here(stored) if kind.id_of(stored) == id => {
                out.clear();
                out.extend_from_slice(stored);
                Ok(())
            }
            Read::Here(_) => {
                self.quarantine(no);
                Err(Refused::Corrupt)
            }
        }
    }
}
