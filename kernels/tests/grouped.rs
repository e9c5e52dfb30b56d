//! A grouped product has the bits of its segments multiplied one by one.

use smelt_kernels::Write;
use smelt_kernels::gemm::{Gemm, PackedB, RightSide, View};

fn noise(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as f32 / (1 << 22) as f32 - 1.0).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Segments of the given lengths, many of them empty.
fn check(lengths: &[usize], inner: usize, out: usize) {
    let ends: Vec<usize> = lengths
        .iter()
        .scan(0, |end, len| {
            *end += len;
            Some(*end)
        })
        .collect();
    let (m, e) = (ends.last().copied().unwrap_or(0), ends.len());
    let (x, w, dy) = (noise(m * inner), noise(e * out * inner), noise(m * out));
    let (x, dy) = (View::new(&x, m, inner), View::new(&dy, m, out));
    let weights: Vec<View<f32>> = w.chunks(out * inner).map(|w| View::new(w, out, inner)).collect();
    let packed: Vec<_> = weights.iter().map(|w| PackedB::new(w.t())).collect();
    let alone = Gemm::new(1);
    for threads in 1..=3 {
        let gemm = Gemm::new(threads);
        let (mut y, mut dw, mut dx) = (noise(m * out), noise(e * out * inner), vec![f32::NAN; m * inner]);
        let operands: Vec<RightSide<f32>> = packed.iter().map(RightSide::from).collect();
        let turned: Vec<RightSide<f32>> = weights.iter().map(|&w| w.into()).collect();
        gemm.grouped(x, &ends, &operands, &mut y, Write::Add);
        gemm.grouped(dy, &ends, &turned, &mut dx, Write::Set);
        gemm.grouped_gradient(dy, x, &ends, &mut dw, Write::Add);

        let (mut y1, mut dw1) = (noise(m * out), noise(e * out * inner));
        for (i, w) in weights.iter().enumerate() {
            let (start, end) = (if i == 0 { 0 } else { ends[i - 1] }, ends[i]);
            for row in start..end {
                let mut dx1 = vec![0.0; inner];
                alone.multiply(x.slice(row, row + 1), w.t(), &mut y1[row * out..][..out], Write::Add);
                alone.multiply(dy.slice(row, row + 1), *w, &mut dx1, Write::Set);
                assert!(bits(&dx1) == bits(&dx[row * inner..][..inner]), "dx of row {row}, {threads} threads");
            }
            let dw1 = &mut dw1[i * out * inner..][..out * inner];
            alone.multiply(dy.slice(start, end).t(), x.slice(start, end), dw1, Write::Add);
        }
        assert!(bits(&y) == bits(&y1), "y, {threads} threads, {lengths:?}");
        assert!(bits(&dw) == bits(&dw1), "dw, {threads} threads, {lengths:?}");
    }
}

#[test]
fn a_grouped_product_is_its_rows_alone() {
    for case in 0..24 {
        let lengths: Vec<usize> = (0..1 + case % 7).map(|i| (i * 31 + case * 17) % 40 * ((i + case) % 3)).collect();
        check(&lengths, 1 + case * 37 % 149, 1 + case * 53 % 149);
    }
}

#[test]
fn all_segments_may_be_empty_and_one_may_hold_everything() {
    check(&[0, 0, 0], 30, 20);
    check(&[0, 300, 0], 64, 130); // uneven: the large segment is cut into tasks
    check(&[100, 90, 110, 95, 105, 99, 101, 100, 100], 64, 130); // even: segments are the tasks
}

#[test]
#[should_panic(expected = "the last segment must end at row M")]
fn ends_that_miss_rows_are_refused() {
    let x = [0.0; 6];
    let w = PackedB::new(View::new(&x, 3, 2));
    Gemm::new(1).grouped(View::new(&x, 2, 3), &[1], &[(&w).into()], &mut [0.0; 4], Write::Set);
}
