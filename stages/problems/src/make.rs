//! Draws problems and writes them as questions, as conversations and as text.

use std::collections::BTreeSet;

use smelt_stage::{ExitCode, Fault};
use smelt_verify::Rng;

use crate::family::{Exercise, Family, lead_through_test};

/// Which problems are drawn.
///
/// A training problem is drawn only if its solution leads through no test problem. What a step leaves of a chain is
/// again a chain, solved by the following steps; without this rule a corpus of solutions would hold test problems with
/// their solutions. With `test_share` = s the rule refuses 1 − (1 − s)^(n − 2) of the chains of n operations: at
/// the default of 0.05, 5 % of those with three operations to 19 % of those with six.
#[derive(Clone, Debug)]
pub struct Draw<'a> {
    pub family: Family,
    /// Sizes; one that is listed twice is drawn twice as often.
    pub sizes: &'a [usize],
    /// Largest number where the family has such.
    pub largest: u64,
    pub seed: u64,
    /// Another number gives other problems under the same seed.
    pub stream: u64,
    /// Share of all problems that are test problems, and whether they or the others are drawn.
    pub test_share: f64,
    pub is_test: bool,
}

/// Fewer problems exist than were asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found} different problems of family `{family}`, expected {count}")]
pub struct TooFew {
    family: &'static str,
    found: usize,
    count: usize,
}

impl Fault for TooFew {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Pipeline
    }
    fn hint(&self) -> Option<String> {
        Some("ask for fewer, or allow more in `sizes` or `largest`".into())
    }
}

/// The search ends after so many draws in a row without a new problem.
const PATIENCE: u64 = 100_000;

/// So many solutions with wrong results are drawn of one problem before the right one is taken.
const TRIES: usize = 1000;

impl Draw<'_> {
    fn rng(&self, what: &str) -> Rng {
        Rng::of(self.seed, &format!("{what} of {}", self.family.name()), self.stream)
    }

    fn one(&self, rng: &mut Rng) -> Exercise {
        let size = *rng.choose(self.sizes);
        self.family.random(rng, size, self.largest)
    }

    /// Whether a problem is on the side that is drawn.
    fn takes(&self, problem: &Exercise) -> bool {
        problem.is_test(self.test_share) == self.is_test
            && (self.is_test || !problem.leads_through_test(self.test_share))
    }

    /// A worked solution of a problem that was drawn; each result is replaced with probability `wrong`. A training
    /// solution whose wrong results lead through a test problem is drawn again.
    pub fn solution(&self, problem: &Exercise, rng: &mut Rng, wrong: f64) -> String {
        for _ in 0..TRIES {
            let steps = problem.steps(rng, wrong);
            if self.is_test || self.family != Family::Chain || !lead_through_test(&steps, self.test_share) {
                return steps.join(";");
            }
        }
        problem.solution(rng, 0.0)
    }

    /// `count` different problems, in the order in which they were drawn.
    pub fn distinct(&self, count: usize) -> Result<Vec<Exercise>, TooFew> {
        let mut rng = self.rng("problems");
        let mut seen = BTreeSet::new();
        let mut problems = Vec::with_capacity(count);
        let mut idle = 0;
        while problems.len() < count {
            let problem = self.one(&mut rng);
            if self.takes(&problem) && seen.insert(problem.text()) {
                problems.push(problem);
                idle = 0;
            } else {
                idle += 1;
                if idle == PATIENCE {
                    return Err(TooFew { family: self.family.name(), found: problems.len(), count });
                }
            }
        }
        Ok(problems)
    }

    /// Text to pretrain on: documents of about `per_document` characters, together at least `characters`.
    ///
    /// Lines are facts (`3+4=7`) or a problem with its worked solution (`3+4*2;3+4=7*2;7*2=4`); facts take the share
    /// `facts` of all characters, and of the results in solutions a share `wrong` is replaced. Problems may repeat,
    /// none is of the test set or leads through it (or, for a test draw, all are).
    pub fn text(&self, characters: usize, per_document: usize, facts: f64, wrong: f64) -> Result<Vec<String>, TooFew> {
        let mut rng = self.rng("text");
        let mut documents = Vec::new();
        let mut document = String::new();
        let (mut all, mut of_facts, mut idle) = (0usize, 0usize, 0);
        while all < characters {
            let is_fact = (of_facts as f64) < facts * all as f64 || (all == 0 && facts >= 1.0);
            let line = if is_fact {
                self.family.fact(&mut rng, self.largest)
            } else {
                let problem = self.one(&mut rng);
                if !self.takes(&problem) {
                    idle += 1;
                    if idle == PATIENCE {
                        return Err(TooFew { family: self.family.name(), found: 0, count: 1 });
                    }
                    continue;
                }
                idle = 0;
                let solution = self.solution(&problem, &mut rng, wrong);
                format!("{};{solution}", problem.text())
            };
            let length = line.chars().count() + 1;
            all += length;
            of_facts += if is_fact { length } else { 0 };
            document.push_str(&line);
            document.push('\n');
            if document.len() >= per_document {
                documents.push(std::mem::take(&mut document));
            }
        }
        if !document.is_empty() {
            documents.push(document);
        }
        Ok(documents)
    }

    /// Random numbers for decisions other than the problem itself, such as its wrong results.
    pub fn side(&self, what: &str) -> Rng {
        self.rng(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_verify::chain::Chain;

    const STORY: [usize; 12] = [2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 6];

    fn draw(seed: u64, is_test: bool) -> Draw<'static> {
        Draw { family: Family::Chain, sizes: &STORY, largest: 20, seed, stream: 0, test_share: 0.05, is_test }
    }

    #[test]
    fn train_and_test_never_overlap() {
        for seed in 0..20 {
            let texts = |is_test| -> BTreeSet<String> {
                draw(seed + u64::from(is_test) * 1000, is_test)
                    .distinct(500)
                    .unwrap()
                    .iter()
                    .map(Exercise::text)
                    .collect()
            };
            let (train, test) = (texts(false), texts(true));
            assert_eq!((train.len(), test.len()), (500, 500));
            assert!(train.is_disjoint(&test));
            let test_problems: BTreeSet<String> = test;
            for document in draw(seed, false).text(20_000, 2000, 0.35, 0.1).unwrap() {
                for line in document.lines() {
                    let problem = line.split(';').next().unwrap();
                    assert!(!test_problems.contains(problem), "{line}");
                }
            }
        }
    }

    #[test]
    fn no_training_solution_works_a_test_problem_on_its_way() {
        for seed in 0..5 {
            let mut seen = 0;
            for document in draw(seed, false).text(100_000, 2000, 0.35, 0.3).unwrap() {
                for step in document.lines().flat_map(|line| line.split(';')) {
                    let rest = step.split_once('=').map_or(step, |(_, rest)| rest);
                    if let Some(rest) = Chain::parse(rest) {
                        assert!(!Exercise::Chain(rest).is_test(0.05), "{step}");
                        seen += 1;
                    }
                }
            }
            assert!(seen > 5000, "{seen}");
        }
    }

    /// Measured for the quickstart's sizes: so few are refused that its jobs have all the problems they ask for.
    #[test]
    fn few_draws_are_refused_and_enough_problems_are_left() {
        for (size, expected) in [(2, 0.0), (3, 0.05), (4, 0.0975), (5, 0.1426), (6, 0.1855)] {
            let (mut train, mut refused) = (0.0, 0.0);
            let mut rng = Rng::of(9, "refused", size as u64);
            for _ in 0..20_000 {
                let problem = Family::Chain.random(&mut rng, size, 20);
                if !problem.is_test(0.05) {
                    train += 1.0;
                    refused += f64::from(u8::from(problem.leads_through_test(0.05)));
                }
            }
            // standard deviation 0.3 %; and of the 9,000 chains of two operations not exactly 5 % are test problems
            assert!((refused / train - expected).abs() < 0.03, "{size}: {}", refused / train);
        }
        let quickstart = Draw { sizes: &[2, 3, 4, 5, 6], ..draw(1, false) };
        assert_eq!(quickstart.distinct(3000).unwrap().len(), 3000);
        // 9,000 chains of two operations, 5 % of them of the test set
        let small = Draw { sizes: &[2], ..draw(1, false) };
        assert_eq!(small.distinct(8000).unwrap().len(), 8000);
    }

    #[test]
    fn the_same_seed_gives_the_same_problems_and_another_stream_others() {
        let first = draw(1, false).distinct(100).unwrap();
        assert_eq!(first, draw(1, false).distinct(100).unwrap());
        assert_eq!(first[..50], draw(1, false).distinct(50).unwrap());
        assert_ne!(first, Draw { stream: 1, ..draw(1, false) }.distinct(100).unwrap());
        assert_ne!(first, draw(2, false).distinct(100).unwrap());
    }

    #[test]
    fn text_has_its_share_of_facts_and_of_wrong_results() {
        let documents = draw(3, false).text(400_000, 2000, 0.35, 0.1).unwrap();
        let (mut all, mut facts, mut results, mut wrong) = (0, 0, 0, 0);
        for line in documents.iter().flat_map(|d| d.lines()) {
            all += line.len() + 1;
            if line.contains(';') {
                for step in line.split(';').skip(1) {
                    let (operation, rest) = step.split_once('=').unwrap();
                    results += 1;
                    let right = Chain::parse(operation).unwrap().answer().to_string();
                    wrong += usize::from(!rest.starts_with(&right));
                }
            } else {
                facts += line.len() + 1;
                let (operation, result) = line.split_once('=').unwrap();
                assert_eq!(Chain::parse(operation).unwrap().answer().to_string(), result);
            }
        }
        let share = facts as f64 / all as f64;
        assert!((share - 0.35).abs() < 0.001, "{share}");
        // A replaced result is the right one by chance in one of ten.
        let share = wrong as f64 / results as f64;
        assert!((share - 0.09).abs() < 0.01, "{share}");
        assert!((400_000..400_100).contains(&all), "{all}");
        assert!(documents[..documents.len() - 1].iter().all(|d| (2000..2100).contains(&d.len())));
    }

    #[test]
    fn asking_for_more_than_there_are_says_how_many_there_are() {
        let one = Draw { sizes: &[1], ..draw(0, false) };
        assert_eq!(one.distinct(300).unwrap().len(), 300);
        assert_eq!(
            one.distinct(301).unwrap_err().to_string(),
            "found 300 different problems of family `chain`, expected 301"
        );
    }

    #[test]
    fn text_of_problems_that_do_not_exist_is_an_error() {
        // Chains of one operation are never test problems.
        let none = Draw { sizes: &[1], ..draw(0, true) };
        assert!(none.text(1000, 100, 0.5, 0.0).is_err());
    }

    #[test]
    fn every_family_writes_text() {
        for family in [Family::Addition, Family::Account] {
            let documents = Draw { family, sizes: &[2, 3], ..draw(5, false) }.text(5000, 1000, 0.35, 0.0).unwrap();
            assert!(documents.iter().flat_map(|d| d.lines()).all(|line| line.contains('=')), "{documents:?}");
        }
    }
}
