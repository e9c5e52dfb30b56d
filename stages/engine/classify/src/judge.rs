//! How far a classifier can be trusted, on documents that it did not learn from.

use smelt_kernels::math::sigmoid;

/// Bins of the calibration error.
const BINS: usize = 10;

/// The slope and offset that make probabilities of margins (Platt 1999, with his targets that keep both finite), found
/// by Newton's method. Both kinds weigh the same in sum. `margins`: with whether each is of a positive one; both kinds
/// are there.
pub fn calibrate(margins: &[(f64, bool)]) -> (f64, f64) {
    let positives = margins.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
    let negatives = margins.len() as f64 - positives;
    let row = |&(margin, is_positive): &(f64, bool)| match is_positive {
        true => (margin, (positives + 1.0) / (positives + 2.0), 1.0 / positives),
        false => (margin, 1.0 / (negatives + 2.0), 1.0 / negatives),
    };
    // Gradient and Hessian of the cross entropy by slope and offset.
    let derivatives = |slope: f64, offset: f64| {
        let (mut g, mut h) = ([0.0; 2], [1e-12, 0.0, 1e-12]);
        for (margin, target, weight) in margins.iter().map(row) {
            let p = sigmoid(slope * margin + offset);
            let (d, c) = ((p - target) * weight, p * (1.0 - p) * weight);
            g = [g[0] + d * margin, g[1] + d];
            h = [h[0] + c * margin * margin, h[1] + c * margin, h[2] + c];
        }
        (g, h)
    };
    let size = |g: [f64; 2]| g[0] * g[0] + g[1] * g[1];
    let (mut slope, mut offset) = (0.0, 0.0);
    let (mut g, mut h) = derivatives(slope, offset);
    for _ in 0..100 {
        let determinant = h[0] * h[2] - h[1] * h[1];
        let step = [(h[2] * g[0] - h[1] * g[1]) / determinant, (h[0] * g[1] - h[1] * g[0]) / determinant];
        // Half of a step that goes too far; the loss is convex, so a short enough one always helps.
        let mut scale = 1.0;
        let better = loop {
            let (s, o) = (slope - scale * step[0], offset - scale * step[1]);
            let (new_g, new_h) = derivatives(s, o);
            if size(new_g) < size(g) {
                break Some((s, o, new_g, new_h));
            }
            scale *= 0.5;
            if scale < 1e-6 {
                break None;
            }
        };
        let Some(found) = better else { break };
        (slope, offset, g, h) = found;
    }
    (slope, offset)
}

/// What scores say of documents whose kind is known; both kinds weigh the same in sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Share that is on the right side of 0.5.
    pub accuracy: f64,
    /// Probability that a positive document has a higher score than a negative one; equal ones count half.
    pub auc: f64,
    /// Mean distance of score and share of positives over ten bins of scores, by their weight.
    pub calibration_error: f64,
}

/// `scores`: with whether each is of a positive one; both kinds are there.
pub fn judge(scores: &[(f64, bool)]) -> Judgement {
    let positives = scores.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
    let negatives = scores.len() as f64 - positives;
    let weight = |is_positive: bool| 0.5 / if is_positive { positives } else { negatives };
    let right = scores.iter().filter(|&&(score, is_positive)| (score >= 0.5) == is_positive);
    let accuracy = right.map(|&(_, is_positive)| weight(is_positive)).sum();
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut pairs) = (0.0, 0.0);
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let up = same.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
        let down = same.len() as f64 - up;
        pairs += up * (below + 0.5 * down);
        below += down;
    }
    let mut bins = [[0.0; 3]; BINS]; // weight, score, positives
    for &(score, is_positive) in scores {
        let bin = &mut bins[((score * BINS as f64) as usize).min(BINS - 1)];
        let weight = weight(is_positive);
        *bin = [bin[0] + weight, bin[1] + weight * score, bin[2] + weight * f64::from(u8::from(is_positive))];
    }
    let calibration_error = bins.iter().map(|bin| (bin[1] - bin[2]).abs()).sum();
    Judgement { accuracy, auc: pairs / (positives * negatives), calibration_error }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Margins of which a third is on the wrong side, and three times as many negatives.
    fn margins() -> Vec<(f64, bool)> {
        let of = |i: usize| {
            let x = (i * 7919 % 1000) as f64 / 250.0 - 2.0;
            (x, i.is_multiple_of(4) && (x > 0.3 || i.is_multiple_of(3)))
        };
        (0..400).map(of).collect()
    }

    fn cross_entropy(margins: &[(f64, bool)], slope: f64, offset: f64) -> f64 {
        let n = |wanted: bool| margins.iter().filter(|(_, is)| *is == wanted).count() as f64;
        let (up, down) = (n(true), n(false));
        let one = |&(margin, is_positive): &(f64, bool)| {
            let p = 1.0 / (1.0 + (-(slope * margin + offset)).exp());
            let (target, weight) =
                if is_positive { ((up + 1.0) / (up + 2.0), 1.0 / up) } else { (1.0 / (down + 2.0), 1.0 / down) };
            -weight * (target * p.ln() + (1.0 - target) * (1.0 - p).ln())
        };
        margins.iter().map(one).sum()
    }

    #[test]
    fn calibration_is_the_lowest_point_of_the_cross_entropy() {
        let separable: Vec<(f64, bool)> = (0..40).map(|i| (f64::from(i) - 20.0, i >= 20)).collect();
        for margins in [margins(), separable] {
            let (slope, offset) = calibrate(&margins);
            assert!(slope > 0.0 && slope.is_finite());
            let lowest = cross_entropy(&margins, slope, offset);
            for (ds, d) in [(1e-3, 0.0), (-1e-3, 0.0), (0.0, 1e-3), (0.0, -1e-3)] {
                assert!(cross_entropy(&margins, slope + ds, offset + d) > lowest, "{slope} {offset}");
            }
        }
    }

    #[test]
    fn figures_are_those_of_plain_loops() {
        let scores: Vec<(f64, bool)> =
            margins().iter().map(|&(m, is)| ((m.clamp(-1.9, 1.9) * 5.0).round() / 20.0 + 0.5, is)).collect();
        let found = judge(&scores);
        let of = |wanted: bool| -> Vec<f64> { scores.iter().filter(|s| s.1 == wanted).map(|s| s.0).collect() };
        let (up, down) = (of(true), of(false));
        let half = |a: f64, b: f64| {
            if a > b {
                1.0
            } else if a == b {
                0.5
            } else {
                0.0
            }
        };
        let pairs: f64 = up.iter().map(|&a| down.iter().map(|&b| half(a, b)).sum::<f64>()).sum();
        assert!((found.auc - pairs / (up.len() * down.len()) as f64).abs() < 1e-12);
        let share =
            |of: &[f64], right: fn(&f64) -> bool| of.iter().filter(|s| right(s)).count() as f64 / of.len() as f64;
        let accuracy = 0.5 * share(&up, |&s| s >= 0.5) + 0.5 * share(&down, |&s| s < 0.5);
        assert!((found.accuracy - accuracy).abs() < 1e-12);
        assert!((judge(&[(0.95, true), (0.05, false)]).calibration_error - 0.05).abs() < 1e-12);
        assert!((judge(&[(0.95, false), (0.05, true)]).calibration_error - 0.95).abs() < 1e-12);
    }
}
