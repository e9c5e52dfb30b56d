//! Solutions spoilt on purpose: the rejected side of a reward model's pairs.
//!
//! Each kind breaks one thing and leaves the rest in order, so that a reward model cannot learn a shortcut such as
//! "wrong answers are short". The kinds and their mix are those of the quickstart's story.

use crate::Rng;
use crate::chain::{Chain, Op};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// One result is wrong; the chain goes on from it, so everything else is consistent.
    Step,
    /// An operand or operation changes while being copied; the chain goes on from it.
    Copy,
    /// Only the last digit is wrong.
    Answer,
    /// A step or the end is missing, or a mark too many.
    Format,
    /// A step stands twice.
    Long,
}

impl Corruption {
    pub const ALL: [Corruption; 5] =
        [Corruption::Step, Corruption::Copy, Corruption::Answer, Corruption::Format, Corruption::Long];

    /// The mix that reward-model pairs cycle through: a wrong step twice as often as the others.
    pub const MIX: [Corruption; 6] = [
        Corruption::Step,
        Corruption::Step,
        Corruption::Copy,
        Corruption::Answer,
        Corruption::Format,
        Corruption::Long,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Corruption::Step => "step",
            Corruption::Copy => "copy",
            Corruption::Answer => "answer",
            Corruption::Format => "format",
            Corruption::Long => "long",
        }
    }
}

/// A solution of `chain` with one thing broken; never the right solution.
///
/// `None` where the kind needs more operations than the chain has: `Copy` and `Format` need two.
pub fn corrupt(chain: &Chain, kind: Corruption, rng: &mut Rng) -> Option<String> {
    let steps = chain.steps();
    let n = steps.len();
    let other_digit = |d: u8, rng: &mut Rng| (d + rng.between(1, 9) as u8) % 10;
    Some(match kind {
        Corruption::Step => {
            let wrong = rng.below(n as u64) as usize;
            chain.steps_with(|i, right| if i == wrong { other_digit(right, rng) } else { right }).join(";")
        }
        Corruption::Copy => {
            if n < 2 {
                return None;
            }
            let last_right = rng.below(n as u64 - 1) as usize;
            let changed = rng.between(last_right as u64 + 1, n as u64 - 1) as usize;
            let mut other = chain.clone();
            let (op, digit) = &mut other.rest[changed];
            if rng.chance(0.5) {
                *digit = other_digit(*digit, rng);
            } else {
                let others: Vec<Op> = Op::ALL.into_iter().filter(|o| o != op).collect();
                *op = *rng.choose(&others);
            }
            // Steps before the slip are the right ones; from it on the changed chain is worked. The step of the slip
            // itself shows the change in what it copies.
            let mut spoilt = steps[..last_right].to_vec();
            spoilt.extend_from_slice(&other.steps()[last_right..]);
            spoilt.join(";")
        }
        Corruption::Answer => {
            let mut spoilt = steps.join(";");
            spoilt.pop();
            spoilt.push((b'0' + other_digit(chain.answer(), rng)) as char);
            spoilt
        }
        Corruption::Format => {
            if n < 2 {
                return None;
            }
            match rng.below(5) {
                0 => steps[..n - 1].join(";"),
                1 => chain.answer().to_string(),
                2 => [&steps[..n - 2], &steps[n - 1..]].concat().join(";"),
                3 => steps.join(";") + ";",
                _ => {
                    let mut cut = steps.join(";");
                    cut.pop();
                    cut
                }
            }
        }
        Corruption::Long => {
            let twice = rng.below(n as u64) as usize;
            [&steps[..=twice], &steps[twice..]].concat().join(";")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::answer_digit;

    #[test]
    fn no_corruption_is_the_right_solution() {
        for i in 0..3000 {
            let mut rng = Rng::of(5, "corrupt", i);
            let n = rng.between(2, 6) as usize;
            let chain = Chain::random(&mut rng, n);
            for kind in Corruption::ALL {
                let spoilt = corrupt(&chain, kind, &mut rng).expect("two operations are enough for every kind");
                assert!(!chain.every_step_right(&spoilt), "{kind:?} of {chain} left it right: {spoilt}");
            }
        }
    }

    #[test]
    fn each_kind_breaks_what_it_says() {
        let chain = Chain::parse("3+4*2-1").unwrap();
        for i in 0..200 {
            let mut rng = Rng::of(6, "kinds", i);
            let answer = corrupt(&chain, Corruption::Answer, &mut rng).unwrap();
            assert_eq!(chain.leading_right(&answer), 2.0 / 3.0);
            assert_ne!(answer_digit(&answer), Some(3));
            let step = corrupt(&chain, Corruption::Step, &mut rng).unwrap();
            assert_eq!(step.split(';').count(), 3);
            let long = corrupt(&chain, Corruption::Long, &mut rng).unwrap();
            assert_eq!(long.split(';').count(), 4);
            assert_eq!(answer_digit(&long), Some(3));
            let copy = corrupt(&chain, Corruption::Copy, &mut rng).unwrap();
            assert_eq!(copy.len(), chain.solution().len());
        }
    }

    #[test]
    fn one_operation_is_too_short_to_miscopy() {
        let chain = Chain::parse("3+4").unwrap();
        let mut rng = Rng::of(0, "short", 0);
        assert_eq!(corrupt(&chain, Corruption::Copy, &mut rng), None);
        assert_eq!(corrupt(&chain, Corruption::Format, &mut rng), None);
        assert!(corrupt(&chain, Corruption::Step, &mut rng).is_some());
    }
}
