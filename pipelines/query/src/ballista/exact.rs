//! Integers that overflow are an error on a cluster too. Its `+`, `-`, `*` and `sum` are DataFusion's, which wrap
//! around, and functions of smelt's own cannot go there: the plan computes in decimals, and casts back, which checks.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator, Projection, Window, WindowFunctionDefinition,
    cast, lit,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::optimizer::analyzer::function_rewrite::ApplyFunctionRewrites;
use datafusion::prelude::{Column, ident};
use std::sync::Arc;

/// Holds every integer of 64 bits; sums and products of them fit into 38 digits.
const DIGITS: DataType = DataType::Decimal128(20, 0);
/// The sum of it has 38 digits: no number of rows overflows it.
const SUMMED: DataType = DataType::Decimal128(28, 0);

/// The same plan, exact on any DataFusion.
pub(super) fn exact(plan: LogicalPlan) -> Result<LogicalPlan> {
    let plan = ApplyFunctionRewrites::new(vec![Arc::new(Arithmetic)]).analyze(plan, &ConfigOptions::new())?;
    plan.transform_up_with_subqueries(sums).map(|transformed| transformed.data)
}

#[derive(Debug)]
struct Arithmetic;

impl FunctionRewrite for Arithmetic {
    fn name(&self) -> &str {
        "exact_arithmetic"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let integer = |e: &Expr| e.get_type(schema).ok().filter(DataType::is_integer);
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right })
                if matches!(op, Operator::Plus | Operator::Minus | Operator::Multiply) =>
            {
                match (integer(&left), integer(&right)) {
                    (Some(a), Some(b)) => {
                        let of = BinaryTypeCoercer::new(&a, &op, &b).get_result_type()?;
                        let (left, right) = (Box::new(cast(*left, DIGITS)), Box::new(cast(*right, DIGITS)));
                        Transformed::yes(cast(Expr::BinaryExpr(BinaryExpr { left, op, right }), of))
                    }
                    _ => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
                }
            }
            Expr::Negative(value) => match integer(&value) {
                Some(of) => {
                    let zero = cast(lit(0_i64), DIGITS);
                    Transformed::yes(cast(zero - cast(*value, DIGITS), of))
                }
                None => Transformed::no(Expr::Negative(value)),
            },
            other => Transformed::no(other),
        })
    }
}

/// `sum` of integers, in aggregates and windows.
fn sums(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let (exprs, input) = match &plan {
        LogicalPlan::Aggregate(aggregate) => (&aggregate.aggr_expr, &aggregate.input),
        LogicalPlan::Window(window) => (&window.window_expr, &window.input),
        _ => return Ok(Transformed::no(plan)),
    };
    let widened = exprs.iter().map(|expr| widen(expr, input.schema())).collect::<Result<Vec<_>>>()?;
    if widened.iter().all(Option::is_none) {
        return Ok(Transformed::no(plan));
    }
    let before = Arc::clone(plan.schema());
    let first = before.fields().len() - exprs.len();
    let names: Vec<String> = exprs.iter().map(|expr| expr.schema_name().to_string()).collect();
    let new = exprs.iter().zip(&widened).zip(&names).map(|((old, new), name)| match new {
        Some(new) => new.clone().alias(name),
        None => old.clone(),
    });
    let new: Vec<Expr> = new.collect();
    // The columns that were there, under their names and with their types.
    let columns = before.iter().enumerate().map(|(i, (table, field))| {
        let is_widened = i.checked_sub(first).is_some_and(|i| widened[i].is_some());
        match is_widened {
            true => cast(ident(field.name()), field.data_type().clone()).alias(field.name()),
            false => Expr::Column(Column::new(table.cloned(), field.name())),
        }
    });
    let columns: Vec<Expr> = columns.collect();
    let wide = match plan {
        LogicalPlan::Aggregate(of) => LogicalPlan::Aggregate(Aggregate::try_new(of.input, of.group_expr, new)?),
        LogicalPlan::Window(of) => LogicalPlan::Window(Window::try_new(new, of.input)?),
        other => other,
    };
    Ok(Transformed::yes(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(wide))?)))
}

/// A sum of integers over what it sums as decimals.
fn widen(expr: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let is_integer = |args: &[Expr]| matches!(args, [one] if one.get_type(schema).is_ok_and(|of| of.is_integer()));
    Ok(match expr {
        Expr::AggregateFunction(call) if call.func.name() == "sum" && is_integer(&call.params.args) => {
            let mut call = call.clone();
            call.params.args = call.params.args.into_iter().map(|arg| cast(arg, SUMMED)).collect();
            Some(Expr::AggregateFunction(call))
        }
        Expr::WindowFunction(call)
            if matches!(&call.fun, WindowFunctionDefinition::AggregateUDF(f) if f.name() == "sum")
                && is_integer(&call.params.args) =>
        {
            let mut call = call.clone();
            call.params.args = call.params.args.into_iter().map(|arg| cast(arg, SUMMED)).collect();
            Some(Expr::WindowFunction(call))
        }
        _ => None,
    })
}
