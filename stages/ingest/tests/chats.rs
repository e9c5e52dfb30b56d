//! One's own conversations, prompts and preferences, in the forms that the field writes them.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, RecordBatch, StringBuilder, StructBuilder};
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use smelt_ingest::Ingest;
use smelt_schemas::Manifest;
use smelt_stage::kinds::{Conversations, Drops, Message, Preferences, Prompts};
use workshop::{Workshop, told};

fn run(workshop: &Workshop, rows: &[Value], config: Value) -> Result<Manifest, String> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(workshop.folder().join("a.jsonl"), text).unwrap();
    let mut config = config;
    config["paths"] = json!([workshop.folder().join("a.jsonl")]);
    workshop.run::<Ingest>(config, &[]).map_err(|e| told(&e))
}

/// Messages as `u:hello a:hi`.
fn short(messages: &[Message]) -> String {
    messages.iter().map(|m| format!("{}:{}", &m.role[..1], m.content)).collect::<Vec<_>>().join(" ")
}

fn drops(workshop: &Workshop, manifest: &Manifest) -> Vec<(String, String)> {
    workshop.rows::<Drops>(manifest, "drops").into_iter().map(|d| (d.id, d.rule)).collect()
}

#[test]
fn conversations_are_read_in_every_form() {
    let workshop = Workshop::new("ingest-conversations");
    let chat = |role: &str, content: &str, pairs: [(&str, &str); 2]| -> Value {
        pairs.iter().map(|(who, what)| json!({ role: who, content: what })).collect()
    };
    let usual = chat("role", "content", [("user", "q"), ("assistant", "a")]);
    let parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "q" }] }, usual[1]]);
    let rows = [
        json!({ "messages": usual }),
        json!({ "conversations": chat("from", "value", [("human", "q"), ("gpt", "a")]), "system": "s" }),
        json!({ "prompt": "q", "completion": "a" }),
        json!({ "prompt": [usual[0]], "completion": [usual[1]] }),
        json!({ "question": "q", "answer": "a" }),
        json!({ "instruction": "q", "input": "i", "output": "a" }),
        json!({ "instruction": "q", "input": "", "output": "a" }),
        json!({ "messages": parts }),
        json!({ "messages": usual.to_string() }),
        json!({ "system_prompt": "s", "messages": usual }),
        json!({ "messages": [{ "role": "system", "content": "own" }, usual[0], usual[1]], "system": "s" }),
        json!({ "messages": { "role": ["user", "assistant"], "content": ["q", "a"] } }),
        json!({ "input": "q", "output": "a" }),
    ];
    let manifest = run(&workshop, &rows, json!({ "kind": "conversations" })).unwrap();
    let found = workshop.rows::<Conversations>(&manifest, "conversations");
    let told: Vec<String> = found.iter().map(|row| short(&row.messages)).collect();
    assert_eq!(
        told,
        [
            "u:q a:a",
            "s:s u:q a:a",
            "u:q a:a",
            "u:q a:a",
            "u:q a:a",
            "u:q\n\ni a:a",
            "u:q a:a",
            "u:q a:a",
            "u:q a:a",
            "s:s u:q a:a",
            "s:own u:q a:a",
            "u:q a:a",
            "u:q a:a",
        ]
    );
    assert_eq!((found[0].id.as_str(), found[0].source.as_str()), ("a.jsonl#0", "a.jsonl"));
    assert_eq!(found[0].checkpoint, None);
    assert!(manifest.ports["documents"].files.iter().all(|file| file.rows == Some(0)));
}

#[test]
fn what_is_no_chat_is_dropped_by_rule_and_told() {
    let workshop = Workshop::new("ingest-rejects");
    let one = |role: &str, content: Value| json!({ "messages": [{ "role": role, "content": content }] });
    let rows = [
        json!({ "prompt": "q", "completion": "a" }),
        json!({ "messages": [] }),
        one("user", json!("q")),
        one("narrator", json!("q")),
        one("assistant", json!(null)),
        json!({ "messages": [{ "role": "assistant", "content": "a", "tool_calls": [{ "id": 1 }] }] }),
        json!({ "messages": [{ "content": "a" }] }),
        json!({ "text": "a document" }),
        one("assistant", json!([{ "type": "image_url" }])),
    ];
    let manifest = run(&workshop, &rows, json!({ "kind": "conversations" })).unwrap();
    let rules: Vec<String> = drops(&workshop, &manifest).into_iter().map(|(_, rule)| rule).collect();
    assert_eq!(
        rules,
        ["no_messages", "no_answer", "unknown_role", "no_content", "tool_calls", "no_role", "no_fields", "no_content"]
    );
    assert_eq!((manifest.books.read, manifest.books.written), (9, 1));
    let mapped =
        run(&workshop, &rows, json!({ "kind": "conversations", "roles": { "narrator": "assistant" } })).unwrap();
    assert_eq!(mapped.books.written, 2);
    assert_eq!(
        run(&workshop, &rows, json!({ "kind": "conversations", "max_bad_share": 0.5 })).unwrap_err(),
        "8 of 9 records are bad: 1 no_answer, 2 no_content, 1 no_fields, 1 no_messages, 1 no_role, 1 tool_calls, 1 \
         unknown_role; the first: `a.jsonl` line 2: a list without a message\n\
         hint: `max_bad_share` is 0.5, and this is 0.8889"
    );
    assert_eq!(
        run(&workshop, &rows[7..8], json!({ "kind": "conversations" })).unwrap_err(),
        "none of 1 records is kept: 1 no_fields; the first: `a.jsonl` line 1: neither `messages` nor the `completion` \
         of a prompt; the record has `text`, and `fields` can name others\n\
         hint: look at the files: conversations were asked for"
    );
}

#[test]
fn prompts_have_an_answer_and_a_verifier() {
    let workshop = Workshop::new("ingest-prompts");
    let chain = json!({ "family": "chain", "problem": "3+4" });
    let user = |content: &str| json!({ "role": "user", "content": content });
    let rows = [
        json!({ "question": "3+4?", "answer": "3 and 4 are <<3+4=7>>7.\n#### 7" }),
        json!({ "prompt": "3+4?", "ground_truth": 7 }),
        json!({ "prompt": [user("3+4?")], "reward_model": { "ground_truth": "7", "style": "rule" } }),
        json!({ "messages": [user("3+4"), { "role": "model", "content": "no" }], "answer": "7", "verifier": chain }),
        json!({ "prompt": "3+4?" }),
        json!({ "prompt": "3+4?", "answer": " " }),
        json!({ "prompt": "3+4?", "answer": "7", "verifier": { "family": "oracle" } }),
    ];
    let manifest = run(&workshop, &rows, json!({ "kind": "prompts" })).unwrap();
    let found = workshop.rows::<Prompts>(&manifest, "prompts");
    let answers: Vec<&str> = found.iter().map(|row| row.answer.as_str()).collect();
    assert_eq!(answers, ["7", "7", "7", "7"]);
    assert!(found[..3].iter().all(|row| short(&row.messages) == "u:3+4?" && row.verifier == r#"{"family":"number"}"#));
    assert_eq!(
        (short(&found[3].messages).as_str(), found[3].verifier.as_str()),
        ("u:3+4", r#"{"family":"chain","problem":"3+4"}"#)
    );
    let rules: Vec<String> = drops(&workshop, &manifest).into_iter().map(|(_, rule)| rule).collect();
    assert_eq!(rules, ["no_fields", "no_answer", "no_verifier"]);
    let config = json!({ "kind": "prompts", "verifier": chain, "fields": { "prompt": "q", "answer": "meta.gold" } });
    let manifest = run(&workshop, &[json!({ "q": "3+4", "meta": { "gold": "7" } })], config).unwrap();
    assert_eq!(workshop.rows::<Prompts>(&manifest, "prompts")[0].verifier, r#"{"family":"chain","problem":"3+4"}"#);
}

#[test]
fn preferences_are_read_in_every_form() {
    let workshop = Workshop::new("ingest-preferences");
    let user = json!({ "role": "user", "content": "q" });
    let says = |text: &str| json!({ "role": "assistant", "content": text });
    let whole = |text: &str| json!([user, says(text)]);
    let rows = [
        json!({ "prompt": "q", "chosen": "good", "rejected": "bad", "margin": 0.5 }),
        json!({ "prompt": "q", "chosen": [says("good")], "rejected": [says("bad")] }),
        json!({ "chosen": whole("good"), "rejected": whole("bad"), "score_chosen": 8.5, "score_rejected": 6 }),
        json!({ "prompt": [user], "chosen": [says("good")], "rejected": [says("bad")], "system": "s" }),
        json!({ "chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad" }),
        json!({ "question": "q", "chosen": "good", "rejected": "bad" }),
        json!({ "conversations": [{ "from": "human", "value": "q" }], "chosen": { "from": "gpt", "value": "good" },
                "rejected": { "from": "gpt", "value": "bad" } }),
        json!({ "prompt": " ", "chosen": "good", "rejected": "bad" }),
        json!({ "prompt": "q", "chosen": "same", "rejected": "same" }),
        json!({ "prompt": "q", "chosen": "good" }),
        json!({ "chosen": [user, says("good")], "rejected": [says("x"), says("bad")] }),
        json!({ "chosen": "good", "rejected": "bad" }),
        json!({ "prompt": "q", "chosen": "good", "rejected": " " }),
    ];
    let manifest = run(&workshop, &rows, json!({ "kind": "preferences" })).unwrap();
    let found = workshop.rows::<Preferences>(&manifest, "preferences");
    assert_eq!(found.len(), 7);
    assert!(
        found.iter().all(|row| (row.chosen.as_str(), row.rejected.as_str()) == ("good", "bad") && row.fault.is_none())
    );
    let prompts: Vec<String> = found.iter().map(|row| short(&row.messages)).collect();
    assert_eq!(prompts, ["u:q", "u:q", "u:q", "s:s u:q", "u:q", "u:q", "u:q"]);
    let margins: Vec<Option<f64>> = found.iter().map(|row| row.margin).collect();
    assert_eq!(margins, [Some(0.5), None, Some(2.5), None, None, None, None]);
    let rules: Vec<String> = drops(&workshop, &manifest).into_iter().map(|(_, rule)| rule).collect();
    assert_eq!(rules, ["no_question", "equal_answers", "no_fields", "different_prompts", "no_fields", "no_answer"]);
}

/// As `datasets` writes chats.
#[test]
fn chats_in_parquet_are_lists_of_structs() {
    let workshop = Workshop::new("ingest-chats-parquet");
    let fields = vec![Field::new("content", DataType::Utf8, true), Field::new("role", DataType::Utf8, true)];
    let columns = vec![Box::new(StringBuilder::new()) as _, Box::new(StringBuilder::new()) as _];
    let mut lists = ListBuilder::new(StructBuilder::new(fields, columns));
    for (content, role) in [("q", "user"), ("a", "assistant")] {
        lists.values().field_builder::<StringBuilder>(0).unwrap().append_value(content);
        lists.values().field_builder::<StringBuilder>(1).unwrap().append_value(role);
        lists.values().append(true);
    }
    lists.append(true);
    let batch = RecordBatch::try_from_iter([("messages", Arc::new(lists.finish()) as ArrayRef)]).unwrap();
    let path = workshop.folder().join("a.parquet");
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let manifest = workshop.run::<Ingest>(json!({ "paths": [path], "kind": "conversations" }), &[]).unwrap();
    assert_eq!(short(&workshop.rows::<Conversations>(&manifest, "conversations")[0].messages), "u:q a:a");
}

#[test]
fn configs_that_mix_documents_and_chats_are_refused() {
    let workshop = Workshop::new("ingest-chat-config");
    let refuse = |config: Value| {
        let mut config = config;
        config["paths"] = json!(["/nowhere/*"]);
        let error = workshop.resolve::<Ingest>(config, &[]).unwrap_err();
        (error.problem().field.clone().unwrap_or_default(), told(&error))
    };
    let pair = |field: &str, text: &str| (field.to_owned(), text.to_owned());
    assert_eq!(
        refuse(json!({ "kind": "prompts", "min_bytes": 3 })),
        pair("/min_bytes", "`min_bytes` is for documents, and this job reads prompts")
    );
    assert_eq!(refuse(json!({ "kind": "prompts", "verifier": { "family": "oracle" } })).0, "/verifier");
    assert_eq!(
        refuse(json!({ "kind": "conversations", "roles": { "x": "boss" } })),
        pair("/roles/x", "`x` is said to be `boss`, expected one of system, user, assistant, tool")
    );
    assert_eq!(
        refuse(json!({ "max_bad_share": 0.1 })),
        pair(
            "/max_bad_share",
            "a share of bad records has no use when the first one stops the job\nhint: set `bad_records: drop`"
        )
    );
    assert_eq!(
        refuse(json!({ "bad_records": "drop", "max_bad_share": 2 })),
        pair("/max_bad_share", "2 is no share, expected 0 to 1")
    );
}
