//! How often each part is written.

/// What a config asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Amount {
    /// So many times.
    Epochs(f64),
    /// Its share in what parts with weights write, at most `most` times.
    Share { weight: f64, most: f64 },
}

/// How often each part is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// By part; 1.5 writes every document once, and half of them a second time.
    pub epochs: Vec<f64>,
    /// Tokens in all, about.
    pub tokens: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// This part has no token.
    Empty(usize),
    /// The parts with epochs alone have so many tokens.
    OverBudget(u64),
}

impl Plan {
    /// `tokens`: those that each part has. Also gives the part whose limit keeps the budget from being reached, or, if
    /// there is no budget, from which the amount follows.
    pub(crate) fn new(amounts: &[Amount], tokens: &[u64], budget: Option<u64>) -> Result<(Self, Option<usize>), Fault> {
        if let Some(empty) = tokens.iter().position(|&count| count == 0) {
            return Err(Fault::Empty(empty));
        }
        let (mut fixed, mut weights) = (0.0, 0.0);
        for (amount, &count) in amounts.iter().zip(tokens) {
            match amount {
                Amount::Epochs(epochs) => fixed += epochs * count as f64,
                Amount::Share { weight, .. } => weights += weight,
            }
        }
        if budget.is_some_and(|budget| fixed > budget as f64) {
            return Err(Fault::OverBudget(fixed.ceil() as u64));
        }
        // Of a weight of 1: the part that reaches its limit first decides.
        let (mut unit, mut limited) = (budget.map_or(f64::INFINITY, |b| (b as f64 - fixed) / weights), None);
        for (i, (amount, &count)) in amounts.iter().zip(tokens).enumerate() {
            if let Amount::Share { weight, most } = amount
                && most * (count as f64) / weight < unit
            {
                (unit, limited) = (most * count as f64 / weight, Some(i));
            }
        }
        let epochs = amounts.iter().zip(tokens).map(|(amount, &count)| match amount {
            Amount::Epochs(epochs) => *epochs,
            Amount::Share { weight, most } => (weight * unit / count as f64).min(*most),
        });
        let epochs: Vec<f64> = epochs.collect();
        let tokens = epochs.iter().zip(tokens).map(|(epochs, &count)| epochs * count as f64).sum();
        Ok((Self { epochs, tokens }, limited))
    }

    /// How often a document of a part is written.
    pub(crate) fn copies(&self, part: usize, id: &str) -> u64 {
        let whole = self.epochs[part].floor();
        whole as u64 + u64::from(place(id) < self.epochs[part] - whole)
    }
}

/// A number in [0, 1) that a document's id decides.
fn place(id: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"mix\0").update(id.as_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn share(weight: f64, most: f64) -> Amount {
        Amount::Share { weight, most }
    }

    #[test]
    fn shares_hold_and_the_shortest_part_limits_them() {
        let (plan, limited) = Plan::new(&[share(3.0, 1.0), share(1.0, 4.0)], &[600, 100], None).unwrap();
        assert_eq!((plan.epochs, plan.tokens, limited), (vec![1.0, 2.0], 800.0, Some(0)));
        let (plan, limited) = Plan::new(&[share(3.0, 1.0), share(1.0, 4.0)], &[600, 100], Some(400)).unwrap();
        assert_eq!((plan.epochs, plan.tokens, limited), (vec![0.5, 1.0], 400.0, None));
        let (plan, limited) = Plan::new(&[share(1.0, 1.0), share(1.0, 1.0)], &[600, 100], Some(1000)).unwrap();
        assert_eq!((plan.epochs[1], plan.tokens, limited), (1.0, 200.0, Some(1)));
    }

    #[test]
    fn parts_with_epochs_are_written_so_often_and_the_budget_is_for_the_rest() {
        let amounts = [Amount::Epochs(2.5), share(0.2, 1.0)];
        let (plan, limited) = Plan::new(&amounts, &[100, 1000], Some(500)).unwrap();
        assert_eq!((plan.epochs, plan.tokens, limited), (vec![2.5, 0.25], 500.0, None));
        assert_eq!(Plan::new(&amounts, &[100, 1000], Some(249)), Err(Fault::OverBudget(250)));
        assert_eq!(Plan::new(&amounts, &[100, 0], None), Err(Fault::Empty(1)));
        let (plan, limited) = Plan::new(&[Amount::Epochs(1.0)], &[100], Some(500)).unwrap();
        assert_eq!((plan.tokens, limited), (100.0, None));
    }

    #[test]
    fn the_broken_pass_takes_its_share_of_the_documents() {
        let plan = Plan { epochs: vec![2.25, 3.0], tokens: 0.0 };
        let copies: Vec<u64> = (0..4000).map(|i| plan.copies(0, &format!("document {i}"))).collect();
        assert!(copies.iter().all(|&n| n == 2 || n == 3));
        let thrice = copies.iter().filter(|&&n| n == 3).count();
        assert!((890..1110).contains(&thrice), "{thrice}"); // standard deviation 27
        assert!((0..100).all(|i| plan.copies(1, &i.to_string()) == 3));
    }
}
