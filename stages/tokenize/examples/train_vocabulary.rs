//! Trains a vocabulary: `train_vocabulary TEXTS VOCABULARY PATTERN THREADS OUT`, the texts with NUL between them.
//!
//! `PATTERN` is a pre-tokenizer of `tokenize`. Prints a JSON line; `tests/parity/tokenizer/bench.py` runs it beside
//! Hugging Face's trainer.

use smelt_text::encoder::Pattern;
use smelt_tokenize::bpe::{Bpe, Training};
use std::io::{BufRead, BufReader};
use std::time::Instant;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("expected {what}"));
    let file = BufReader::with_capacity(1 << 20, std::fs::File::open(next("TEXTS")).expect("a file of texts"));
    let vocabulary = next("VOCABULARY").parse().expect("a number of tokens");
    let pattern = match next("PATTERN").as_str() {
        "gpt2" => Pattern::Gpt2,
        "cl100k" => Pattern::Cl100k,
        "qwen2" => Pattern::Qwen2,
        "deepseek_v3" => Pattern::DeepseekV3,
        other => panic!("no pattern is called {other}"),
    };
    let threads = next("THREADS").parse().expect("a number of threads");
    let start = Instant::now();
    let texts = file.split(0).map(|text| String::from_utf8(text.expect("a text")).expect("UTF-8"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let training = Training { vocabulary, pattern, min_frequency: 2, special: &["<|endoftext|>"], memory: 1 << 30 };
    let (bpe, losses) = pool.install(|| Bpe::train(texts, training)).expect("a vocabulary");
    let seconds = start.elapsed().as_secs_f64();
    std::fs::write(next("OUT"), bpe.to_json().expect("a tokenizer.json")).expect("a file to write");
    let line = serde_json::json!({ "what": "smelt", "seconds": seconds, "tokens": bpe.vocabulary(),
        "cut": losses.cut.pieces, "forgotten": losses.forgotten.occurrences });
    println!("{line}");
}
