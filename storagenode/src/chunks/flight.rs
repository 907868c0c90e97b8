//! One write at a time of each chunk: of two different contents under one id only one can win.

use std::{collections::HashMap, sync::Arc};

use cairn_placement::ChunkId;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Ids that are being written.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<ChunkId, Arc<Semaphore>>>);

/// The right to write one id; others wait until it is dropped.
pub struct Flight {
    flights: Arc<Flights>,
    id: ChunkId,
    /// Never has a permit; closed when this is dropped, which ends every wait for one.
    landed: Arc<Semaphore>,
}

impl Flights {
    /// The right to write `id`, or what is closed when the one who has it is done.
    pub fn enter(self: &Arc<Self>, id: ChunkId) -> Result<Flight, Arc<Semaphore>> {
        let mut flights = self.0.lock();
        if let Some(landed) = flights.get(&id) {
            return Err(landed.clone());
        }
        let landed = Arc::new(Semaphore::new(0));
        flights.insert(id, landed.clone());
        Ok(Flight { flights: self.clone(), id, landed })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.id);
        self.landed.close();
    }
}
