//! `sum` of integers: exact inside, an error where the result does not fit its type. Other types keep DataFusion's.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array, UInt64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type};
use datafusion::common::{ScalarValue, exec_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use std::sync::Arc;

/// What partial sums are: no number of rows overflows it.
const EXACT: DataType = DataType::Decimal128(38, 0);

#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedSum {
    of: Sum,
}

pub(super) fn checked_sum() -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::from(CheckedSum { of: Sum::new() }))
}

fn is_integer(of: &DataType) -> bool {
    matches!(of, DataType::Int64 | DataType::UInt64)
}

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        self.of.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.of.return_type(types)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let of = args.return_field.data_type().clone();
        match (is_integer(&of), args.is_distinct) {
            (false, _) => self.of.accumulator(args),
            (true, false) => Ok(Box::new(Total { of, total: None, rows: 0 })),
            (true, true) => Ok(Box::new(Distinct { of, values: self.of.accumulator(args)? })),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        match is_integer(args.return_field.data_type()) && !args.is_distinct {
            true => Ok(vec![Arc::new(Field::new(format!("{}[sum]", args.name), EXACT, true))]),
            false => self.of.state_fields(args),
        }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.of.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let of = args.return_field.data_type().clone();
        match is_integer(&of) {
            true => Ok(Box::new(Totals { of, totals: Vec::new() })),
            false => self.of.create_groups_accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match is_integer(args.return_field.data_type()) && !args.is_distinct {
            true => self.accumulator(args),
            false => self.of.create_sliding_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// The values of an array of integers, or of partial sums.
fn values(array: &ArrayRef) -> Result<Decimal128Array> {
    Ok(cast(array, &EXACT)?.as_primitive::<Decimal128Type>().clone())
}

fn misfit<T>(total: i128, of: &DataType) -> Result<T> {
    exec_err!("Arithmetic overflow: the sum {total} does not fit {of}")
}

/// Totals as an array of the type of the result.
fn fitted(totals: Vec<Option<i128>>, of: &DataType) -> Result<ArrayRef> {
    macro_rules! fit {
        ($array:ty, $native:ty) => {{
            let fit = |total: Option<i128>| match total.map(<$native>::try_from) {
                None => Ok(None),
                Some(Ok(fits)) => Ok(Some(fits)),
                Some(Err(_)) => misfit(total.unwrap_or_default(), of),
            };
            Ok(Arc::new(totals.into_iter().map(fit).collect::<Result<$array>>()?))
        }};
    }
    match of {
        DataType::UInt64 => fit!(UInt64Array, u64),
        _ => fit!(Int64Array, i64),
    }
}

/// One sum, also over a window that moves.
#[derive(Debug)]
struct Total {
    of: DataType,
    total: Option<i128>,
    /// Values in the sum that are not null.
    rows: usize,
}

impl Accumulator for Total {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        let values = values(&arrays[0])?;
        let sum: i128 = values.iter().flatten().sum();
        let rows = values.len() - values.null_count();
        if rows > 0 {
            self.rows += rows;
            *self.total.get_or_insert(0) += sum;
        }
        Ok(())
    }

    fn retract_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        let values = values(&arrays[0])?;
        let sum: i128 = values.iter().flatten().sum();
        self.rows -= values.len() - values.null_count();
        self.total = self.total.map(|total| total - sum).filter(|_| self.rows > 0);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Decimal128(self.total, 38, 0)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&fitted(vec![self.total], &self.of)?, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// The sum of different values: DataFusion collects them, and this adds them up.
#[derive(Debug)]
struct Distinct {
    of: DataType,
    values: Box<dyn Accumulator>,
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        self.values.update_batch(arrays)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.values.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.values.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut total = Total { of: self.of.clone(), total: None, rows: 0 };
        for state in self.values.state()? {
            if let ScalarValue::List(list) = state {
                total.update_batch(&[list.values().clone()])?;
            }
        }
        total.evaluate()
    }

    fn size(&self) -> usize {
        self.values.size()
    }
}

/// The sums of many groups.
#[derive(Debug)]
struct Totals {
    of: DataType,
    totals: Vec<Option<i128>>,
}

impl GroupsAccumulator for Totals {
    fn update_batch(
        &mut self,
        arrays: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.totals.resize(count, None);
        let is_kept = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let totals = &mut self.totals;
        let mut add = |row: usize, value: Option<i128>| {
            if let Some(value) = value.filter(|_| is_kept(row)) {
                *totals[groups[row]].get_or_insert(0) += value;
            }
        };
        match arrays[0].data_type() {
            DataType::Int64 => {
                let values = arrays[0].as_primitive::<Int64Type>();
                values.iter().enumerate().for_each(|(row, value)| add(row, value.map(i128::from)));
            }
            DataType::UInt64 => {
                let values = arrays[0].as_primitive::<UInt64Type>();
                values.iter().enumerate().for_each(|(row, value)| add(row, value.map(i128::from)));
            }
            _ => values(&arrays[0])?.iter().enumerate().for_each(|(row, value)| add(row, value)),
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        fitted(emit_to.take_needed(&mut self.totals), &self.of)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let totals: Decimal128Array = emit_to.take_needed(&mut self.totals).into_iter().collect();
        Ok(vec![Arc::new(totals.with_precision_and_scale(38, 0)?)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.update_batch(states, groups, None, count)
    }

    fn convert_to_state(&self, arrays: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = values(&arrays[0])?;
        let kept = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let kept: Decimal128Array = values.iter().enumerate().map(|(row, v)| v.filter(|_| kept(row))).collect();
        Ok(vec![Arc::new(kept.with_precision_and_scale(38, 0)?)])
    }

    fn size(&self) -> usize {
        self.totals.capacity() * size_of::<Option<i128>>() + size_of_val(self)
    }
}
