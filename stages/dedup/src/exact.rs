//! The digest by which two texts count as equal.

use smelt_words::is_space;

/// blake3 of the text with every run of white space folded to one blank and none at the ends.
///
/// Two files that differ in indentation, line ends or a final newline are equal; a changed letter or mark makes them
/// differ.
pub fn digest(text: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (i, piece) in text.split(is_space).filter(|piece| !piece.is_empty()).enumerate() {
        if i > 0 {
            hasher.update(b" ");
        }
        hasher.update(piece.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn white_space_is_folded_and_nothing_else() {
        assert_eq!(digest("a  b\r\n\tc\n"), digest("a b c"));
        assert_ne!(digest("a b c"), digest("a b C"));
        assert_ne!(digest("a b c"), digest("ab c"));
        assert_eq!(digest(""), digest(" \n"));
    }
}
