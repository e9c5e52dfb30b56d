//! Rows to Arrow columns and back.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Builder, Float64Array, ListBuilder, StringArray, StringBuilder,
    StructBuilder, TimestampMicrosecondArray, UInt32Array, UInt32Builder, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, TimestampMicrosecondType, UInt32Type, UInt64Type};
use std::sync::Arc;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// Microseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub i64);

/// A type that is a column. `read` gives `None` when the column has another type, or a null where none may be.
pub(crate) trait Cell: Sized {
    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
    fn read(column: &ArrayRef) -> Option<Vec<Self>>;
}

/// Strings come as Utf8, LargeUtf8 or Utf8View, by who wrote the file.
fn strings(column: &ArrayRef) -> Option<Vec<Option<String>>> {
    let own = |s: Option<&str>| s.map(str::to_owned);
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().iter().map(own).collect()),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().iter().map(own).collect()),
        DataType::Utf8View => Some(column.as_string_view().iter().map(own).collect()),
        DataType::Null => Some(vec![None; column.len()]),
        _ => None,
    }
}

impl Cell for String {
    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(values))
    }
    fn read(column: &ArrayRef) -> Option<Vec<Self>> {
        strings(column)?.into_iter().collect()
    }
}

impl Cell for Option<String> {
    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(Option::as_deref).collect::<StringArray>())
    }
    fn read(column: &ArrayRef) -> Option<Vec<Self>> {
        strings(column)
    }
}

impl Cell for bool {
    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(|v| Some(*v)).collect::<BooleanArray>())
    }
    fn read(column: &ArrayRef) -> Option<Vec<Self>> {
        column.as_boolean_opt()?.iter().collect()
    }
}

macro_rules! numbers {
    ($($rust:ty, $array:ty, $arrow:ty, $wrap:expr, $unwrap:expr, $finish:expr;)*) => { $(
        impl Cell for $rust {
            fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let array: $array = values.map(|v| Some($unwrap(*v))).collect();
                Arc::new($finish(array))
            }
            fn read(column: &ArrayRef) -> Option<Vec<Self>> {
                column.as_primitive_opt::<$arrow>()?.iter().map(|v| v.map($wrap)).collect()
            }
        }
        impl Cell for Option<$rust> {
            fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let array: $array = values.map(|v| v.map($unwrap)).collect();
                Arc::new($finish(array))
            }
            fn read(column: &ArrayRef) -> Option<Vec<Self>> {
                Some(column.as_primitive_opt::<$arrow>()?.iter().map(|v| v.map($wrap)).collect())
            }
        }
    )* };
}

numbers! {
    f64, Float64Array, Float64Type, |v| v, |v: f64| v, |a| a;
    u64, UInt64Array, UInt64Type, |v| v, |v: u64| v, |a| a;
    u32, UInt32Array, UInt32Type, |v| v, |v: u32| v, |a| a;
    Micros, TimestampMicrosecondArray, TimestampMicrosecondType, Micros, |v: Micros| v.0,
        |a: TimestampMicrosecondArray| a.with_timezone("UTC");
}

fn item(data_type: DataType) -> Field {
    Field::new("item", data_type, false)
}

macro_rules! lists {
    ($($rust:ty, $builder:ident, $arrow:ty, $data:expr;)*) => { $(
        impl Cell for Vec<$rust> {
            fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
                let mut lists = ListBuilder::new($builder::new()).with_field(item($data));
                for value in values {
                    lists.values().append_slice(value);
                    lists.append(true);
                }
                Arc::new(lists.finish())
            }
            fn read(column: &ArrayRef) -> Option<Vec<Self>> {
                let lists = column.as_list_opt::<i32>()?;
                lists.iter().map(|l| Some(l?.as_primitive_opt::<$arrow>()?.values().to_vec())).collect()
            }
        }
    )* };
}

lists! {
    u32, UInt32Builder, UInt32Type, DataType::UInt32;
    f32, Float32Builder, Float32Type, DataType::Float32;
}

impl Cell for Vec<Message> {
    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let fields = vec![Field::new("role", DataType::Utf8, false), Field::new("content", DataType::Utf8, false)];
        let columns = || vec![Box::new(StringBuilder::new()) as _, Box::new(StringBuilder::new()) as _];
        let message = DataType::Struct(fields.clone().into());
        let mut lists = ListBuilder::new(StructBuilder::new(fields, columns())).with_field(item(message));
        for chat in values {
            let messages = lists.values();
            for m in chat {
                for (i, text) in [&m.role, &m.content].into_iter().enumerate() {
                    messages.field_builder::<StringBuilder>(i).expect("both fields are strings").append_value(text);
                }
                messages.append(true);
            }
            lists.append(true);
        }
        Arc::new(lists.finish())
    }
    fn read(column: &ArrayRef) -> Option<Vec<Self>> {
        let chat = |list: Option<ArrayRef>| {
            let list = list?;
            let messages = list.as_struct_opt()?;
            let roles = String::read(messages.column_by_name("role")?)?;
            let contents = String::read(messages.column_by_name("content")?)?;
            Some(roles.into_iter().zip(contents).map(|(role, content)| Message { role, content }).collect())
        };
        column.as_list_opt::<i32>()?.iter().map(chat).collect()
    }
}
