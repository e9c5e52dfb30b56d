//! From logits to tokens.

use super::device::Cuda;
use super::launch::int;
use super::rows::expect_f32;
use crate::backend::Draw;
use crate::dtype::DType;
use crate::tensor::Tensor;

/// As in `../../cu/sample.cu`.
const CHUNK: usize = 256;

/// Static shared memory of `draw`, with room to spare.
const STATIC: usize = 6 << 10;

/// As `struct Draw` of `../../cu/sample.cu`, in words of four bytes.
fn words(draw: &Draw) -> [u32; 10] {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let wide = [draw.temperature.to_bits(), draw.top_p.to_bits(), draw.seed, draw.place].map(halves);
    let top_k = u32::try_from(draw.top_k).unwrap_or(u32::MAX >> 1);
    let mut words = [0; 10];
    words[..8].copy_from_slice(wide.as_flattened());
    words[8..].copy_from_slice(&[draw.row as u32, top_k]);
    words
}

impl Cuda {
    pub(super) fn draw_tokens(&self, logits: &Tensor, draws: &[Draw]) -> (Tensor, Tensor) {
        expect_f32("draw", logits);
        let (m, v) = (draws.len(), logits.cols());
        // who draws from the heaviest tokens sorts them in memory
        let is_cut = |d: &Draw| d.temperature != 0.0 && (d.top_p < 1.0 || (d.top_k > 0 && d.top_k < v));
        let size = if draws.iter().any(is_cut) { v.next_power_of_two() } else { 0 };
        let ends = 8 * v.div_ceil(CHUNK);
        let held = v.min((self.found().shared_memory() - STATIC).saturating_sub(ends) / 4);
        let (mut tokens, mut logp) = (self.make([m], DType::U32), self.make([m], DType::F64));
        let (mut weights, mut order) = (self.make([m, size], DType::F64), self.make([m, size], DType::U32));
        let draws = self.upload_bytes(draws.iter().flat_map(words).collect::<Vec<u32>>().as_slice());
        let args = [
            self.read(logits),
            self.read(&draws),
            self.write(&mut weights),
            self.write(&mut order),
            self.write(&mut tokens),
            self.write(&mut logp),
            int(v),
            int(size),
            int(held),
        ];
        self.launch("draw", [m, 1, 1], ends + 4 * held, &args);
        (tokens, logp)
    }
}
