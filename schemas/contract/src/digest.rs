//! The digest of bytes: a content address.

use crate::exit::ExitCode;
use crate::fault::Fault;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A blake3 hash as 64 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(#[schemars(regex(pattern = "^[0-9a-f]{64}$"))] String);

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a digest: 64 lower-case hexadecimal digits are expected")]
pub struct NotADigest(String);

impl Fault for NotADigest {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Data
    }
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        blake3::hash(bytes).into()
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The first 12 digits: enough to tell artifacts apart by eye.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;
    fn try_from(text: String) -> Result<Self, NotADigest> {
        let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex { Ok(Self(text)) } else { Err(NotADigest(text)) }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_hexadecimal_digits_and_nothing_else() {
        let good = serde_json::to_string(&Digest::of(b"x")).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&good).unwrap(), Digest::of(b"x"));
        for bad in ["\"\"", "\"ABC\"", &good.to_uppercase()] {
            assert!(serde_json::from_str::<Digest>(bad).unwrap_err().to_string().contains("is not a digest"));
        }
    }
}
