//! What `plan --diff` shows.

use crate::support::Bench;

#[test]
fn a_plan_shows_what_changed_in_each_config_as_a_unified_diff() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), config: { seed: 1 } }\n  b: { stage: STAGE(merge), input: \
        a }\n  c: { stage: STAGE(count), config: { rows: 4 } }\n";
    bench.pipeline("p.yaml", text);
    let none = bench.smelt(&["plan", "p.yaml", "--diff"]).ok().out;
    assert_eq!(none, bench.smelt(&["plan", "p.yaml"]).ok().out, "there is nothing to compare with");
    bench.smelt(&["run", "p.yaml"]).ok();
    let run = bench.store().runs().unwrap().pop().unwrap().run;
    // A job that waits for another is compared as well; of one that has not changed there is nothing to say.
    let set = ["--set", "a.config.rows=12", "--set", "a.config.delay_ms=3", "--set", "b.config.lose_one=true"];
    let plan = bench.smelt(&[&["plan", "p.yaml", "--diff"][..], &set].concat()).ok().out;
    let expected = format!(
        "  a  new      config.rows: 10 -> 12, config.delay_ms: 0 -> 3
      --- run {run}
      +++ now
      @@ -1,5 +1,5 @@
      -rows: 10
      +rows: 12
       units: 3
       seed: 1
      -delay_ms: 0
      +delay_ms: 3
       fail: null
  b  after a
      --- run {run}
      +++ now
      @@ -1 +1 @@
      -lose_one: false
      +lose_one: true
  c  cached
  1 new, 1 cached, 1 after them; nothing was run
"
    );
    assert_eq!(plan, expected);
    let json = bench.smelt(&[&["plan", "p.yaml", "--diff", "--format", "json"][..], &set].concat()).ok().out;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert!(rows[1]["diff"].as_str().unwrap().ends_with("-lose_one: false\n+lose_one: true\n"), "{json}");
    assert!(rows[2]["diff"].is_null());
    assert!(!bench.smelt(&["plan", "p.yaml", "--format", "json"]).ok().out.contains("diff"));
}
