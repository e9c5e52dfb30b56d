//! How fast one core looks for problems: `cargo run --release -p smelt-decontaminate --example decontaminate_rate`.
//!
//! The problems are passages of the same documents, so a part of them is found. Beside it: the folding alone, and a
//! plain set of n-grams.

#[path = "../../../tests/parity/rate.rs"]
mod rate;

use rustc_hash::FxHashSet;
use smelt_decontaminate::{Config, Field, Index, Problem};
use smelt_words::Folder;

fn main() {
    let texts = rate::texts();
    let (config, n) = (Config::default(), 13);
    let words = |text: &str| -> Vec<String> {
        let mut folder = Folder::new(text, false);
        let one = || {
            let mut word = String::new();
            folder.next_word(&mut word).map(|_| word)
        };
        std::iter::from_fn(one).collect()
    };
    let problems: Vec<String> = texts
        .0
        .iter()
        .step_by(4)
        .map(|text| text.split_whitespace().skip(20).take(60).collect::<Vec<_>>().join(" "))
        .collect();
    let index = Index::build(&config, &["rate".into()], |each| {
        problems.iter().enumerate().try_for_each(|(i, text)| {
            let field = Field { name: "text", text: text.clone(), is_question: true };
            each(Problem { benchmark: 0, id: i.to_string(), fields: vec![field] })
        })
    });
    let index = index.expect("passages are problems");
    eprintln!("{} problems, {} n-grams", problems.len(), index.len());
    let (mut windows, mut hits) = (index.windows(), Vec::new());
    rate::measure("decontaminate", &texts, |text| {
        index.find(&mut windows, text, &mut hits);
        hits.len()
    });
    let mut form = String::new();
    rate::measure("folding", &texts, |text| {
        form.clear();
        let mut folder = Folder::new(text, false);
        std::iter::from_fn(|| folder.next_word(&mut form)).count()
    });
    rate::measure("simplify", &texts, |text| smelt_words::simplify(text).len());
    let sought: FxHashSet<String> =
        problems.iter().flat_map(|text| words(text).windows(n).map(|run| run.join(" ")).collect::<Vec<_>>()).collect();
    rate::measure("plain set", &texts, |text| {
        words(text).windows(n).filter(|run| sought.contains(&run.join(" "))).count()
    });
}
