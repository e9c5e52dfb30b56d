//! What the rules see of each document, as columns beside it.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use smelt_stage::kinds::{Document, Documents, Extra};
use smelt_stage::{Error, Port, Unit};

use crate::rules::{Judge, value_names};
use crate::{Settled, Tools, clean, language};

/// Documents whose columns are made at once.
const BATCH: usize = 256;

/// Writes the documents of a file with their columns.
pub(crate) fn file(
    config: &Settled,
    tools: &Tools,
    documents: impl Iterator<Item = Result<Document, Error>>,
    port: &Port<Documents>,
    unit: &mut Unit,
) -> Result<(), Error> {
    let (mut judge, mut batch) = (Judge::default(), Vec::new());
    let mut write = |batch: &mut Vec<Document>, unit: &mut Unit| -> Result<(), Error> {
        add_columns(config, tools, &mut judge, batch)?;
        batch.drain(..).try_for_each(|document| unit.keep(port, document))
    };
    for document in documents {
        unit.count_read(1);
        batch.push(document?);
        if batch.len() == BATCH {
            write(&mut batch, unit)?;
        }
    }
    write(&mut batch, unit)
}

fn add_columns(config: &Settled, tools: &Tools, judge: &mut Judge, documents: &mut [Document]) -> Result<(), Error> {
    let names = value_names();
    let mut values: Vec<Vec<Option<f64>>> = vec![Vec::with_capacity(documents.len()); names.len()];
    let (mut rules, mut confidences, mut qualities) = (Vec::new(), Vec::new(), Vec::new());
    for document in documents.iter_mut() {
        rules.push(clean(config, tools, judge, document.clone()).err().map(|dropped| dropped.rule));
        config.normalise(document);
        let found = language::identify(&document.text);
        document.language = found.map(|found| found.code.to_owned());
        confidences.push(found.map(|found| found.confidence));
        qualities.extend(tools.scorer.as_ref().map(|scorer| scorer.classifier.score(&document.text)));
        // Both are sorted by name. A share of nothing is no number.
        for (column, value) in values.iter_mut().zip(judge.values(&config.rules, &document.text).into_values()) {
            column.push(value.is_finite().then_some(value));
        }
    }
    let rule: ArrayRef = Arc::new(StringArray::from(rules));
    let confidence: ArrayRef = Arc::new(Float64Array::from(confidences));
    let quality =
        tools.scorer.as_ref().map(|_| ("quality".to_owned(), Arc::new(Float64Array::from(qualities)) as ArrayRef));
    let named = [("rule".to_owned(), rule), ("language_confidence".to_owned(), confidence)];
    let all = named.into_iter().chain(quality).chain(
        names.into_iter().zip(values).map(|(name, values)| (name, Arc::new(Float64Array::from(values)) as ArrayRef)),
    );
    let columns = RecordBatch::try_from_iter_with_nullable(all.map(|(name, column)| (name, column, true)));
    let columns = columns.map_err(|e| Error::bug(format!("the columns of the rules do not fit: {e}")))?;
    let extras: Vec<&mut Extra> = documents.iter_mut().map(|document| &mut document.extra).collect();
    Extra::add(extras, &columns).map_err(Error::bug)
}
