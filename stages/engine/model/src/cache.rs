//! What generation remembers of a request: per layer and position the normed latent and the rotated key, or the rotated
//! keys and the values of all key-value heads. It is on the device; operations write and read it.

use smelt_kernels::{Backend, CachedRows, DType, Tensor};
use std::ops::Range;

/// Positions that a layer has room for at first.
const FIRST: usize = 16;

#[derive(Debug, Default)]
pub struct Cache {
    layers: Vec<Positions>,
}

/// One layer's.
#[derive(Debug, Default)]
struct Positions {
    /// F32 `[room, latent + rope]` or `[room, 2·kv_heads·d]`; None while there are none.
    values: Option<Tensor>,
    length: usize,
}

impl Cache {
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| Positions::default()).collect() }
    }

    /// The same positions in memory of their own.
    pub fn copy_on(&self, backend: &dyn Backend) -> Self {
        let copy = |layer: &Positions| Positions {
            values: layer.values.as_ref().map(|values| backend.copy(values)),
            length: layer.length,
        };
        Self { layers: self.layers.iter().map(copy).collect() }
    }

    /// Appends rows `rows` of `parts`, side by side, to layer `layer`.
    pub(crate) fn append(&mut self, backend: &dyn Backend, layer: usize, parts: [&Tensor; 2], rows: Range<usize>) {
        let Positions { values, length } = &mut self.layers[layer];
        let (width, needed) = (parts.iter().map(|part| part.cols()).sum::<usize>(), *length + rows.len());
        let room = values.as_ref().map_or(0, Tensor::rows);
        if room < needed {
            let mut larger = backend.empty([needed.max(2 * room).max(FIRST), width].into(), DType::F32);
            if let Some(values) = values.as_ref() {
                backend.append(&mut larger, 0, &[values], 0..*length);
            }
            *values = Some(larger);
        }
        let values = values.as_mut().expect("there is room");
        backend.append(values, *length, &parts, rows);
        *length = needed;
    }

    /// Of a layer that has positions, for the request's rows `rows` of a batch.
    pub(crate) fn layer(&self, layer: usize, rows: Range<usize>) -> CachedRows<'_> {
        let Positions { values, length } = &self.layers[layer];
        CachedRows { rows, cache: values.as_ref().expect("cache: a layer without positions"), length: *length }
    }

    /// Forgets the last `count` positions of layers `layers`.
    pub fn forget(&mut self, layers: Range<usize>, count: usize) {
        self.layers[layers].iter_mut().for_each(|layer| layer.length = layer.length.saturating_sub(count));
    }
}

/// One request's share of a batch: which rows are its next positions, and where they go.
#[derive(Debug)]
pub struct CacheRows<'a> {
    pub rows: Range<usize>,
    pub cache: &'a mut Cache,
}
