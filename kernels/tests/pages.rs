//! A cache of several pages gives to the bit what one page with room for all of it gives.

#[path = "../sim/simulator.rs"]
mod simulator;

use smelt_kernels::gemm::Level;
use smelt_kernels::*;
use std::ops::Range;

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product::<usize>()).map(|i| random::normal(seed, 0, i as u64) as f32).collect();
    Tensor::new(shape, &values)
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.read::<f32>().iter().map(|x| x.to_bits()).collect()
}

const MOST: usize = 200;

/// Pages of `page_rows` positions with the first `length` rows of `positions`, and NaN behind them.
fn pages(device: &dyn Backend, positions: &Tensor, length: usize, page_rows: usize) -> Vec<Tensor> {
    let page = |first: usize| {
        let mut page = device.empty([page_rows, positions.cols()].into(), DType::F32);
        device.fill(&mut page, f64::NAN);
        // in two parts, as tokens come
        let (held, middle) = (first..length.min(first + page_rows), length.min(first + page_rows / 2));
        device.append(&mut page, 0, &[positions], held.start..middle);
        device.append(&mut page, middle - first, &[positions], middle..held.end);
        page
    };
    (0..length).step_by(page_rows).map(page).collect()
}

/// Requests of (rows, length), all with positions of the same width, through one of the two operations that read a
/// cache.
fn attend(
    device: &dyn Backend,
    requests: &[(usize, usize)],
    width: usize,
    page_rows: usize,
    attention: &dyn Fn(usize, &[CachedRows]) -> Tensor,
) -> Vec<u32> {
    let positions = device.upload(&noise(1, &[MOST, width]));
    let caches: Vec<_> = requests.iter().map(|&(_, length)| pages(device, &positions, length, page_rows)).collect();
    let (mut next, mut cached) = (0, Vec::new());
    for (&(rows, length), pages) in requests.iter().zip(&caches) {
        let rows: Range<usize> = next..next + rows;
        next = rows.end;
        cached.push(CachedRows { rows, pages, length });
    }
    bits(&device.download(&attention(next, &cached)))
}

/// A prompt alone, and then requests side by side whose rows end, begin and cross where pages of 16 and 64 do.
const COMPANIES: [&[(usize, usize)]; 4] = [
    &[(130, 130)],
    &[(1, 16), (1, 17), (2, 17), (1, 1), (3, 15)],
    &[(1, 63), (1, 64), (1, 65)],
    &[(70, 129), (1, MOST)],
];

fn check(device: &dyn Backend, what: &str) {
    let latent = AttentionShape { heads: 3, nope: 8, rope: 4, value: 6, scale: 0.3 };
    // the second in vectors of 16, which the first is not
    for (s, latents) in [(latent, 10), (AttentionShape { rope: 16, ..latent }, 32)] {
        let kv_b = device.upload(&noise(2, &[s.heads * (s.nope + s.value), latents]));
        let attention = |n: usize, requests: &[CachedRows]| {
            let q = device.upload(&noise(3, &[n, s.heads * (s.nope + s.rope)]));
            device.latent_attention(&s, &q, &kv_b, requests)
        };
        compare(device, latents + s.rope, &attention, &format!("{what}, {s:?}"));
    }
    let grouped = GroupedShape { heads: 6, kv_heads: 2, dim: 10, scale: 0.3 };
    for s in [grouped, GroupedShape { dim: 16, ..grouped }, GroupedShape { kv_heads: 1, ..grouped }] {
        let attention = |n: usize, requests: &[CachedRows]| {
            device.cached_attention(&s, &device.upload(&noise(3, &[n, s.heads * s.dim])), requests)
        };
        compare(device, 2 * s.kv_heads * s.dim, &attention, &format!("{what}, {s:?}"));
    }
}

fn compare(device: &dyn Backend, width: usize, attention: &dyn Fn(usize, &[CachedRows]) -> Tensor, what: &str) {
    for requests in COMPANIES {
        let expected = attend(device, requests, width, MOST, attention);
        assert!(expected.iter().all(|&x| f32::from_bits(x).is_finite()), "{what}, {requests:?}");
        for page_rows in [1, 5, 16, 64, 128] {
            let found = attend(device, requests, width, page_rows, attention);
            assert!(found == expected, "{what}, {requests:?}, pages of {page_rows}");
        }
    }
}

#[test]
fn pages_change_no_bit_of_the_reference() {
    check(&Reference, "reference");
}

#[test]
fn pages_change_no_bit_of_the_cpu() {
    for level in Level::ALL.into_iter().filter(|level| level.is_supported()) {
        for threads in [1, 3] {
            check(&Cpu::new(threads).at(level), &format!("{level:?}, {threads} threads"));
        }
    }
}

/// Blocks of 128 keys are counted from the first position, whatever the pages.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the simulated GPU is for x86-64")]
fn pages_change_no_bit_of_the_gpu() {
    check(simulator::gpu().as_ref(), "simulated GPU");
}

#[test]
#[should_panic(expected = "cached_attention: 33 positions in pages of 32 rows together")]
fn positions_without_a_page_are_refused() {
    let s = GroupedShape { heads: 1, kv_heads: 1, dim: 2, scale: 1.0 };
    let pages = [noise(1, &[16, 4]), noise(2, &[16, 4])];
    Cpu::new(1).cached_attention(&s, &noise(3, &[1, 2]), &[CachedRows { rows: 0..1, pages: &pages, length: 33 }]);
}

#[test]
#[should_panic(expected = "cached_attention: expected [16, 4], found [8, 4]")]
fn pages_of_different_sizes_are_refused() {
    let s = GroupedShape { heads: 1, kv_heads: 1, dim: 2, scale: 1.0 };
    let pages = [noise(1, &[16, 4]), noise(2, &[8, 4])];
    Cpu::new(1).cached_attention(&s, &noise(3, &[1, 2]), &[CachedRows { rows: 0..1, pages: &pages, length: 20 }]);
}
