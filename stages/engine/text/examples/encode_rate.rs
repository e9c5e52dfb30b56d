//! Measures encoding with one thread: `encode_rate TOKENIZER.json TEXTS`, the texts with NUL between them.
//!
//! Prints a JSON line each for our encoder, the crate `bpe` on the same pieces, and the `tokenizers` library on a part
//! of the texts: megabytes of text per second of the thread's own time, the best of rounds taken in turn, and a digest
//! of all ids. `tests/parity/tokenizer/bench.py` runs it beside the Python packages.

use bpe::byte_pair_encoding::{BytePairEncoding, find_hash_factor_for_dictionary};
use smelt_text::encoder::{Encoder, character};
use std::collections::HashMap;

/// Seconds that this thread ran.
fn ran() -> f64 {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("the scheduler's figures, as Linux has them");
    text.split(' ').next().and_then(|field| field.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

type Encode<'a> = Box<dyn Fn(&str, &mut Vec<u32>) + 'a>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("expected {what}"));
    let json = std::fs::read(next("TOKENIZER.json")).expect("a tokenizer.json");
    let all = std::fs::read_to_string(next("TEXTS")).expect("a file of texts");
    let texts: Vec<&str> = all.split('\0').collect();
    let encoder = Encoder::new(&json, true).expect("a tokenizer");
    let pattern = encoder.pattern().expect("a pattern that is written out");
    let (crate_bpe, ids) = of_crate(&encoder);
    let few = texts.len().div_ceil(8);
    let mut ways: Vec<(&str, usize, Encode)> = vec![
        ("smelt", texts.len(), Box::new(|text, out| out.extend(encoder.encode(text).expect("ids")))),
        (
            "crate bpe, our pieces",
            texts.len(),
            Box::new(|text, out| {
                pattern.for_each(text, |piece| {
                    out.extend(crate_bpe.encode_via_backtracking(piece.as_bytes()).iter().map(|&id| ids[id as usize]));
                });
            }),
        ),
        (
            "tokenizers, an eighth of the texts",
            few,
            Box::new(|text, out| out.extend(encoder.library().encode_fast(text, false).expect("ids").get_ids())),
        ),
    ];
    let mut figures = vec![(f64::MAX, 0, 0); ways.len()];
    for _ in 0..5 {
        for ((_, count, encode), figure) in ways.iter_mut().zip(&mut figures) {
            let mut out = Vec::with_capacity(all.len() / 2);
            let start = ran();
            texts[..*count].iter().for_each(|text| encode(text, &mut out));
            let seconds = ran() - start;
            *figure = (figure.0.min(seconds), out.len(), digest(&out));
        }
    }
    for ((what, count, _), (seconds, tokens, digest)) in ways.iter().zip(figures) {
        let megabytes = texts[..*count].iter().map(|text| text.len()).sum::<usize>() as f64 / 1e6;
        let line = serde_json::json!({ "what": what, "megabytes": megabytes,
            "megabytes_per_second": megabytes / seconds, "tokens": tokens, "digest": format!("{digest:016x}") });
        println!("{line}");
    }
}

/// FNV-1a over the ids, as `bench.py` computes it.
fn digest(ids: &[u32]) -> u64 {
    ids.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &id| (hash ^ u64::from(id)).wrapping_mul(0x100_0000_01b3))
}

/// The vocabulary in the crate's own numbering, single bytes and merged tokens in order, and our ids of its tokens.
fn of_crate(encoder: &Encoder) -> (BytePairEncoding, Vec<u32>) {
    let byte_of: HashMap<char, u8> = (0..=255).map(|byte| (character(byte), byte)).collect();
    let mut tokens: Vec<(u32, Vec<u8>)> = encoder
        .library()
        .get_vocab(false)
        .into_iter()
        .filter_map(|(token, id)| {
            (!token.starts_with("<|")).then_some(())?;
            Some((id, token.chars().map(|c| byte_of.get(&c).copied()).collect::<Option<Vec<u8>>>()?))
        })
        .collect();
    tokens.sort_unstable();
    let (ids, tokens): (Vec<u32>, Vec<Vec<u8>>) = tokens.into_iter().unzip();
    let factor = find_hash_factor_for_dictionary(tokens.iter().cloned());
    (BytePairEncoding::from_dictionary(tokens, Some(factor)), ids)
}
