//! What leaves this machine: a plan whose files the cluster reads itself, and whose small tables it carries along.

use super::exact::exact;
use crate::failure::{Failure, failed};
use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::datasource::listing::ListingTable;
use datafusion::datasource::{MemTable, source_as_provider};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan, lit};
use datafusion::prelude::{DataFrame, ident};
use datafusion_proto::bytes::logical_plan_to_bytes;
use smelt_schemas::ExitCode;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A plan as `datafusion-proto` encodes it; nothing if it reads no file of the store, and for `explain`, which is about
/// how this machine would answer.
pub(super) fn encode(frame: &DataFrame) -> Result<Option<Vec<u8>>, Failure> {
    let plan = frame.logical_plan();
    if matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_)) {
        eprintln!("note: this machine answers, for the question is not about rows");
        return Ok(None);
    }
    let (mut reads_files, mut other) = (false, BTreeSet::new());
    let looked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            match Table::of(scan)? {
                Table::Files => reads_files = true,
                Table::Rows(_) => {}
                Table::Other => drop(other.insert(scan.table_name.to_string())),
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    looked.map_err(failed)?;
    if !reads_files {
        return Ok(None);
    }
    if let Some(table) = other.first() {
        return Err(Failure::new(ExitCode::Pipeline, format!("table `{table}` is of this machine alone"))
            .hint("leave out `--ballista`, or ask about it in a query of its own"));
    }
    let carried = plan.clone().transform_down_with_subqueries(|node| match &node {
        LogicalPlan::TableScan(scan) => match Table::of(scan)? {
            Table::Rows(table) => Ok(Transformed::yes(values(scan, &table)?)),
            _ => Ok(Transformed::no(node)),
        },
        _ => Ok(Transformed::no(node)),
    });
    // The encoding has no subqueries. The optimizer makes joins of them, on both sides of the border.
    let (state, _) = frame.clone().into_parts();
    let optimized = carried.and_then(|carried| state.optimize(&exact(carried.data)?));
    let bytes = optimized.and_then(|optimized| logical_plan_to_bytes(&optimized)).map_err(|e| {
        Failure::new(ExitCode::Pipeline, format!("this query cannot be sent to a cluster: {}", e.strip_backtrace()))
            .hint("leave out `--ballista`")
    })?;
    Ok(Some(bytes.to_vec()))
}

/// What a scan reads.
enum Table {
    /// Files of the store.
    Files,
    /// Records of the store, in memory.
    Rows(Arc<dyn TableProvider>),
    /// What only a session has, such as `information_schema`.
    Other,
}

impl Table {
    fn of(scan: &TableScan) -> Result<Self, DataFusionError> {
        let provider = source_as_provider(&scan.source)?;
        Ok(match (provider.is::<ListingTable>(), provider.is::<MemTable>()) {
            (true, _) => Table::Files,
            (_, true) => Table::Rows(provider),
            _ => Table::Other,
        })
    }
}

/// A table in memory as `values (…), (…)`.
fn values(scan: &TableScan, table: &Arc<dyn TableProvider>) -> Result<LogicalPlan, DataFusionError> {
    let bug = |what: &str| DataFusionError::Internal(format!("table `{}`: {what}", scan.table_name));
    let schema = table.schema();
    let mut rows: Vec<Vec<Expr>> = Vec::new();
    let memory = table.downcast_ref::<MemTable>().ok_or_else(|| bug("not in memory"))?;
    for batches in &memory.batches {
        for batch in batches.try_read().map_err(|_| bug("somebody writes to it"))?.iter() {
            for row in 0..batch.num_rows() {
                let of_row = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, row).map(lit));
                rows.push(of_row.collect::<Result<_, _>>()?);
            }
        }
    }
    let is_empty = rows.is_empty();
    if is_empty {
        // `values` needs a row to have columns.
        let nulls = schema.fields().iter().map(|field| ScalarValue::try_new_null(field.data_type()).map(lit));
        rows.push(nulls.collect::<Result<_, _>>()?);
    }
    let names = schema.fields().iter().enumerate();
    let named: Vec<Expr> = names.map(|(i, field)| ident(format!("column{}", i + 1)).alias(field.name())).collect();
    let mut plan = LogicalPlanBuilder::values(rows)?.project(named)?;
    if is_empty {
        plan = plan.filter(lit(false))?;
    }
    if let Some(kept) = &scan.projection {
        plan = plan.project(kept.iter().map(|i| ident(schema.field(*i).name())))?;
    }
    plan.alias(scan.table_name.clone())?.build()
}

/// A batch with the columns that the query has here: a cluster may give a text as another type of text.
pub(super) fn as_promised(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, Failure> {
    let wrong = |what: String| Failure::new(ExitCode::Machine, format!("the cluster's answer does not fit: {what}"));
    if batch.num_columns() != schema.fields().len() {
        return Err(wrong(format!("{} columns, the query has {}", batch.num_columns(), schema.fields().len())));
    }
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>().map_err(|e| wrong(e.to_string()))?;
    let nullable = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    let schema = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &rows).map_err(|e| wrong(e.to_string()))
}
