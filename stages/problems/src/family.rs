//! The families of problems, and a single problem.
//!
//! A problem has one canonical text, which is also what the model is asked; problems with equal texts are the same.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_verify::account::Account;
use smelt_verify::addition::Addition;
use smelt_verify::chain::Chain;
use smelt_verify::{Rng, Verifier};

/// A sort of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Operations on single digits, modulo 10: `3+4*2-1`. A size is a number of operations.
    Chain,
    /// Addition of two numbers: `478+65`. A size is the largest number of digits.
    Addition,
    /// A few sentences about one person's things. A size is a number of changes.
    Account,
}

/// One problem. (`Problem` is what went wrong, everywhere in smelt.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exercise {
    Chain(Chain),
    Addition(Addition),
    Account(Account),
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Family::Chain => "chain",
            Family::Addition => "addition",
            Family::Account => "account",
        }
    }

    /// Largest size that makes sense, so that no number overflows and no problem fills a context.
    pub fn largest_size(self) -> usize {
        match self {
            Family::Chain => 100,
            Family::Addition => 18,
            Family::Account => 8,
        }
    }

    /// A random problem of `size`, numbers up to `largest` where the family has such.
    pub fn random(self, rng: &mut Rng, size: usize, largest: u64) -> Exercise {
        match self {
            Family::Chain => Exercise::Chain(Chain::random(rng, size)),
            Family::Addition => Exercise::Addition(Addition::random(rng, size)),
            Family::Account => Exercise::Account(Account::random(rng, size, largest)),
        }
    }

    /// One calculation with its result, the smallest piece of the family's worked solutions: `3+4=7`.
    pub fn fact(self, rng: &mut Rng, largest: u64) -> String {
        match self {
            Family::Chain => Chain::random(rng, 1).solution(),
            Family::Addition => Addition::random(rng, 1).steps().swap_remove(0),
            Family::Account => Account::random(rng, 1, largest).steps().swap_remove(0),
        }
    }
}

impl Exercise {
    /// What the model is asked.
    pub fn text(&self) -> String {
        match self {
            Exercise::Chain(chain) => chain.to_string(),
            Exercise::Addition(sum) => sum.to_string(),
            Exercise::Account(account) => account.text(),
        }
    }

    /// The plain answer.
    pub fn answer(&self) -> String {
        match self {
            Exercise::Chain(chain) => chain.answer().to_string(),
            Exercise::Addition(sum) => sum.answer().to_string(),
            Exercise::Account(account) => account.answer().to_string(),
        }
    }

    /// The steps of the worked solution; each result is replaced with probability `wrong`, and the rest continues from
    /// it.
    pub fn steps(&self, rng: &mut Rng, wrong: f64) -> Vec<String> {
        match self {
            Exercise::Chain(chain) => chain.steps_with_errors(rng, wrong),
            Exercise::Addition(sum) => sum.steps_with_errors(rng, wrong),
            Exercise::Account(account) => account.steps_with_errors(rng, wrong),
        }
    }

    /// The steps joined by `;`.
    pub fn solution(&self, rng: &mut Rng, wrong: f64) -> String {
        self.steps(rng, wrong).join(";")
    }

    /// What judges an answer.
    pub fn verifier(&self) -> Verifier {
        match self {
            Exercise::Chain(chain) => Verifier::Chain { problem: chain.to_string() },
            Exercise::Addition(sum) => Verifier::Addition { problem: sum.to_string() },
            Exercise::Account(_) => Verifier::Number,
        }
    }

    /// Whether the problem belongs to the test set, of which `share` of all problems are part.
    ///
    /// Decided by a hash of the text alone, so that no seed, count or order can move a problem to the other side.
    /// Chains of one operation are facts, not problems: a model must see all of them.
    pub fn is_test(&self, share: f64) -> bool {
        if matches!(self, Exercise::Chain(chain) if chain.rest.len() < 2) {
            return false;
        }
        // Of 2^53 equal steps, as a double counts them exactly.
        ((smelt_verify::hash(&self.text()) >> 11) as f64) < share * (1u64 << 53) as f64
    }

    /// Whether the right solution leads through a test problem: what a step leaves of a chain is itself a chain, solved
    /// by the following steps. In other families no step holds another problem.
    pub fn leads_through_test(&self, share: f64) -> bool {
        match self {
            Exercise::Chain(chain) => lead_through_test(&chain.steps(), share),
            Exercise::Addition(_) | Exercise::Account(_) => false,
        }
    }
}

/// Whether one of a chain's steps leaves a test problem: behind `=` stands the rest, `7*2-1` in `3+4=7*2-1`.
pub fn lead_through_test(steps: &[String], share: f64) -> bool {
    let rests = steps.iter().filter_map(|step| step.split_once('=')).map(|(_, rest)| rest);
    rests.filter_map(Chain::parse).any(|rest| Exercise::Chain(rest).is_test(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Family; 3] = [Family::Chain, Family::Addition, Family::Account];

    #[test]
    fn every_verifier_accepts_its_answer_and_its_solution() {
        for family in ALL {
            for i in 0..500 {
                let mut rng = Rng::of(1, family.name(), i);
                let size = rng.between(1, 4) as usize;
                let problem = family.random(&mut rng, size, 20);
                let verifier = problem.verifier();
                for text in [problem.answer(), problem.solution(&mut rng, 0.0)] {
                    let score = verifier.score(&problem.answer(), &text).unwrap();
                    assert!(score.right, "{verifier} refuses {text:?} for {:?}", problem.text());
                }
                let wrong = format!("{}0", problem.answer());
                let score = verifier.score(&problem.answer(), &wrong).unwrap();
                assert!(!score.right || problem.answer() == "0", "{verifier} accepts {wrong:?}");
            }
        }
    }

    #[test]
    fn the_test_set_has_its_share() {
        for family in ALL {
            let mut test = 0;
            for i in 0..4000 {
                let mut rng = Rng::of(2, family.name(), i);
                test += usize::from(family.random(&mut rng, 3, 20).is_test(0.1));
            }
            // Standard deviation 19, more where problems repeat: six of them.
            assert!((286..514).contains(&test), "{family:?}: {test} of 4000");
        }
    }

    #[test]
    fn what_a_step_leaves_is_looked_at_when_it_is_a_problem() {
        let parse = |text: &str| Exercise::Chain(Chain::parse(text).unwrap());
        // with a share of 1 every chain of two operations or more is a test problem, and none of one
        assert!(parse("3+4*2-1").leads_through_test(1.0), "7*2-1 is one");
        assert!(!parse("3+4*2").leads_through_test(1.0), "7*2 is a fact");
        assert!(!parse("3+4*2-1").leads_through_test(0.0));
        // what is left by a wrong result counts as well
        let steps = |first: &str| [first.to_owned(), "x=4-1".to_owned()];
        let share = |text: &str| (smelt_verify::hash(text) >> 11) as f64 / (1u64 << 53) as f64;
        let between = (share("7*2-1") + share("8*2-1")) / 2.0;
        assert_ne!(lead_through_test(&steps("3+4=7*2-1"), between), lead_through_test(&steps("3+4=8*2-1"), between));
    }

    #[test]
    fn facts_are_no_test_problems() {
        for i in 0..300 {
            let mut rng = Rng::of(3, "facts", i);
            assert!(!Exercise::Chain(Chain::random(&mut rng, 1)).is_test(1.0));
            let fact = Family::Chain.fact(&mut rng, 10);
            assert_eq!(fact.len(), 5, "{fact}");
        }
    }
}
