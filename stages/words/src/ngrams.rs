//! Runs of n words.

/// Every run of `n` neighbouring words, overlapping, in order; none when there are fewer than `n` words.
pub fn ngrams<'a, 'w>(words: &'a [&'w str], n: usize) -> NGrams<'a, 'w> {
    assert!(n > 0, "ngrams: n is 0");
    words.windows(n)
}

/// Iterator of [`ngrams`].
pub type NGrams<'a, 'w> = std::slice::Windows<'a, &'w str>;

/// The runs of `n` words, each joined by one blank: what MinHash hashes.
pub fn shingles<'a, 'w>(words: &'a [&'w str], n: usize) -> Shingles<'a, 'w> {
    Shingles { runs: ngrams(words, n), joined: String::new() }
}

/// Lends one shingle after the other from one buffer; a document has thousands of them.
#[derive(Debug)]
pub struct Shingles<'a, 'w> {
    runs: NGrams<'a, 'w>,
    joined: String,
}

impl Shingles<'_, '_> {
    /// The next shingle, or `None` after the last.
    #[expect(clippy::should_implement_trait, reason = "it lends its buffer, which Iterator cannot")]
    pub fn next(&mut self) -> Option<&str> {
        let run = self.runs.next()?;
        self.joined.clear();
        for (i, word) in run.iter().enumerate() {
            if i > 0 {
                self.joined.push(' ');
            }
            self.joined.push_str(word);
        }
        Some(&self.joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shingles_are_the_joined_runs() {
        let words = ["a", "b", "c", "d"];
        let mut shingles = shingles(&words, 3);
        assert_eq!(shingles.next(), Some("a b c"));
        assert_eq!(shingles.next(), Some("b c d"));
        assert_eq!(shingles.next(), None);
        assert_eq!(ngrams(&words, 5).count(), 0);
    }
}
