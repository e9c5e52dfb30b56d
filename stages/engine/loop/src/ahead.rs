//! What a step reads, made while the step before runs.

/// What the next step reads, if it was made ahead.
#[derive(Debug)]
pub struct Ahead<T>(Option<(u64, T)>);

impl<T> Default for Ahead<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Ahead<T> {
    /// What `step` reads, if it was made.
    pub fn take(&mut self, step: u64) -> Option<T> {
        self.0.take().filter(|(of, _)| *of == step).map(|(_, made)| made)
    }

    /// What `step` will read; none after the last step.
    pub fn put(&mut self, step: u64, made: Option<T>) {
        self.0 = made.map(|made| (step, made));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_step_it_was_made_for_takes_it() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.take(0), None);
        ahead.put(1, Some("ahead"));
        assert_eq!(ahead.take(1), Some("ahead"));
        assert_eq!(ahead.take(1), None);
        // a training that was restored goes on elsewhere
        ahead.put(2, Some("ahead"));
        assert_eq!(ahead.take(7), None);
        assert_eq!(ahead.take(2), None);
    }
}
