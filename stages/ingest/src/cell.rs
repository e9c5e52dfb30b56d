//! Values of Arrow columns as text and as JSON, exactly or not at all.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};

/// Whether a column's values can stand in JSON. Bytes can, in hexadecimal, where they are asked for.
pub(crate) fn fits(of: &DataType, with_bytes: bool) -> bool {
    match of {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => with_bytes,
        DataType::Union(..) | DataType::RunEndEncoded(..) | DataType::ListView(_) | DataType::LargeListView(_) => false,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            fits(item.data_type(), with_bytes)
        }
        DataType::Struct(fields) => fields.iter().all(|field| fits(field.data_type(), with_bytes)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) => is_text(pair[0].data_type()) && fits(pair[1].data_type(), with_bytes),
            _ => false,
        },
        DataType::Dictionary(_, values) => fits(values, with_bytes),
        _ => true,
    }
}

/// Whether a type is text, or becomes text without loss: numbers, decimals, truth values, times, bytes that are UTF-8.
pub(crate) fn is_text(of: &DataType) -> bool {
    match of {
        DataType::Dictionary(_, values) => is_text(values),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => false,
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) | DataType::Null => false,
        of => can_cast_types(of, &DataType::Utf8),
    }
}

/// A column with its dictionary filled in.
pub(crate) fn plain(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Dictionary(_, values) => cast(column, values),
        _ => Ok(column.clone()),
    }
}

/// The bytes of a text; `None` where it is null. `column` holds no dictionary.
pub(crate) fn bytes(column: &ArrayRef, row: usize) -> Option<Vec<u8>> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).into(),
        DataType::Utf8View => column.as_string_view().value(row).into(),
        DataType::Binary => column.as_binary::<i32>().value(row).into(),
        DataType::LargeBinary => column.as_binary::<i64>().value(row).into(),
        DataType::BinaryView => column.as_binary_view().value(row).into(),
        DataType::FixedSizeBinary(_) => column.as_fixed_size_binary().value(row).into(),
        _ => match json(column, row) {
            Value::String(text) => text.into_bytes(),
            other => other.to_string().into_bytes(),
        },
    })
}

/// A value as JSON: decimals, NaN, infinities, dates and times as strings, what is null in an object left out.
/// The column's type [`fits`].
pub(crate) fn json(column: &ArrayRef, row: usize) -> Value {
    macro_rules! number {
        ($of:ty) => {
            column.as_primitive::<$of>().value(row).into()
        };
    }
    if column.is_null(row) {
        return Value::Null;
    }
    let list = |items: ArrayRef| Value::Array((0..items.len()).map(|i| json(&items, i)).collect());
    match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        // The shortest digits of a narrow float are its own, not those of the double beside it.
        DataType::Float16 => narrow(column.as_primitive::<Float16Type>().value(row).to_f32()),
        DataType::Float32 => narrow(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(..) => column.as_primitive::<Decimal128Type>().value_as_string(row).into(),
        DataType::Decimal256(..) => column.as_primitive::<Decimal256Type>().value_as_string(row).into(),
        DataType::Timestamp(unit, zone) => timestamp(column, row, *unit, zone.is_some()),
        DataType::Date32 => date(i64::from(column.as_primitive::<Date32Type>().value(row)) * 86_400_000),
        DataType::Date64 => date(column.as_primitive::<Date64Type>().value(row)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            String::from_utf8(bytes(column, row).unwrap_or_default()).unwrap_or_default().into()
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            bytes(column, row).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
        }
        DataType::List(_) => list(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(column.as_fixed_size_list().value(row)),
        DataType::Struct(_) => {
            let columns = column.as_struct();
            let cells = columns.column_names().into_iter().zip(columns.columns());
            let object: Map<String, Value> =
                cells.map(|(name, cell)| (name.to_owned(), json(cell, row))).filter(|(_, v)| !v.is_null()).collect();
            object.into()
        }
        DataType::Map(..) => {
            let pairs = column.as_map().value(row);
            let keys = plain(pairs.column(0)).unwrap_or_else(|_| pairs.column(0).clone());
            let name = |i| String::from_utf8_lossy(&bytes(&keys, i).unwrap_or_default()).into_owned();
            let object: Map<String, Value> = (0..pairs.len()).map(|i| (name(i), json(pairs.column(1), i))).collect();
            object.into()
        }
        DataType::Dictionary(..) => plain(&column.slice(row, 1)).map_or(Value::Null, |value| json(&value, 0)),
        _ => shown(column, row),
    }
}

/// Times of day, durations and intervals, as Arrow writes them.
fn shown(column: &ArrayRef, row: usize) -> Value {
    let options = FormatOptions::default();
    let text = ArrayFormatter::try_new(column.as_ref(), &options).and_then(|f| f.value(row).try_to_string());
    text.map_or(Value::Null, Value::String)
}

fn narrow(value: f32) -> Value {
    float(value.to_string().parse().unwrap_or(f64::from(value)))
}

fn float(value: f64) -> Value {
    match value.is_finite() {
        true => value.into(),
        false if value.is_nan() => "NaN".into(),
        false if value < 0.0 => "-Infinity".into(),
        false => "Infinity".into(),
    }
}

/// ISO 8601, in UTC if the column has a zone; a count with its unit where no calendar reaches.
fn timestamp(column: &ArrayRef, row: usize, unit: TimeUnit, has_zone: bool) -> Value {
    let (count, per_second, name) = match unit {
        TimeUnit::Second => (column.as_primitive::<TimestampSecondType>().value(row), 1, "s"),
        TimeUnit::Millisecond => (column.as_primitive::<TimestampMillisecondType>().value(row), 1_000, "ms"),
        TimeUnit::Microsecond => (column.as_primitive::<TimestampMicrosecondType>().value(row), 1_000_000, "us"),
        TimeUnit::Nanosecond => (column.as_primitive::<TimestampNanosecondType>().value(row), 1_000_000_000, "ns"),
    };
    let nanos = count.rem_euclid(per_second) * (1_000_000_000 / per_second);
    match DateTime::<Utc>::from_timestamp(count.div_euclid(per_second), nanos as u32) {
        None => format!("{count} {name} since 1970").into(),
        Some(time) if has_zone => time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into(),
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true).trim_end_matches('Z').into(),
    }
}

fn date(millis: i64) -> Value {
    match DateTime::<Utc>::from_timestamp_millis(millis) {
        None => format!("{millis} ms since 1970").into(),
        Some(time) if millis % 86_400_000 == 0 => {
            time.to_rfc3339_opts(SecondsFormat::Secs, true).trim_end_matches("T00:00:00Z").into()
        }
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true).trim_end_matches('Z').into(),
    }
}
