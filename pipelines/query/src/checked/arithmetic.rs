//! `a + b`, `a - b`, `a * b` and `-a` of integers, by Arrow's checked kernels.

use datafusion::arrow::compute::kernels::numeric::{add, mul, neg, sub};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::physical_expr_common::datum::apply;
use std::sync::{Arc, LazyLock};

/// Replaces the operators before types are coerced; the names of columns stay as they are.
#[derive(Debug)]
struct Rewriter;

pub(super) fn rewriter() -> Arc<dyn FunctionRewrite + Send + Sync> {
    Arc::new(Rewriter)
}

impl FunctionRewrite for Rewriter {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let is_integer = |e: &Expr| e.get_type(schema).is_ok_and(|of| of.is_integer());
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_integer(&left) && is_integer(&right) => {
                match FUNCTIONS.iter().find(|f| f.op == Some(op)) {
                    Some(function) => Transformed::yes(function.call(vec![*left, *right])),
                    None => Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right })),
                }
            }
            Expr::Negative(of) if is_integer(&of) => Transformed::yes(FUNCTIONS[3].call(vec![*of])),
            other => Transformed::no(other),
        })
    }
}

/// One operator; no operator is the sign.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Checked {
    name: &'static str,
    op: Option<Operator>,
    signature: Signature,
}

static FUNCTIONS: LazyLock<[Checked; 4]> = LazyLock::new(|| {
    let of = |name, op| Checked { name, op, signature: Signature::user_defined(Volatility::Immutable) };
    [
        of("checked_add", Some(Operator::Plus)),
        of("checked_subtract", Some(Operator::Minus)),
        of("checked_multiply", Some(Operator::Multiply)),
        of("checked_negate", None),
    ]
});

impl Checked {
    fn call(&self, args: Vec<Expr>) -> Expr {
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::new(ScalarUDF::from(self.clone())), args))
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match (&self.op, types) {
            (Some(op), [left, right]) => {
                BinaryTypeCoercer::new(left, op, right).get_input_types().map(|(left, right)| vec![left, right])
            }
            _ => Ok(types.to_vec()),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match (&self.op, types) {
            (Some(op), [left, right]) => BinaryTypeCoercer::new(left, op, right).get_result_type(),
            _ => Ok(types[0].clone()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let args = args.args;
        match self.op {
            Some(Operator::Plus) => apply(&args[0], &args[1], add),
            Some(Operator::Minus) => apply(&args[0], &args[1], sub),
            Some(_) => apply(&args[0], &args[1], mul),
            None => apply(&args[0], &args[0], |value, _| neg(value.get().0)),
        }
    }
}
