//! Small word problems: a few sentences about one person's things, with a number as the answer.
//!
//! Every problem is an [`Account`]: a number at the start and changes to it. The sentences and the worked solution are
//! written from it, so the answer never has to be recovered from the text.

use crate::Rng;

/// One change: gets more, gives away, or multiplies what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Gets(u64),
    Gives(u64),
    Times(u64),
}

/// Who has how many of what, and what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: &'static str,
    pub thing: &'static str,
    pub start: u64,
    pub changes: Vec<Change>,
}

const NAMES: [&str; 12] =
    ["Ada", "Ben", "Chen", "Dora", "Emil", "Fatou", "Gita", "Hugo", "Ines", "Jonas", "Kira", "Luis"];
const THINGS: [&str; 10] =
    ["apples", "books", "coins", "stamps", "shells", "pencils", "marbles", "cards", "nuts", "stones"];

impl Account {
    /// A random account with `changes` changes; numbers up to `largest`, never below zero on the way.
    pub fn random(rng: &mut Rng, changes: usize, largest: u64) -> Self {
        assert!(largest >= 2, "Account::random: largest is {largest}, expected at least 2");
        let (name, thing) = (*rng.choose(&NAMES), *rng.choose(&THINGS));
        let start = rng.between(2, largest);
        let mut now = start;
        let mut list = Vec::with_capacity(changes);
        for _ in 0..changes {
            let change = match rng.below(3) {
                0 if now > 0 => Change::Gives(rng.between(1, now.min(largest))),
                1 if now > 0 && now <= largest => Change::Times(rng.between(2, 3)),
                _ => Change::Gets(rng.between(1, largest)),
            };
            now = change.apply(now);
            list.push(change);
        }
        Account { name, thing, start, changes: list }
    }

    pub fn answer(&self) -> u64 {
        self.changes.iter().fold(self.start, |now, change| change.apply(now))
    }

    /// The problem in sentences, ending in its question.
    pub fn text(&self) -> String {
        let Account { name, thing, start, .. } = self;
        let mut text = format!("{name} has {start} {thing}.");
        for change in &self.changes {
            text.push_str(&match change {
                Change::Gets(n) => format!(" {name} gets {n} more."),
                Change::Gives(n) => format!(" {name} gives {n} away."),
                Change::Times(n) => format!(" Then {name} finds enough to have {n} times as many."),
            });
        }
        text.push_str(&format!(" How many {thing} does {name} have now?"));
        text
    }

    /// One calculation per change: `3+4=7`.
    pub fn steps(&self) -> Vec<String> {
        self.steps_with(|_, right| right)
    }

    /// Steps in which `result(i, right)` says what step `i` claims; the rest goes on from what was claimed.
    pub fn steps_with(&self, mut result: impl FnMut(usize, u64) -> u64) -> Vec<String> {
        let mut now = self.start;
        let mut steps = Vec::with_capacity(self.changes.len());
        for (i, change) in self.changes.iter().enumerate() {
            let claimed = result(i, change.apply(now));
            let (sign, n) = match change {
                Change::Gets(n) => ('+', n),
                Change::Gives(n) => ('-', n),
                Change::Times(n) => ('*', n),
            };
            steps.push(format!("{now}{sign}{n}={claimed}"));
            now = claimed;
        }
        steps
    }

    /// Steps in which each result is off by 1 to 9 upwards with probability `wrong`.
    pub fn steps_with_errors(&self, rng: &mut Rng, wrong: f64) -> Vec<String> {
        self.steps_with(|_, right| if rng.chance(wrong) { right + rng.between(1, 9) } else { right })
    }
}

impl Change {
    fn apply(self, now: u64) -> u64 {
        match self {
            Change::Gets(n) => now + n,
            // A wrong step before it may have left less than is given away.
            Change::Gives(n) => now.saturating_sub(n),
            Change::Times(n) => now * n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_steps_and_answer_tell_the_same_story() {
        let account = Account {
            name: "Ada",
            thing: "coins",
            start: 3,
            changes: vec![Change::Gets(4), Change::Times(2), Change::Gives(5)],
        };
        assert_eq!(
            account.text(),
            "Ada has 3 coins. Ada gets 4 more. Then Ada finds enough to have 2 times as many. Ada gives 5 away. \
             How many coins does Ada have now?"
        );
        assert_eq!(account.steps(), ["3+4=7", "7*2=14", "14-5=9"]);
        assert_eq!(account.answer(), 9);
    }

    #[test]
    fn nobody_gives_away_more_than_there_is() {
        for i in 0..2000 {
            let mut rng = Rng::of(3, "account", i);
            let account = Account::random(&mut rng, 4, 20);
            let mut now = account.start;
            for change in &account.changes {
                if let Change::Gives(n) = change {
                    assert!(*n <= now, "{account:?}");
                }
                now = change.apply(now);
            }
            assert!(account.steps().last().unwrap().ends_with(&format!("={}", account.answer())));
        }
    }
}
