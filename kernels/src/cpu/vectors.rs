//! Loops over a row that compile to vectors, in one order of summation for every vector width.

use crate::dtype::Real;
use crate::prefetch::prefetch_run;

/// Lanes of the widest vector.
pub(super) const LANES: usize = 16;
/// How many elements ahead rows are prefetched: SwiGLU reads and writes more streams than hardware prefetchers follow.
const AHEAD: usize = 128;

/// Computes the elements of rows `to` from those of rows `from` and their own values, a vector at a time. A plain loop
/// over that many rows is not vectorised: the compiler cannot prove that they do not overlap.
#[inline(always)]
pub(super) fn vectors<T: Real, const IN: usize, const OUT: usize>(
    from: [&[T]; IN],
    to: [&mut [T]; OUT],
    of: impl Fn([T; IN], [T; OUT]) -> [T; OUT],
) {
    let len = from[0].len();
    let (from, mut to) = (from.map(|row| &row[..len]), to.map(|row| &mut row[..len]));
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut x = [[T::ZERO; LANES]; IN];
        let mut y = [[T::ZERO; LANES]; OUT];
        (0..IN).for_each(|i| prefetch_run(from[i].as_ptr().wrapping_add(start + AHEAD), LANES));
        (0..OUT).for_each(|o| prefetch_run(to[o].as_ptr().wrapping_add(start + AHEAD), LANES));
        (0..IN).for_each(|i| x[i].copy_from_slice(&from[i][start..start + LANES]));
        (0..OUT).for_each(|o| y[o].copy_from_slice(&to[o][start..start + LANES]));
        for lane in 0..LANES {
            let of = of(std::array::from_fn(|i| x[i][lane]), std::array::from_fn(|o| y[o][lane]));
            (0..OUT).for_each(|o| y[o][lane] = of[o]);
        }
        (0..OUT).for_each(|o| to[o][start..start + LANES].copy_from_slice(&y[o]));
    }
    for at in whole..len {
        let of = of(std::array::from_fn(|i| from[i][at]), std::array::from_fn(|o| to[o][at]));
        (0..OUT).for_each(|o| to[o][at] = of[o]);
    }
}

/// Σ a·b in 16 interleaved sums that are then folded: the same order for every vector width.
#[inline(always)]
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    let (a, b) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    if !a.1.is_empty() {
        let (a, b) = (filled(a.1), filled(b.1));
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    fold(sums)
}

/// The remainder of a row as a vector that ends in zeros. (A loop over the remainder would index the sums dynamically.
/// A dynamically indexed array spills to the stack, and then each addition waits 20 cycles for memory.)
#[inline(always)]
pub(super) fn filled<T: Real>(rest: &[T]) -> [T; LANES] {
    /// Keeps the rare case out of the callers' loops.
    #[cold]
    #[inline(never)]
    fn copied<T: Real>(rest: &[T]) -> [T; LANES] {
        let mut lanes = [T::ZERO; LANES];
        lanes[..rest.len()].copy_from_slice(rest);
        lanes
    }
    match rest.as_array::<8>() {
        Some(half) => std::array::from_fn(|lane| if lane < 8 { half[lane] } else { T::ZERO }),
        None => copied(rest),
    }
}

/// Joins the second half of a vector to the first until one lane is left.
#[inline(always)]
pub(super) fn halves<T: Real>(x: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let x: [T; 8] = std::array::from_fn(|lane| join(x[lane], x[lane + 8]));
    let x: [T; 4] = std::array::from_fn(|lane| join(x[lane], x[lane + 4]));
    join(join(x[0], x[2]), join(x[1], x[3]))
}

#[inline(always)]
pub(super) fn fold<T: Real>(sums: [T; LANES]) -> T {
    halves(sums, |a, b| a + b)
}

/// Elements of a row of working memory: whole vectors, so that loops over it have no remainder.
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// `to = from`, without a function call for the widths that heads commonly have.
#[inline(always)]
pub(super) fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    macro_rules! widths {
        ($($width:literal)*) => {
            match to.len() {
                $($width => {
                    let to: &mut [T; $width] = to.try_into().expect("matched");
                    *to = *from.as_array().expect("copy: as long as `to`");
                })*
                _ => to.copy_from_slice(from),
            }
        };
    }
    widths!(8 16 24 32 48 64 96 128)
}

/// Turns the first `seen` scores of a row into exp(score·scale − max) in place, and the rest into 0; returns the
/// maximum of score·scale and the sum. The scale is positive.
#[inline(always)]
pub(super) fn exp_row<T: Real>(row: &mut [T], seen: usize, scale: T) -> (T, T) {
    let max = max_of(row, seen) * scale;
    (max, exp_from(row, seen, scale, max))
}

/// The largest of the first `seen` elements.
#[inline(always)]
pub(super) fn max_of<T: Real>(row: &[T], seen: usize) -> T {
    let (whole, rest) = row.split_at(seen / LANES * LANES);
    let (whole, count) = (whole.as_chunks::<LANES>().0, seen % LANES);
    let last = rest.first_chunk().copied().unwrap_or_else(|| filled(rest));
    let mut largest = [T::LOWEST; LANES];
    for lanes in whole {
        for lane in 0..LANES {
            largest[lane] = if lanes[lane] > largest[lane] { lanes[lane] } else { largest[lane] };
        }
    }
    for lane in 0..LANES {
        let x = if lane < count { last[lane] } else { T::LOWEST };
        largest[lane] = if x > largest[lane] { x } else { largest[lane] };
    }
    halves(largest, |a, b| if b > a { b } else { a })
}

/// [`exp_row`] with the maximum known; returns the sum.
#[inline(always)]
pub(super) fn exp_from<T: Real>(row: &mut [T], seen: usize, scale: T, max: T) -> T {
    let (whole, rest) = row.split_at_mut(seen / LANES * LANES);
    let (whole, count) = (whole.as_chunks_mut::<LANES>().0, seen % LANES);
    // the remainder of the seen scores as a vector: in the row if it is long enough, otherwise in a copy
    let has_room = rest.len() >= LANES;
    let mut short = if has_room { [T::ZERO; LANES] } else { filled(rest) };
    let (last, hidden) = match has_room {
        true => rest.split_first_chunk_mut().expect("has room"),
        false => (&mut short, &mut [][..]),
    };
    hidden.fill(T::ZERO);

    let mut sums = [T::ZERO; LANES];
    for lanes in whole {
        for lane in 0..LANES {
            lanes[lane] = lanes[lane].mul_add(scale, -max).exp_below();
            sums[lane] += lanes[lane];
        }
    }
    for lane in 0..LANES {
        let x = last[lane].mul_add(scale, -max).exp_below();
        last[lane] = if lane < count { x } else { T::ZERO };
        sums[lane] += last[lane];
    }
    if !has_room {
        rest.copy_from_slice(&short[..rest.len()]);
    }
    fold(sums)
}
