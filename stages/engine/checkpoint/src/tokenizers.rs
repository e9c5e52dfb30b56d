//! Ids of one tokenizer mean nothing to another: what meets in a job was made by the same one.

use smelt_stage::Error;

/// Something that holds ids, and the tokenizer that made them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// As a person knows it: ``input `tokens` ``.
    pub what: String,
    /// See [`smelt_text::Tokenizer::digest`]; None where nothing is known.
    pub digest: Option<String>,
}

impl Use {
    pub fn new(what: impl Into<String>, digest: Option<String>) -> Self {
        Self { what: what.into(), digest }
    }
}

/// # Errors
/// When two of them come from different tokenizers; the error names both.
pub fn expect_one_tokenizer(uses: &[Use]) -> Result<(), Error> {
    let mut known = uses.iter().filter_map(|one| Some((one.what.as_str(), one.digest.as_deref()?)));
    let Some((first, digest)) = known.next() else { return Ok(()) };
    match known.find(|(_, other)| *other != digest) {
        None => Ok(()),
        Some((second, other)) => {
            let short = |digest: &str| digest.chars().take(12).collect::<String>();
            let what = format!(
                "{first} was made with the tokenizer {}, {second} with {}: ids of one mean nothing to the other",
                short(digest),
                short(other)
            );
            Err(Error::data(what)
                .hint("make both with one tokenizer: connect `tokenizer` of the same job to all of them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokenizers_are_named_with_their_ports() {
        let of = |what: &str, digest: Option<&str>| Use::new(what, digest.map(str::to_owned));
        let (a, b) = ("0123456789abcdef", "fedcba9876543210");
        expect_one_tokenizer(&[of("input `x`", None), of("input `y`", Some(a)), of("input `z`", Some(a))]).unwrap();
        let error = expect_one_tokenizer(&[of("input `x`", None), of("input `y`", Some(a)), of("input `z`", Some(b))]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "input `y` was made with the tokenizer 0123456789ab, input `z` with fedcba987654: ids of one mean nothing \
             to the other"
        );
    }
}
