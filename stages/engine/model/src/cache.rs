//! What generation remembers of a request: per layer and position the normed latent and the rotated key, or the rotated
//! keys and the values of all key-value heads. It is on the device; operations write and read it.
//!
//! The positions of a layer lie in pages of one size, so nothing is copied when a request grows, and what one request
//! gives back another one takes. A clone of a cache has the same pages: requests with one prompt hold it once. A page
//! is copied when a cache writes to it while another cache has it. Only a partly filled page is ever written, so that
//! is the last page of the prompt, or a full one of which speculation took back the end.

use smelt_kernels::{Backend, CachedRows, DType, Tensor};
use std::ops::Range;

/// Positions of a page. Each page costs the CPU two products of its own, so few of them are faster; what lies behind a
/// request's last position is unused. A GPU goes through 128 keys at a time, and finds them in one page.
const PAGE_ROWS: usize = 128;

/// A clone shares the pages.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<Positions>,
}

/// One layer's.
#[derive(Clone, Debug, Default)]
struct Positions {
    /// F32 `[PAGE_ROWS, latent + rope]` or `[PAGE_ROWS, 2·kv_heads·d]`, as many as `length` positions need.
    pages: Vec<Tensor>,
    length: usize,
}

impl Cache {
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![Positions::default(); layers] }
    }

    /// Appends rows `rows` of `parts`, side by side, to layer `layer`.
    pub(crate) fn append(&mut self, backend: &dyn Backend, layer: usize, parts: [&Tensor; 2], rows: Range<usize>) {
        let Positions { pages, length } = &mut self.layers[layer];
        let width = parts.iter().map(|part| part.cols()).sum();
        let mut next = rows.start;
        while next < rows.end {
            let held = *length % PAGE_ROWS;
            if held == 0 {
                pages.push(backend.empty([PAGE_ROWS, width].into(), DType::F32));
            }
            let page = pages.last_mut().expect("a page is pushed when the last one is full");
            if page.is_shared() {
                let mut own = backend.empty(page.shape(), page.dtype());
                backend.append(&mut own, 0, &[page], 0..held);
                *page = own;
            }
            let end = rows.end.min(next + PAGE_ROWS - held);
            backend.append(page, held, &parts, next..end);
            *length += end - next;
            next = end;
        }
    }

    /// Of a layer that has positions, for the request's rows `rows` of a batch.
    pub(crate) fn layer(&self, layer: usize, rows: Range<usize>) -> CachedRows<'_> {
        let Positions { pages, length } = &self.layers[layer];
        CachedRows { rows, pages, length: *length }
    }

    /// Forgets the last `count` positions of layers `layers`.
    pub fn forget(&mut self, layers: Range<usize>, count: usize) {
        for Positions { pages, length } in &mut self.layers[layers] {
            *length = length.saturating_sub(count);
            pages.truncate(length.div_ceil(PAGE_ROWS));
        }
    }
}

/// One request's share of a batch: which rows are its next positions, and where they go.
#[derive(Debug)]
pub struct CacheRows<'a> {
    pub rows: Range<usize>,
    pub cache: &'a mut Cache,
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_kernels::Cpu;

    /// One layer, two columns: in turn the position, or what is given for it, and its negative.
    fn append(cache: &mut Cache, values: Range<usize>, backend: &dyn Backend) {
        let of = |sign: f32| values.clone().map(|value| sign * value as f32).collect::<Vec<_>>();
        let [a, b] = [1.0, -1.0].map(|sign| Tensor::new([values.len(), 1], &of(sign)));
        cache.append(backend, 0, [&a, &b], 0..values.len());
    }

    /// The values of all positions.
    fn values(cache: &Cache) -> Vec<usize> {
        let rows = cache.layer(0, 0..0);
        assert!(
            rows.pages.len() == rows.length.div_ceil(PAGE_ROWS) && rows.pages.iter().all(|p| p.rows() == PAGE_ROWS)
        );
        let all = rows.pages.iter().flat_map(|page| page.read::<f32>().chunks_exact(2)).take(rows.length);
        all.map(|pair| if pair[1] == -pair[0] { pair[0] as usize } else { panic!("{pair:?}") }).collect()
    }

    fn shared(cache: &Cache) -> Vec<bool> {
        cache.layer(0, 0..0).pages.iter().map(Tensor::is_shared).collect()
    }

    #[test]
    fn positions_fill_page_after_page_whatever_comes_at_once() {
        let cpu = Cpu::new(1);
        for pieces in
            [vec![1; 2 * PAGE_ROWS + 1], vec![PAGE_ROWS, 1, PAGE_ROWS], vec![3 * PAGE_ROWS + 2, PAGE_ROWS - 2]]
        {
            let (mut cache, mut next) = (Cache::new(1), 0);
            for count in pieces {
                append(&mut cache, next..next + count, &cpu);
                next += count;
                assert_eq!(values(&cache), (0..next).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn followers_share_full_pages_and_copy_the_last_one_when_they_write_to_it() {
        let (cpu, prompt) = (Cpu::new(1), 2 * PAGE_ROWS + 3);
        let mut leader = Cache::new(1);
        append(&mut leader, 0..prompt, &cpu);
        let mut followers = [leader.clone(), leader.clone()];
        assert_eq!(shared(&leader), [true; 3]);
        for (i, follower) in followers.iter_mut().enumerate() {
            append(follower, 1000 * (i + 1)..1000 * (i + 1) + PAGE_ROWS, &cpu);
            assert_eq!(shared(follower), [true, true, false, false]);
        }
        assert_eq!(shared(&leader), [true, true, false], "the last one keeps the page itself");
        append(&mut leader, prompt..prompt + 1, &cpu);
        assert_eq!(values(&leader), (0..=prompt).collect::<Vec<_>>());
        for (i, follower) in followers.iter().enumerate() {
            let own = 1000 * (i + 1)..1000 * (i + 1) + PAGE_ROWS;
            assert_eq!(values(follower), (0..prompt).chain(own).collect::<Vec<_>>());
        }
        drop(leader);
        let [one, two] = followers;
        drop(one);
        assert_eq!(shared(&two), [false; 4]);
    }

    /// The page behind the border is given back; the full page before it belongs to others too.
    #[test]
    fn a_full_page_of_others_is_copied_before_a_position_taken_back_is_written_anew() {
        let cpu = Cpu::new(1);
        for (length, forgotten) in [(PAGE_ROWS, 1), (PAGE_ROWS + 1, 2), (2 * PAGE_ROWS + 1, PAGE_ROWS + 5)] {
            let mut leader = Cache::new(1);
            append(&mut leader, 0..length, &cpu);
            let mut follower = leader.clone();
            follower.forget(0..1, forgotten);
            let kept = length - forgotten;
            assert_eq!(values(&follower), (0..kept).collect::<Vec<_>>());
            append(&mut follower, 1000..1000 + PAGE_ROWS, &cpu);
            assert_eq!(values(&follower), (0..kept).chain(1000..1000 + PAGE_ROWS).collect::<Vec<_>>());
            assert_eq!(values(&leader), (0..length).collect::<Vec<_>>(), "{length}, {forgotten} forgotten");
        }
    }

    #[test]
    fn a_border_can_be_forgotten_and_reached_again() {
        let (cpu, mut cache) = (Cpu::new(1), Cache::new(1));
        append(&mut cache, 0..PAGE_ROWS + 1, &cpu);
        cache.forget(0..1, 1);
        assert_eq!(cache.layer(0, 0..0).pages.len(), 1, "an empty page is given back");
        append(&mut cache, 7..8, &cpu);
        assert_eq!(values(&cache), (0..PAGE_ROWS).chain([7]).collect::<Vec<_>>());
        cache.forget(0..1, PAGE_ROWS + 10);
        assert_eq!(values(&cache), [0; 0]);
        append(&mut cache, 5..6, &cpu);
        assert_eq!(values(&cache), [5]);
    }
}
