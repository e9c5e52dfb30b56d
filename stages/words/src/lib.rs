//! `smelt-words`: how the data stages cut text into words, and the forms in which they compare it.
//!
//! Everything here is a pure function of its text. The filters count words, the deduplication hashes runs of simplified
//! words, the decontamination compares folded ones, and all must agree on what a word, a line and a blank are; so those
//! meanings live here, once.

mod chars;
mod english;
mod folded;
mod ngrams;
mod scripts;
mod simplify;
mod split;

pub use chars::{
    is_digit, is_letter, is_mark, is_number, is_space, is_symbol_word, is_terminal, line_ranges, lines, trim,
};
pub use english::{EnglishWords, Span, count_sentences, english_words};
pub use folded::{FoldedWord, Folder, WORD_QUARTERS};
pub use ngrams::{NGrams, Shingles, ngrams, shingles};
pub use scripts::{Parts, parts, unspaced};
pub use simplify::{simplify, simplify_keeping_numbers};
pub use split::{Words, words};
