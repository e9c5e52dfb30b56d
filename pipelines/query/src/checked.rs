//! Integers that overflow are an error. DataFusion's `+`, `-`, `*` and `sum` wrap around.

mod arithmetic;
mod sum;

use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;

pub(crate) fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    registry.register_function_rewrite(arithmetic::rewriter())?;
    registry.register_udaf(sum::checked_sum())?;
    Ok(())
}
