//! What was read last, within a limit of memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Things by number: those asked for last stay, up to a number of bytes.
#[derive(Debug)]
pub struct Recent<V> {
    most_bytes: usize,
    held: Mutex<Held<V>>,
}

#[derive(Debug)]
struct Held<V> {
    things: HashMap<usize, Thing<V>>,
    bytes: usize,
    asked: u64,
}

#[derive(Debug)]
struct Thing<V> {
    /// When it was asked for last.
    last: u64,
    bytes: usize,
    value: Arc<V>,
}

impl<V> Recent<V> {
    pub fn new(most_bytes: usize) -> Self {
        Self { most_bytes, held: Mutex::new(Held { things: HashMap::new(), bytes: 0, asked: 0 }) }
    }

    /// Thing `number`; `make` makes it, with its bytes, if it is not held. One that is larger than the limit is held
    /// until the next comes.
    pub fn get_or<E>(&self, number: usize, make: impl FnOnce() -> Result<(V, usize), E>) -> Result<Arc<V>, E> {
        let lock = || self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = lock().get(number) {
            return Ok(value);
        }
        let (value, bytes) = make()?; // others may read meanwhile
        let value = Arc::new(value);
        lock().put(number, value.clone(), bytes, self.most_bytes);
        Ok(value)
    }
}

impl<V> Held<V> {
    fn get(&mut self, number: usize) -> Option<Arc<V>> {
        self.asked += 1;
        let thing = self.things.get_mut(&number)?;
        thing.last = self.asked;
        Some(thing.value.clone())
    }

    fn put(&mut self, number: usize, value: Arc<V>, bytes: usize, most_bytes: usize) {
        let thing = Thing { last: self.asked, bytes, value };
        self.bytes += bytes;
        self.bytes -= self.things.insert(number, thing).map_or(0, |before| before.bytes);
        while self.bytes > most_bytes {
            let others = self.things.iter().filter(|(other, _)| **other != number);
            let Some(oldest) = others.min_by_key(|(_, thing)| thing.last).map(|(other, _)| *other) else { return };
            self.bytes -= self.things.remove(&oldest).map_or(0, |gone| gone.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn what_was_asked_for_last_is_held() {
        let recent = Recent::new(30);
        let made = |number: usize, bytes: usize| {
            let mut is_made = false;
            let value = recent.get_or(number, || {
                is_made = true;
                Ok::<_, Infallible>((number, bytes))
            });
            assert_eq!(*value.unwrap(), number);
            is_made
        };
        assert_eq!([0, 1, 2, 0].map(|number| made(number, 10)), [true, true, true, false]);
        assert!(made(3, 10), "1 was the oldest and goes");
        assert_eq!([0, 2, 3].map(|number| made(number, 10)), [false, false, false]);
        assert!(made(1, 10));
        assert!(made(4, 100), "larger than all");
        assert!(!made(4, 100));
        assert_eq!(recent.held.lock().unwrap().things.len(), 1);
        assert!(made(5, 10));
        assert_eq!(recent.held.lock().unwrap().bytes, 10);
        let failed: Result<Arc<usize>, &str> = recent.get_or(6, || Err("unreadable"));
        assert_eq!(failed, Err("unreadable"));
    }
}
