//! How fast one core filters and masks: `cargo run --release -p smelt-clean --example clean_rate`.

#[path = "../../../tests/parity/rate.rs"]
mod rate;

use serde_json::{Value, json};
use smelt_classify::Classifier;
use smelt_clean::language::identify;
use smelt_clean::pii::mask;
use smelt_clean::rules::{Judge, Rules};
use smelt_clean::{Clean, Config, Settled};
use smelt_stage::Stage;

fn settled(config: Value) -> Settled {
    let mut config: Config = serde_json::from_value(config).expect("the config is one");
    Clean::resolve(&mut config, &Default::default()).expect("the config is one");
    config.settle().expect("the config is one")
}

fn main() {
    let texts = rate::texts();
    let mut judge = Judge::default();
    let (published, own) = (settled(json!({ "preset": "fineweb" })), settled(json!({})));
    // One filter after the other, as long as each keeps the document.
    rate::measure("chain", &texts, |text| usize::from(judge.judge(&published.rules, text).is_ok()));
    // Every filter on every document.
    let filters = filters();
    rate::measure("filters", &texts, |text| filters.iter().filter(|rules| judge.judge(rules, text).is_ok()).count());
    rate::measure("own rules", &texts, |text| usize::from(judge.judge(&own.rules, text).is_ok()));
    rate::measure("pii", &texts, |text| mask(text, &published.pii).1);
    rate::measure("own pii", &texts, |text| mask(text, &own.pii).1);
    rate::measure("language", &texts, |text| usize::from(identify(text).is_some()));
    let classifier = Classifier { bits: 20, weights: vec![0.5; 1 << 20], bias: -5.0, slope: 1.0, offset: 0.0 };
    rate::measure("quality", &texts, |text| usize::from(classifier.score(text) >= 0.5));
}

/// The four filters of the chain.
fn filters() -> [Rules; 4] {
    let (gopher, fineweb) = (Rules::gopher(), Rules::fineweb());
    let repetition = Rules {
        max_repeated_paragraphs: gopher.max_repeated_paragraphs,
        max_repeated_paragraph_characters: gopher.max_repeated_paragraph_characters,
        max_repeated_lines: gopher.max_repeated_lines,
        max_repeated_line_characters: gopher.max_repeated_line_characters,
        max_top_runs: gopher.max_top_runs.clone(),
        max_repeated_runs: gopher.max_repeated_runs.clone(),
        ..Rules::none()
    };
    let quality = Rules {
        max_repeated_paragraphs: None,
        max_repeated_paragraph_characters: None,
        max_repeated_lines: None,
        max_repeated_line_characters: None,
        max_top_runs: Vec::new(),
        max_repeated_runs: Vec::new(),
        ..gopher
    };
    let lines = Rules {
        min_terminated_lines: fineweb.min_terminated_lines,
        max_short_lines: fineweb.max_short_lines,
        max_repeated_in_lines: fineweb.max_repeated_in_lines,
        max_line_feeds: fineweb.max_line_feeds,
        ..Rules::none()
    };
    [repetition, quality, Rules { c4: fineweb.c4, ..Rules::none() }, lines]
}
