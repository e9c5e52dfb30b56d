//! The decisions of published filters, learnt from the words alone: how far a classifier gets on real documents.

#[path = "../../../tests/parity/data.rs"]
mod data;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::slice::from_ref;

use serde_json::json;
use smelt_quality::Quality;
use workshop::Workshop;

#[test]
fn what_a_published_filter_keeps_can_be_told_by_its_words() {
    // The small set has too few documents.
    for set in data::sets().into_iter().filter(|set| set.is_full) {
        let records = set.records("filters");
        for filter in ["gopher_qual", "fineweb"] {
            let workshop = Workshop::new(&format!("quality-recorded-{filter}"));
            let of = |kept: bool| {
                let wanted = records.iter().filter(|r| r["made"] == false && r[filter][0] == kept);
                let texts: Vec<(&str, &str)> = wanted.map(|r| (data::text(r, "id"), data::text(r, "text"))).collect();
                (texts.len(), workshop.feed(&texts, 500))
            };
            let ((up, positive), (down, negative)) = (of(true), of(false));
            let inputs: &[(&str, &[smelt_schemas::InputRef])] =
                &[("positive", from_ref(&positive)), ("negative", from_ref(&negative))];
            let manifest = workshop.run::<Quality>(json!({}), inputs).unwrap();
            let metric = |name: &str| manifest.metrics[name];
            data::say(&format!(
                "{}: {filter}: {up} kept, {down} not; of {} unseen ones accuracy {:.3}, AUC {:.3}, \
                 calibration error {:.3}",
                set.name(),
                metric("test_documents"),
                metric("test_accuracy"),
                metric("test_auc"),
                metric("test_calibration_error")
            ));
            assert!(metric("test_auc") > 0.8, "{filter}: AUC {}", metric("test_auc"));
        }
    }
}
