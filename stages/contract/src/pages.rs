//! Random access to the rows of a table: a page of them is read when it is used.

use crate::error::Error;
use crate::input::Artifact;
use crate::kinds::{Table, Tokens};
use crate::parallel::in_parallel;
use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt32Array};
use arrow::datatypes::UInt32Type;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use smelt_store::LocalFile;
use std::fmt;
use std::fs::File;
use std::marker::PhantomData;

/// Rows of a page in a file that does not say where its pages begin.
const ROWS_WITHOUT_INDEX: usize = 4096;

/// The rows of a port by pages: those that one column has together in a page of its file, so that a page is read by
/// reading just this. All files are on this machine and verified; in memory are the places of the pages alone, 24 bytes
/// each.
pub struct Pages<K> {
    files: Vec<PagedFile>,
    pages: Vec<Page>,
    kind: PhantomData<fn() -> K>,
}

struct PagedFile {
    local: LocalFile,
    metadata: ArrowReaderMetadata,
    /// In messages.
    what: String,
}

#[derive(Clone, Copy)]
struct Page {
    file: u32,
    group: u32,
    /// First row, in its row group.
    first: usize,
    rows: usize,
}

impl<K> fmt::Debug for Pages<K> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Pages({} in {} files)", self.pages.len(), self.files.len())
    }
}

impl<K: Table> Artifact<K> {
    /// Its rows by the pages of the column `by`. Reads every file once, to verify it, `threads` of them at a time.
    pub fn pages(&self, by: &str, threads: usize) -> Result<Pages<K>, Error> {
        let files = in_parallel(threads, self.files().len(), |i| {
            PagedFile::open(self.fetch(i)?, format!("`{}` of {}", self.files()[i].path, self.label()))
        })?;
        Pages::of(files, by)
    }
}

impl PagedFile {
    fn open(local: LocalFile, what: String) -> Result<Self, Error> {
        let options = ArrowReaderOptions::new()
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&open(&local, &what)?, options).map_err(|e| unreadable(&what, &e))?;
        Ok(Self { local, metadata, what })
    }
}

impl<K: Table> Pages<K> {
    fn of(files: Vec<PagedFile>, by: &str) -> Result<Self, Error> {
        let mut pages = Vec::new();
        for (i, file) in files.iter().enumerate() {
            let found = pages_of(file.metadata.metadata(), by)
                .ok_or_else(|| Error::data(format!("{}: column `{by}` is missing", file.what)))?;
            pages.extend(found.into_iter().map(|(group, first, rows)| Page { file: i as u32, group, first, rows }));
        }
        Ok(Self { files, pages, kind: PhantomData })
    }

    pub fn len(&self) -> usize {
        self.pages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Rows of page `page`.
    pub fn rows(&self, page: usize) -> usize {
        self.pages[page].rows
    }

    /// What one column has in page `page`.
    fn column(&self, page: usize, name: &str) -> Result<ArrayRef, Error> {
        let Page { file, group, first, rows } = self.pages[page];
        let PagedFile { local, metadata, what } = &self.files[file as usize];
        // a file of its own for each read: copies of a handle share one position, which two threads would both move
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(open(local, what)?, metadata.clone());
        let column_alone = ProjectionMask::columns(builder.parquet_schema(), [name]);
        let page_alone = RowSelection::from(vec![RowSelector::skip(first), RowSelector::select(rows)]);
        let builder = builder.with_row_groups(vec![group as usize]).with_projection(column_alone);
        let batches = builder.with_row_selection(page_alone).with_batch_size(rows).build();
        let found = batches.map_err(|e| unreadable(what, &e))?.next().transpose();
        let found = found.map_err(|e| Error::of_table(&format!("{what} is no readable Parquet"), &e))?;
        match found.as_ref().and_then(|batch| batch.column_by_name(name)) {
            Some(column) if column.len() == rows => Ok(column.clone()),
            column => {
                let found = column.map_or(0, |column| column.len());
                let says =
                    format!("row group {group} says that it has {rows} rows from row {first} on, but has {found}");
                Err(Error::data(format!("{what}: {says}")))
            }
        }
    }
}

impl Pages<Tokens> {
    /// The ids of each document of page `page`.
    pub fn ids(&self, page: usize) -> Result<Ids, Error> {
        let column = self.column(page, "ids")?;
        let wanted = Tokens::schema().field_with_name("ids").map(|field| field.data_type().clone());
        let lists = column.as_list_opt::<i32>().filter(|lists| lists.null_count() == 0).cloned();
        let ids = lists.as_ref().and_then(|lists| lists.values().as_primitive_opt::<UInt32Type>().cloned());
        match (lists, ids) {
            (Some(lists), Some(ids)) if ids.null_count() == 0 => Ok(Ids { lists, ids }),
            _ => {
                let what = &self.files[self.pages[page].file as usize].what;
                let (nulls, found) = (column.null_count(), column.data_type());
                let wanted = wanted.map_or_else(|e| e.to_string(), |wanted| wanted.to_string());
                Err(Error::data(match nulls {
                    0 => format!("{what}: column `ids` has type {found}, expected {wanted}"),
                    _ => format!("{what}: column `ids` has {nulls} nulls, expected none"),
                }))
            }
        }
    }
}

/// The ids of some documents.
#[derive(Clone, Debug)]
pub struct Ids {
    lists: ListArray,
    ids: UInt32Array,
}

impl Ids {
    /// Of each document, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let range = |pair: &[i32]| pair[0] as usize..pair[1] as usize;
        self.lists.value_offsets().windows(2).map(move |pair| &self.ids.values()[range(pair)])
    }

    /// How many there are in all.
    pub fn count(&self) -> usize {
        self.iter().map(<[u32]>::len).sum()
    }
}

fn open(local: &LocalFile, what: &str) -> Result<File, Error> {
    File::open(local.path()).map_err(|e| Error::machine(format!("{what}: {e}")))
}

fn unreadable(what: &str, error: &ParquetError) -> Error {
    Error::of_table(&format!("{what} is no readable Parquet"), error)
}

/// Row group, first row in it and number of rows of every page of a column; none if there is no such column.
fn pages_of(metadata: &ParquetMetaData, column: &str) -> Option<Vec<(u32, usize, usize)>> {
    let leaves = metadata.file_metadata().schema_descr().columns();
    let leaf = leaves.iter().position(|leaf| leaf.path().parts().first().is_some_and(|root| root == column))?;
    let mut pages = Vec::new();
    for (group, of_group) in metadata.row_groups().iter().enumerate() {
        let rows = usize::try_from(of_group.num_rows()).unwrap_or_default();
        let mut starts: Vec<usize> = match metadata.offset_index() {
            Some(index) => {
                let pages = index[group][leaf].page_locations().iter();
                pages.filter_map(|page| usize::try_from(page.first_row_index).ok()).collect()
            }
            None => (0..rows).step_by(ROWS_WITHOUT_INDEX).collect(),
        };
        starts.push(rows);
        let ranges = starts.windows(2).filter(|pair| pair[0] < pair[1]);
        pages.extend(ranges.map(|pair| (group as u32, pair[0], pair[1] - pair[0])));
    }
    Some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::TokenRow;
    use crate::shard::properties;
    use arrow::array::{RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterPropertiesBuilder;
    use smelt_store::Store;
    use std::io::Write;
    use std::sync::Arc;

    fn document(i: u32) -> TokenRow {
        let ids = (0..i % 7 * 100).map(|k| i * 1000 + k).collect();
        TokenRow { document: i.to_string(), source: "s".into(), language: None, bytes: 0, ids }
    }

    /// Through a store, as a file of an artifact comes.
    fn stored(name: &str, batch: &RecordBatch, properties: WriterPropertiesBuilder) -> PagedFile {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.build())).unwrap();
        writer.write(batch).unwrap();
        let store = Store::open(&format!("memory:{name}")).unwrap();
        let mut upload = store.upload(name).unwrap();
        upload.write_all(&writer.into_inner().unwrap()).unwrap();
        let record = upload.finish(name).unwrap();
        let local = store.fetch(name, &record, &std::env::temp_dir()).unwrap();
        PagedFile::open(local, format!("`{name}`")).unwrap()
    }

    fn batch(rows: &[TokenRow]) -> RecordBatch {
        RecordBatch::try_new(Tokens::schema(), Tokens::columns(rows)).unwrap()
    }

    #[test]
    fn pages_in_any_order_give_the_rows_of_all_files() {
        let rows: Vec<TokenRow> = (0..9000).map(document).collect();
        let ours = || properties::<Tokens>().set_max_row_group_row_count(Some(3000));
        let files = [
            stored("pages", &batch(&rows[..5000]), ours()),
            stored("empty", &batch(&[]), ours()),
            stored("no-index", &batch(&rows[5000..]), ours().set_offset_index_disabled(true)),
        ];
        let pages = Pages::<Tokens>::of(files.into(), "ids").unwrap();
        let (with, without) = (pages.len() - 2, 2); // row groups of 3000 and 1000 rows
        assert!(with > 50, "{pages:?}");
        let mut starts: Vec<usize> = Vec::new();
        let mut end = 0;
        for page in 0..pages.len() {
            starts.push(end);
            end += pages.rows(page);
        }
        assert_eq!((end, pages.rows(with), pages.rows(with + without - 1)), (9000, 3000, 1000));
        for page in (0..pages.len()).rev().step_by(3).chain(0..pages.len()) {
            let ids = pages.ids(page).unwrap();
            let expected: Vec<&[u32]> =
                rows[starts[page]..][..pages.rows(page)].iter().map(|row| &row.ids[..]).collect();
            assert_eq!(ids.iter().collect::<Vec<_>>(), expected, "page {page}");
            assert_eq!(ids.count(), expected.iter().map(|ids| ids.len()).sum::<usize>());
        }
    }

    #[test]
    fn a_column_that_is_missing_or_of_another_type_is_named_with_its_file() {
        let texts = Arc::new(StringArray::from(vec!["a"])) as ArrayRef;
        let other = RecordBatch::try_from_iter([("id", texts.clone())]).unwrap();
        let error = Pages::<Tokens>::of(vec![stored("other", &other, properties::<Tokens>())], "ids");
        assert_eq!(error.unwrap_err().to_string(), "`other`: column `ids` is missing");
        let other = RecordBatch::try_from_iter([("ids", texts)]).unwrap();
        let pages = Pages::<Tokens>::of(vec![stored("texts", &other, properties::<Tokens>())], "ids").unwrap();
        assert_eq!(
            pages.ids(0).unwrap_err().to_string(),
            "`texts`: column `ids` has type Utf8, expected List(non-null UInt32)"
        );
    }
}
