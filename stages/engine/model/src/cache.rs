//! What generation remembers of a request: per layer and position the normed latent and the rotated key, or the rotated
//! keys and the values of all key-value heads.

use std::ops::Range;

#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<Vec<f32>>, // each [positions, latent + rope] or [positions, 2·kv_heads·d]
}

impl Cache {
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![Vec::new(); layers] }
    }

    pub fn layer(&self, layer: usize) -> &[f32] {
        &self.layers[layer]
    }

    pub fn layer_mut(&mut self, layer: usize) -> &mut Vec<f32> {
        &mut self.layers[layer]
    }

    /// Forgets what layers `layers` hold of the last `count` of `positions` positions.
    pub fn forget(&mut self, layers: Range<usize>, positions: usize, count: usize) {
        for layer in &mut self.layers[layers] {
            layer.truncate(layer.len() / positions.max(1) * (positions - count));
        }
    }
}

/// One request's share of a batch: which rows are its next positions, and where they go.
#[derive(Debug)]
pub struct CacheRows<'a> {
    pub rows: Range<usize>,
    pub cache: &'a mut Cache,
}
