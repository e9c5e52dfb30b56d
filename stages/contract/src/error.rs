//! Why a stage stopped, by who has to act.

use smelt_schemas::{ExitCode, Fault, Problem};
use std::{fmt, io};

/// What, where, with which values; and the one thing to do.
#[derive(Debug)]
pub struct Error {
    code: ExitCode,
    problem: Problem,
}

impl Error {
    fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, problem: Problem { message: message.into(), ..Problem::default() } }
    }
    /// The config is wrong. `field`: JSON pointer into it, such as `/rules/min_words`.
    pub fn config(field: &str, message: impl Into<String>) -> Self {
        let mut error = Self::new(ExitCode::Pipeline, message);
        error.problem.field = Some(field.into());
        error
    }
    /// The data are wrong.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Data, message)
    }
    /// A passing trouble: trying again may help.
    pub fn again(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Again, message)
    }
    /// The machine is wrong.
    pub fn machine(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Machine, message)
    }
    /// A bug of ours.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Bug, message)
    }
    /// A library's error as a stage's: its text, place, hint and exit code.
    pub fn of(fault: &(impl Fault + ?Sized)) -> Self {
        Self { code: fault.exit_code(), problem: Problem::of(fault) }
    }
    /// A library's error about what the config says in `field`.
    pub fn in_config(field: &str, fault: &(impl Fault + ?Sized)) -> Self {
        Self { code: ExitCode::Pipeline, problem: Problem::of(fault) }.field(field)
    }
    /// What Parquet or Arrow reports of `what`, with the exit code of its cause.
    pub(crate) fn of_table(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let found = from_table(error);
        Self { problem: Problem { message: format!("{what}: {}", found.problem.message), ..found.problem }, ..found }
    }
    /// Names the field of the config that is wrong, as a JSON pointer.
    #[must_use]
    pub fn field(mut self, field: &str) -> Self {
        self.problem.field = Some(field.into());
        self
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.problem.hint = Some(hint.into());
        self
    }
    pub fn exit_code(&self) -> ExitCode {
        self.code
    }
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Error {}

impl From<smelt_store::Error> for Error {
    fn from(error: smelt_store::Error) -> Self {
        Self::of(&error)
    }
}

/// Parquet does not say who has to act. Its cause does: a store's error that an `Upload` gave to the writer, or a
/// failed read. Without a cause the bytes are not what they should be.
fn from_table(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(store) = e.downcast_ref::<smelt_store::Error>() {
            return Error::of(store);
        }
        cause = match e.downcast_ref::<io::Error>() {
            Some(failed) => match failed.get_ref() {
                Some(inner) => Some(inner),
                None if is_of_the_bytes(failed) => None,
                None => return Error::machine(error.to_string()),
            },
            None => e.source(),
        };
    }
    Error::data(error.to_string())
}

/// A file that ends too early, or holds what cannot be unpacked, was read well.
fn is_of_the_bytes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}

impl From<parquet::errors::ParquetError> for Error {
    fn from(error: parquet::errors::ParquetError) -> Self {
        from_table(&error)
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        from_table(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
    use parquet::arrow::ArrowWriter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use std::sync::Arc;

    fn batch() -> RecordBatch {
        let column = Arc::new(UInt64Array::from_iter_values((0..10_000).map(|i| i * i))) as ArrayRef;
        RecordBatch::try_from_iter([("n", column)]).unwrap()
    }

    /// Takes a few bytes, then fails as a store's upload does.
    struct FullDisk(usize);

    impl io::Write for FullDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let full = || smelt_store::Error::Full {
                store: "artifacts".into(),
                what: "writing `k`".into(),
                source: Box::new(io::Error::from(io::ErrorKind::StorageFull)),
            };
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::other(full()))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fills_up_under_parquet_is_the_machines_fault() {
        let write = || -> Result<(), Error> {
            let mut writer = ArrowWriter::try_new(FullDisk(100), batch().schema(), None)?;
            writer.write(&batch())?;
            writer.close()?;
            Ok(())
        };
        let error = write().unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Machine, "{error}");
        assert_eq!(error.to_string(), "store artifacts is full: writing `k` failed");
        assert!(error.problem().hint.is_some());
    }

    #[test]
    fn parquet_that_ends_too_early_is_the_datas_fault() {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch().schema(), None).unwrap();
        writer.write(&batch()).unwrap();
        let whole = writer.into_inner().unwrap();
        let read = |bytes: Vec<u8>| -> Result<usize, Error> {
            let batches = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes))?.build()?;
            batches.map(|batch| Ok(batch?.num_rows())).sum()
        };
        assert_eq!(read(whole.clone()).unwrap(), 10_000);
        for cut in [0, 4, whole.len() / 2, whole.len() - 1] {
            let error = read(whole[..cut].to_vec()).unwrap_err();
            assert_eq!(error.exit_code(), ExitCode::Data, "cut at {cut}: {error}");
        }
        let short = parquet::errors::ParquetError::from(io::Error::from(io::ErrorKind::UnexpectedEof));
        assert_eq!(Error::from(short).exit_code(), ExitCode::Data);
        let denied = parquet::errors::ParquetError::from(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(Error::from(denied).exit_code(), ExitCode::Machine);
    }
}
