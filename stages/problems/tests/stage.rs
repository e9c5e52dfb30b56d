//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use smelt_problems::Problems;
use smelt_stage::Stage;
use smelt_stage::kinds::{Conversations, Documents, Prompts};
use smelt_verify::Verifier;
use workshop::{Workshop, digests, told};

/// The bytes of this config. Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("problems-golden-{threads}"));
        workshop.threads = threads;
        let config = json!({
            "seed": 7, "prompts": 50, "conversations": 50, "answers": "long", "wrong": 0.2, "system": 0.5,
            "characters": 5000
        });
        all.push(digests(&workshop.run::<Problems>(config, &[]).unwrap()));
    }
    assert_eq!(all[0], all[1], "threads change bytes");
    assert_eq!(Problems::VERSION, 2);
    let golden = [
        "prompts ca1d0f0b2f2e9a795d01ddfb872899cdc3d46e93533caa8044aa54bbf67f4c32",
        "conversations dff7d0ff83386342bc4a590914f73eb2c02e340aa4e42117ac277867282a9570",
        "documents f39e9b3b39978d5a0e3b57b16c3006de9ff78349fe4d94c3011f34907c4ea9b2",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn prompts_carry_what_judges_them() {
    let workshop = Workshop::new("problems-prompts");
    for (family, sizes) in [("chain", json!([2, 6])), ("addition", json!([1, 5])), ("account", json!([1, 3]))] {
        let config =
            json!({ "family": family, "sizes": sizes, "prompts": 200, "conversations": 200, "answers": "long" });
        let manifest = workshop.run::<Problems>(config, &[]).unwrap();
        let prompts = workshop.rows::<Prompts>(&manifest, "prompts");
        let conversations = workshop.rows::<Conversations>(&manifest, "conversations");
        assert_eq!((prompts.len(), conversations.len()), (200, 200));
        for (prompt, conversation) in prompts.iter().zip(&conversations) {
            let verifier: Verifier = prompt.verifier.parse().unwrap();
            let score = |text: &str| verifier.score(&prompt.answer, text).expect("our own problem can be judged");
            assert!(score(&prompt.answer).right);
            assert!(!score("no idea").right);
            // Without wrong results and under the same seed, the conversation solves the same problem.
            assert_eq!(prompt.messages[0], conversation.messages[0]);
            assert!(score(&conversation.messages[1].content).right, "{conversation:?}");
        }
        let ids: BTreeSet<&str> = prompts.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids.len(), 200);
    }
}

#[test]
fn system_prompts_and_wrong_results_have_their_shares() {
    let workshop = Workshop::new("problems-shares");
    let config = json!({ "conversations": 1000, "answers": "long", "wrong": 0.2, "system": 0.15, "sizes": [4] });
    let manifest = workshop.run::<Problems>(config, &[]).unwrap();
    let rows = workshop.rows::<Conversations>(&manifest, "conversations");
    let with_system = rows.iter().filter(|row| row.messages[0].role == "system").count();
    // Standard deviation 11: four of them.
    assert!((106..194).contains(&with_system), "{with_system}");
    assert!(rows.iter().all(|row| row.messages.last().unwrap().role == "assistant"));
    let right = rows
        .iter()
        .filter(|row| {
            let chain = smelt_verify::chain::Chain::parse(&row.messages[row.messages.len() - 2].content).unwrap();
            chain.every_step_right(&row.messages.last().unwrap().content)
        })
        .count();
    // Each of four results is wrong with 0.2 · 0.9: 0.82⁴ = 0.452; standard deviation 16.
    assert!((388..516).contains(&right), "{right}");
}

#[test]
fn jobs_of_one_pipeline_do_not_share_test_problems() {
    let workshop = Workshop::new("problems-split");
    let texts = |config: Value| -> BTreeSet<String> {
        let manifest = workshop.run::<Problems>(config, &[]).unwrap();
        let prompts = workshop.rows::<Prompts>(&manifest, "prompts").into_iter().map(|p| p.messages[0].content.clone());
        let documents = workshop.rows::<Documents>(&manifest, "documents");
        let lines = documents.iter().flat_map(|d| d.text.lines()).filter_map(|l| l.split_once(';'));
        prompts.chain(lines.map(|(problem, _)| problem.to_owned())).collect()
    };
    let test = texts(json!({ "split": "test", "prompts": 600 }));
    let train = texts(json!({ "prompts": 3000, "characters": 100_000 }));
    let more = texts(json!({ "stream": 1, "prompts": 3000 }));
    assert_eq!(test.len(), 600);
    assert!(test.is_disjoint(&train) && test.is_disjoint(&more));
    assert_ne!(train, more);
}

#[test]
fn wrong_configs_are_refused_before_anything_runs() {
    let workshop = Workshop::new("problems-config");
    let refuse = |config: Value| {
        let error = workshop.resolve::<Problems>(config, &[]).unwrap_err();
        (error.problem().field.clone().unwrap_or_default(), told(&error))
    };
    let expected = |field: &str, text: &str| (field.to_owned(), text.to_owned());
    assert_eq!(
        refuse(json!({})),
        expected("", "nothing is asked for\nhint: set `prompts`, `conversations` or `characters`")
    );
    assert_eq!(
        refuse(json!({ "family": "addition", "sizes": [3, 30] })),
        expected("/sizes", "30 is no size of `addition`, expected 1 to 18")
    );
    assert_eq!(refuse(json!({ "sizes": [] })), expected("/sizes", "no sizes are given"));
    assert_eq!(
        refuse(json!({ "split": "test", "test_share": 0, "prompts": 1 })),
        expected("/test_share", "no problem is on the side that `split` asks for")
    );
    let error = workshop.run::<Problems>(json!({ "sizes": [1], "prompts": 301 }), &[]).unwrap_err();
    assert_eq!(
        told(&error),
        "found 300 different problems of family `chain`, expected 301\n\
         hint: ask for fewer, or allow more in `sizes` or `largest`"
    );
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("problems-kills");
    let kills = workshop.kill_at_every_write::<Problems>(
        env!("CARGO_BIN_EXE_smelt-problems"),
        json!({ "prompts": 20, "conversations": 20, "characters": 2000 }),
        &[],
    );
    // A lease, a shard and a record of each unit, the manifest.
    assert!(kills >= 6, "killed {kills} times");
}
