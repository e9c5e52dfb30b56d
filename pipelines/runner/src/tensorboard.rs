//! Curves as TensorBoard reads them: a folder of event files per job.
//!
//! An event file is TFRecords (length, masked CRC-32C, bytes, masked CRC-32C) of `Event` messages: wall time, step, and
//! a summary with a tag and a value (tensorflow/core/util/event.proto, framework/summary.proto).

use crate::diagnostic::{Diagnostic, Result};
use crate::query;
use smelt_schemas::ExitCode;
use smelt_store::{Store, safe_name};
use std::path::Path;

/// Writes the curves of a pipeline's jobs below `folder`, each job's in a file that replaces the one before.
pub(crate) fn write(store: &Store, pipeline: &str, folder: &Path) -> Result<()> {
    let sql = "select job, step, name, value from smelt.metrics where not starts_with(name, 'expert_load.') \
        order by job, step, name";
    let rows = query::rows(store, pipeline, sql)?;
    let jobs = query::rows(store, pipeline, "select job, cast(started as bigint) as started from smelt.jobs")?;
    if rows.is_empty() {
        return Err(Diagnostic::pipeline(format!(
            "no job of pipeline `{pipeline}` has a curve in {}",
            store.address()
        ))
        .hint("trainers have: `smelt status` says what has run"));
    }
    for of_job in rows.chunk_by(|a, b| a["job"] == b["job"]) {
        let job = of_job[0]["job"].as_str().unwrap_or_default();
        let begun = jobs.iter().find(|row| row["job"] == job).and_then(|row| row["started"].as_f64());
        // Curves have steps and no times: all points get the job's.
        let time = begun.map_or_else(smelt_store::now, |micros| micros / 1e6);
        let mut file = record(&version(time));
        for row in of_job {
            let number = |field: &str| row[field].as_f64();
            if let (Some(step), Some(name), Some(value)) = (row["step"].as_u64(), row["name"].as_str(), number("value"))
            {
                file.extend(record(&scalar(time, step, name, value as f32)));
            }
        }
        let place = folder.join(safe_name(job));
        let name = "events.out.tfevents.smelt";
        let temporary = place.join("smelt-tmp");
        let written = std::fs::create_dir_all(&place)
            .and_then(|()| std::fs::write(&temporary, file))
            .and_then(|()| std::fs::rename(&temporary, place.join(name)));
        written.map_err(|e| {
            Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be written: {e}", place.join(name).display()))
        })?;
        println!("{}", place.join(name).display());
    }
    Ok(())
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat()
}

/// TFRecord's form of CRC-32C (tensorflow/core/lib/hash/crc32c.h).
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The first event of a file: `wall_time` is field 1, `file_version` field 3.
fn version(time: f64) -> Vec<u8> {
    [field_of_double(1, time), field_of_bytes(3, b"brain.Event:2")].concat()
}

/// `wall_time` 1, `step` 2, `summary` 5: its `value` 1 has `tag` 1 and `simple_value` 2.
fn scalar(time: f64, step: u64, name: &str, value: f32) -> Vec<u8> {
    let point = [field_of_bytes(1, name.as_bytes()), [&[key(2, 5)][..], &value.to_le_bytes()].concat()].concat();
    let step = [&[key(2, 0)][..], &varint(step)].concat();
    [field_of_double(1, time), step, field_of_bytes(5, &field_of_bytes(1, &point))].concat()
}

/// Number and wire type of a field of Protocol Buffers: 0 a varint, 1 eight bytes, 2 bytes with their length, 5 four.
fn key(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

fn field_of_double(field: u8, value: f64) -> Vec<u8> {
    [&[key(field, 1)][..], &value.to_le_bytes()].concat()
}

fn field_of_bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    [&[key(field, 2)][..], &varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the `Event` message of TensorBoard 2.21 writes itself.
    #[test]
    fn an_event_has_the_bytes_that_tensorboard_writes() {
        let event = scalar(1.5, 300, "loss", 2.0);
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0xac, 0x02, 0x2a, 0x0d, 0x0a, 0x0b, 0x0a, 0x04][..],
            b"loss",
            &[0x15, 0, 0, 0, 0x40],
        ];
        assert_eq!(event, expected.concat());
        // RFC 3720, B.4: the CRC-32C of 32 zero bytes is 8a9136aa.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let record = record(&event);
        assert_eq!(record.len(), 8 + 4 + event.len() + 4);
    }

    #[test]
    fn values_of_any_size_are_varints() {
        assert_eq!(
            [varint(0), varint(127), varint(128), varint(300)],
            [vec![0], vec![127], vec![128, 1], vec![172, 2]]
        );
        assert_eq!(varint(u64::MAX).len(), 10);
    }
}
