//! Chains of operations on single digits: the problems of the quickstart's story.
//!
//! `3+4*2-1` is worked from left to right, every result modulo 10. A step of the long solution copies the first
//! operation, gives its result and copies what is left: `3+4=7*2-1;7*2=4-1;4-1=3`. The result stands beside its
//! operands, which small models learn several times faster than notations where it stands apart.

use std::fmt;

use crate::Rng;

/// One of the three operations; results are modulo 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add,
    Subtract,
    Multiply,
}

impl Op {
    pub const ALL: [Op; 3] = [Op::Add, Op::Subtract, Op::Multiply];

    /// `a op b` modulo 10, for digits `a` and `b`.
    pub fn apply(self, a: u8, b: u8) -> u8 {
        match self {
            Op::Add => (a + b) % 10,
            Op::Subtract => (a + 10 - b) % 10,
            Op::Multiply => (a * b) % 10,
        }
    }

    pub fn sign(self) -> char {
        match self {
            Op::Add => '+',
            Op::Subtract => '-',
            Op::Multiply => '*',
        }
    }

    fn of(sign: char) -> Option<Self> {
        Op::ALL.into_iter().find(|op| op.sign() == sign)
    }
}

/// A chain: one digit, then operations with one digit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub first: u8,
    pub rest: Vec<(Op, u8)>,
}

impl Chain {
    /// A random chain of `operations` operations.
    pub fn random(rng: &mut Rng, operations: usize) -> Self {
        let mut digit = || rng.below(10) as u8;
        let first = digit();
        let digits: Vec<u8> = (0..operations).map(|_| digit()).collect();
        Chain { first, rest: digits.into_iter().map(|d| (*rng.choose(&Op::ALL), d)).collect() }
    }

    /// Reads a problem as [`Chain`]'s `Display` writes it; `None` for anything else. At least one operation.
    pub fn parse(problem: &str) -> Option<Self> {
        let mut chars = problem.chars();
        let first = digit(chars.next()?)?;
        let mut rest = Vec::new();
        while let Some(sign) = chars.next() {
            rest.push((Op::of(sign)?, digit(chars.next()?)?));
        }
        (!rest.is_empty()).then_some(Chain { first, rest })
    }

    /// The right answer.
    pub fn answer(&self) -> u8 {
        self.rest.iter().fold(self.first, |x, &(op, d)| op.apply(x, d))
    }

    /// The right steps.
    pub fn steps(&self) -> Vec<String> {
        self.steps_with(|_, right| right)
    }

    /// Steps in which `result(i, right)` says what step `i` claims; the chain goes on from what was claimed.
    pub fn steps_with(&self, mut result: impl FnMut(usize, u8) -> u8) -> Vec<String> {
        let mut x = self.first;
        let mut steps = Vec::with_capacity(self.rest.len());
        for (i, &(op, d)) in self.rest.iter().enumerate() {
            let y = result(i, op.apply(x, d));
            let mut step = format!("{x}{}{d}={y}", op.sign());
            push_rest(&mut step, &self.rest[i + 1..]);
            steps.push(step);
            x = y;
        }
        steps
    }

    /// Steps in which each result is replaced by a random digit with probability `wrong` (which may be the right one).
    pub fn steps_with_errors(&self, rng: &mut Rng, wrong: f64) -> Vec<String> {
        self.steps_with(|_, right| if rng.chance(wrong) { rng.below(10) as u8 } else { right })
    }

    /// The long solution: the right steps joined by `;`.
    pub fn solution(&self) -> String {
        self.steps().join(";")
    }

    /// Share of the steps, from the first on, that `solution` has right; surplus steps lower it.
    ///
    /// In [0, 1]; 1 only when `solution` is the right one.
    pub fn leading_right(&self, solution: &str) -> f64 {
        let given: Vec<&str> = solution.trim().split(';').collect();
        let right = self.steps();
        let leading = given.iter().zip(&right).take_while(|(given, right)| given == right).count();
        leading as f64 / given.len().max(right.len()) as f64
    }

    /// Whether every step is right and none is missing or too many.
    pub fn every_step_right(&self, solution: &str) -> bool {
        solution.trim() == self.solution()
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.first.to_string();
        push_rest(&mut text, &self.rest);
        f.write_str(&text)
    }
}

fn push_rest(text: &mut String, rest: &[(Op, u8)]) {
    for &(op, d) in rest {
        text.push(op.sign());
        text.push((b'0' + d) as char);
    }
}

fn digit(c: char) -> Option<u8> {
    c.is_ascii_digit().then(|| c as u8 - b'0')
}

/// The digit a model answered: the lone digit after the last `=`, or the whole text when there is none.
pub fn answer_digit(text: &str) -> Option<u8> {
    let tail = text.rsplit('=').next().unwrap_or(text).trim();
    let mut chars = tail.chars();
    let answer = digit(chars.next()?)?;
    chars.next().is_none().then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_story_is_worked_as_written() {
        let chain = Chain::parse("3+4*2-1").unwrap();
        assert_eq!(chain.to_string(), "3+4*2-1");
        assert_eq!(chain.solution(), "3+4=7*2-1;7*2=4-1;4-1=3");
        assert_eq!(chain.answer(), 3);
    }

    #[test]
    fn what_is_no_chain_is_not_read_as_one() {
        for text in ["", "3", "3+", "12+3", "3/4", "3+4=7", " 3+4", "3+٣"] {
            assert_eq!(Chain::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_answer_is_the_lone_digit_after_the_last_equals_sign() {
        assert_eq!(answer_digit("3+4=7*2;7*2=4"), Some(4));
        assert_eq!(answer_digit(" 4\n"), Some(4));
        for text in ["", "=", "3+4=7*2", "14", "4.", "=4=", "four"] {
            assert_eq!(answer_digit(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_random_chain_parses_back_and_its_solution_is_right() {
        for i in 0..2000 {
            let mut rng = Rng::of(1, "chain", i);
            let n = rng.between(1, 6) as usize;
            let chain = Chain::random(&mut rng, n);
            assert_eq!(Chain::parse(&chain.to_string()), Some(chain.clone()));
            let solution = chain.solution();
            assert_eq!(answer_digit(&solution), Some(chain.answer()));
            assert!(chain.every_step_right(&solution));
            assert_eq!(chain.leading_right(&solution), 1.0);
            assert_eq!(solution.split(';').count(), n);
        }
    }

    #[test]
    fn leading_right_counts_up_to_the_first_error() {
        let chain = Chain::parse("3+4*2-1").unwrap();
        assert_eq!(chain.leading_right("3+4=7*2-1;7*2=5-1;5-1=4"), 1.0 / 3.0);
        assert_eq!(chain.leading_right("3+4=7*2-1;7*2=4-1"), 2.0 / 3.0);
        assert_eq!(chain.leading_right("3+4=7*2-1;7*2=4-1;4-1=3;4-1=3"), 3.0 / 4.0);
        assert_eq!(chain.leading_right("3"), 0.0);
        assert_eq!(chain.leading_right(""), 0.0);
    }

    #[test]
    fn a_wrong_result_is_what_the_chain_goes_on_from() {
        let chain = Chain::parse("3+4*2").unwrap();
        assert_eq!(chain.steps_with(|i, right| if i == 0 { 8 } else { right }), ["3+4=8*2", "8*2=6"]);
        // Of ten random digits one is the right one: half of the results at 0.5 are 45 % wrong.
        let mut rng = Rng::of(3, "wrong", 0);
        let wrong = (0..2000).filter(|_| chain.steps_with_errors(&mut rng, 0.5)[0] != "3+4=7*2").count();
        assert!((800..1000).contains(&wrong), "{wrong}");
        assert_eq!(chain.steps_with_errors(&mut rng, 0.0), chain.steps());
    }
}
