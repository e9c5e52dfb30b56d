//! The library is the reference for everything here.

use super::*;
use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

const PATTERNS: [Pattern; 5] =
    [Pattern::Gpt2, Pattern::Gpt2Digits, Pattern::Cl100k, Pattern::Qwen2, Pattern::DeepseekV3];

fn draws(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |n| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    }
}

/// Texts of every kind: random characters of all planes, and runs of those that the expressions tell apart.
fn texts(count: usize) -> Vec<String> {
    let apart: Vec<char> = " \n\t\r'sSreRvVemMlLdDaz.,!=+-12\
         ٣²Ⅷéſ漢カ・゛ー\u{3097}\u{301}\u{85}\u{a0}\u{3000}\u{200b}\0\u{feff}🦀<|>"
        .chars()
        .collect();
    let mut draw = draws(7);
    (0..count)
        .map(|i| {
            let length = draw(40);
            let any = |draw: &mut dyn FnMut(usize) -> usize| {
                let top = [0x80, 0x800, 0x1_0000, 0x11_0000][draw(4)];
                char::from_u32(draw(top) as u32).unwrap_or('\u{fffd}')
            };
            (0..length).map(|_| if i % 3 == 0 { any(&mut draw) } else { apart[draw(apart.len())] }).collect()
        })
        .collect()
}

fn compare(pattern: Pattern, library: &PreTokenizerWrapper, text: &str) {
    let mut cut = PreTokenizedString::from(text);
    library.pre_tokenize(&mut cut).unwrap();
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let theirs: Vec<&str> = splits.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect();
    assert_eq!(pattern.pieces(text), theirs, "{pattern:?}");
}

fn library(pattern: Pattern) -> PreTokenizerWrapper {
    serde_json::from_value(pattern.pre_tokenizer()).unwrap()
}

#[test]
fn pieces_of_typical_text_are_the_librarys() {
    for pattern in PATTERNS {
        let library = library(pattern);
        for text in [
            "",
            " ",
            "  ",
            "a",
            " a",
            "  a",
            "a  ",
            "a \n b",
            "\n\n  x",
            "it's we'll 'tis d'you 'S I'M they'LL he'ſ 'ſ ''",
            "''s '",
            "x = 12 + 345;  // 67%\n\tlet y",
            "a\u{a0}b \u{a0}c\u{3000}d",
            "1 2  3\n4",
            "٣٤ Ⅷ x² ½  1234567",
            "漢字 かな 🦀🦀 e\u{301} \u{301}\u{301}",
            "can't've 've",
            "a\r\n\r\nb;\n\n}\r\n",
            "\u{1c} \u{1f}x",
            "東京都1-2-3ひらがな・カタカナー゛\u{3097}ア\n・\n。 \n",
            "12 34",
            "\u{200b}\u{200b}x \0\u{1}\u{7f}",
            "  \n  1",
            "!abc ?!abc #x_y (a)b",
        ] {
            compare(pattern, &library, text);
        }
    }
}

#[test]
fn every_character_is_of_the_librarys_class() {
    let all = (0..=0x10_ffff).filter_map(char::from_u32);
    // Beyond the third plane there is nothing but private use and tags: a sample will do.
    let (low, high): (Vec<char>, Vec<char>) = all.partition(|&c| (c as u32) < 0x3_2400);
    for pattern in PATTERNS {
        let library = library(pattern);
        for chars in low.chunks(512).chain(high.chunks(40_000).map(|part| &part[..8])) {
            compare(pattern, &library, &chars.iter().map(|c| format!("a{c} {c}1{c}\n!{c}")).collect::<String>());
        }
    }
}

#[test]
fn random_texts_are_cut_as_the_library_cuts_them() {
    for pattern in PATTERNS {
        let library = library(pattern);
        texts(6000).iter().for_each(|text| compare(pattern, &library, text));
    }
}

#[test]
fn every_byte_has_the_librarys_character() {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    let ours: std::collections::BTreeSet<char> = (0..=255).map(character).collect();
    assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
    let mut cut = PreTokenizedString::from("\0\u{7f}é\u{ad} ");
    ByteLevel::new(false, true, false).pre_tokenize(&mut cut).unwrap();
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let theirs: String = splits.into_iter().map(|(text, _, _)| text).collect();
    assert_eq!("\0\u{7f}é\u{ad} ".bytes().map(character).collect::<String>(), theirs);
}

/// A vocabulary whose merges are drawn at random from what merges before them made, so that ranks are in no useful
/// order, with added tokens of both passes.
fn file(pattern: Pattern, seed: u64, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut draw = draws(seed);
    let mut tokens: Vec<String> = (0..=255).map(|byte| character(byte).to_string()).collect();
    let mut merges: Vec<[String; 2]> = Vec::new();
    let common: Vec<String> = " \nsretlda.1!é漢".bytes().map(|byte| character(byte).to_string()).collect();
    while merges.len() < 400 {
        let mut part = || {
            if draw(2) == 0 || merges.is_empty() {
                common[draw(common.len())].clone()
            } else {
                merges[draw(merges.len())].concat()
            }
        };
        let pair = [part(), part()];
        if pair.concat().chars().count() <= 12 && !merges.contains(&pair) {
            if !tokens.contains(&pair.concat()) {
                tokens.push(pair.concat());
            }
            merges.push(pair);
        }
    }
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |id: usize, content: &str, special: bool, normalized: bool| {
        json!({ "id": tokens.len() + id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": normalized, "special": special })
    };
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [
            added(0, "<|a|>", true, false), added(1, "<|a|>x", false, false), added(2, "<|", false, true),
            added(3, "l<", true, true),
        ],
        "pre_tokenizer": pattern.pre_tokenizer(),
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges },
    });
    change(&mut file);
    file.to_string().into_bytes()
}

/// Compares both ways on many texts, each encoded twice, so that the second comes from the cache.
fn compare_ids(json: &[u8], expect_fast: bool) {
    let mut texts = texts(1500);
    let run = |unit: &str, n: usize| unit.repeat(n);
    texts.extend([run("a", 3000), run("ab", 1000) + &run("=", 500) + &run(" ", 500) + &run("\n", 200)]);
    texts.extend((1..60).map(|n| run("stde", n) + " <|a|>x<|a|> l<|a|>" + &run(" t", n)));
    for spell_special in [false, true] {
        let encoder = Encoder::new(json, spell_special).unwrap();
        assert_eq!(encoder.fast.is_some(), expect_fast);
        for text in texts.iter().chain(&texts) {
            assert_eq!(encoder.encode(text).unwrap(), encoder.encode_by_library(text).unwrap(), "{text:?}");
        }
    }
}

#[test]
fn ids_are_the_librarys() {
    for (seed, pattern) in PATTERNS.into_iter().enumerate() {
        compare_ids(&file(pattern, seed as u64, |_| ()), true);
    }
}

#[test]
fn options_of_a_tokenizer_are_kept_or_left_to_the_library() {
    let pattern = Pattern::Cl100k;
    compare_ids(&file(pattern, 20, |file| file["model"]["ignore_merges"] = true.into()), true);
    compare_ids(&file(pattern, 21, |file| file["normalizer"] = json!({ "type": "NFC" })), true);
    compare_ids(&file(pattern, 22, |file| file["normalizer"] = json!({ "type": "NFKC" })), false);
    compare_ids(&file(pattern, 23, |file| file["normalizer"] = json!({ "type": "Sequence", "normalizers": [] })), true);
    compare_ids(&file(pattern, 24, |file| file["added_tokens"][1]["lstrip"] = true.into()), false);
    compare_ids(&file(pattern, 25, |file| file["model"]["continuing_subword_prefix"] = "".into()), true);
    let turned = |file: &mut Value| {
        file["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed".into();
        file["pre_tokenizer"]["pretokenizers"][0]["invert"] = true.into();
    };
    compare_ids(&file(pattern, 26, turned), true);
    compare_ids(&file(Pattern::DeepseekV3, 27, turned), false);
    let other = |file: &mut Value| file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W".into();
    compare_ids(&file(pattern, 28, other), false);
    let lines = |file: &mut Value| {
        let merges = file["model"]["merges"].as_array().unwrap();
        let line = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        file["model"]["merges"] = merges.iter().map(line).collect();
    };
    compare_ids(&file(pattern, 29, lines), true);
}

#[test]
fn a_long_piece_takes_time_in_proportion() {
    let encoder = Encoder::new(&file(Pattern::Gpt2, 3, |_| ()), true).unwrap();
    let letters = "stderla".repeat(150_000);
    let ids = encoder.encode(&letters).unwrap();
    assert_eq!(encoder.library.decode(&ids, false).unwrap(), letters);
}
