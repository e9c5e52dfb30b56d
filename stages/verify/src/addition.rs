//! Addition of numbers of several digits, worked column by column from the right.
//!
//! `478+65` is worked as `8+5+0=13;7+6+1=14;4+0+1=5;543`: digit, digit, carry; then the sum, read off the columns.

use std::fmt;

use crate::Rng;

/// Two numbers to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addition {
    pub a: u64,
    pub b: u64,
}

impl Addition {
    /// Two random numbers of 1 to `digits` digits each; at most 18 digits.
    pub fn random(rng: &mut Rng, digits: usize) -> Self {
        assert!((1..=18).contains(&digits), "Addition::random: {digits} digits, expected 1 to 18");
        let mut number = || {
            let n = rng.between(1, digits as u64) as u32;
            rng.between(if n == 1 { 0 } else { 10u64.pow(n - 1) }, 10u64.pow(n) - 1)
        };
        Addition { a: number(), b: number() }
    }

    /// Reads `478+65`; no signs, blanks or leading zeros, at most 18 digits each.
    pub fn parse(problem: &str) -> Option<Self> {
        let (a, b) = problem.split_once('+')?;
        let number = |s: &str| {
            let plain = !s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
            (plain && (s == "0" || !s.starts_with('0'))).then(|| s.parse().ok()).flatten()
        };
        Some(Addition { a: number(a)?, b: number(b)? })
    }

    pub fn answer(self) -> u64 {
        self.a + self.b
    }

    /// The columns from the right, then the sum.
    pub fn steps(self) -> Vec<String> {
        self.steps_with(|_, right| right)
    }

    /// Steps in which `column(i, right)` says what column `i` claims; carries and the sum go on from what was claimed.
    pub fn steps_with(self, mut column: impl FnMut(usize, u64) -> u64) -> Vec<String> {
        let (mut a, mut b, mut carry) = (self.a, self.b, 0);
        let (mut sum, mut place) = (0u128, 1u128);
        let mut steps = Vec::new();
        loop {
            let (x, y) = (a % 10, b % 10);
            let claimed = column(steps.len(), x + y + carry);
            steps.push(format!("{x}+{y}+{carry}={claimed}"));
            sum += u128::from(claimed % 10) * place;
            place *= 10;
            carry = claimed / 10;
            a /= 10;
            b /= 10;
            if a == 0 && b == 0 {
                sum += u128::from(carry) * place;
                steps.push(sum.to_string());
                return steps;
            }
        }
    }

    /// Steps in which each column is replaced by a random one in 0..=19 with probability `wrong`.
    pub fn steps_with_errors(self, rng: &mut Rng, wrong: f64) -> Vec<String> {
        self.steps_with(|_, right| if rng.chance(wrong) { rng.below(20) } else { right })
    }
}

impl fmt::Display for Addition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.a, self.b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_carry() {
        let sum = Addition::parse("478+65").unwrap();
        assert_eq!(sum.steps().join(";"), "8+5+0=13;7+6+1=14;4+0+1=5;543");
        assert_eq!(Addition { a: 99, b: 1 }.steps().join(";"), "9+1+0=10;9+0+1=10;100");
        assert_eq!(Addition { a: 0, b: 0 }.steps().join(";"), "0+0+0=0;0");
    }

    #[test]
    fn the_last_step_is_the_sum() {
        for i in 0..2000 {
            let mut rng = Rng::of(2, "addition", i);
            let sum = Addition::random(&mut rng, 18);
            assert_eq!(sum.steps().last(), Some(&sum.answer().to_string()));
            assert_eq!(Addition::parse(&sum.to_string()), Some(sum));
        }
    }

    #[test]
    fn what_is_no_addition_is_not_read_as_one() {
        for text in ["", "1", "1+", "+1", "01+2", "1+2+3", "1 + 2", "-1+2", "1234567890123456789+1"] {
            assert_eq!(Addition::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_column_changes_what_follows() {
        let steps = Addition { a: 18, b: 5 }.steps_with(|i, right| if i == 0 { 4 } else { right });
        assert_eq!(steps, ["8+5+0=4", "1+0+0=1", "14"]);
    }
}
