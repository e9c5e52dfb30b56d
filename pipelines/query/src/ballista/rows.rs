//! Rows as Arrow Flight carries them: messages of Arrow's IPC format, one each.

use super::messages::FlightData;
use crate::failure::Failure;
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::ipc::reader::StreamDecoder;
use datafusion::arrow::record_batch::RecordBatch;
use smelt_schemas::ExitCode;

/// Begins a message in a stream (Arrow columnar format, "Encapsulated message format").
const CONTINUATION: [u8; 4] = [0xff; 4];

#[derive(Default)]
pub(super) struct Decoder(StreamDecoder);

impl Decoder {
    /// The rows of one message; the first one has the schema, and none.
    pub(super) fn decode(&mut self, data: FlightData) -> Result<Option<RecordBatch>, Failure> {
        if data.header.is_empty() {
            return Ok(None); // a message with an application's words alone
        }
        let padded = data.header.len().next_multiple_of(8);
        let length = i32::try_from(padded).map_err(|_| failure("a header of more than 2 GiB"))?;
        let mut start = Vec::with_capacity(8 + padded);
        start.extend_from_slice(&CONTINUATION);
        start.extend_from_slice(&length.to_le_bytes());
        start.extend_from_slice(&data.header);
        start.resize(8 + padded, 0);
        for mut bytes in [Buffer::from_vec(start), Buffer::from(data.body)] {
            if let Some(batch) = self.0.decode(&mut bytes).map_err(|e| failure(&e.to_string()))? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }
}

fn failure(what: &str) -> Failure {
    Failure::new(ExitCode::Machine, format!("rows from the cluster cannot be read: {what}"))
}
