//! Which tables a query is about, before any of them is built.

use crate::failure::Failure;
use datafusion::common::TableReference;
use datafusion::common::config::Dialect;
use datafusion::execution::context::SessionState;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use smelt_schemas::ExitCode;
use std::collections::BTreeMap;

/// The tables that a query names, itself or through views.
#[derive(Debug, Default)]
pub(crate) struct Named {
    tables: Vec<TableReference>,
    /// Views among them, each behind those that it reads.
    pub views: Vec<String>,
    /// Every table is meant: the query asks which there are.
    pub all: bool,
}

impl Named {
    /// `views`: queries by name. `every_view`: they are checked, whether the query reads them or not.
    pub(crate) fn of(
        context: &SessionContext,
        sql: &str,
        views: &BTreeMap<String, String>,
        every_view: bool,
    ) -> Result<Self, Failure> {
        let state = context.state();
        let mut named = Self::default();
        let tables = tables(&state, sql).unwrap_or_default();
        let shows = sql.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("show"));
        named.all = shows || tables.iter().any(|t| t.schema() == Some("information_schema"));
        named.add(&state, tables, views, &mut Vec::new())?;
        // A view of our own over curves.
        if named.has(Some("smelt"), "expert_load") {
            named.tables.push(TableReference::partial("smelt", "metrics"));
        }
        if named.all || every_view {
            for name in views.keys() {
                named.add_view(&state, name, views, &mut Vec::new())?;
            }
        }
        Ok(named)
    }

    fn add(
        &mut self,
        state: &SessionState,
        tables: Vec<TableReference>,
        views: &BTreeMap<String, String>,
        open: &mut Vec<String>,
    ) -> Result<(), Failure> {
        for table in tables {
            if matches!(table.schema(), None | Some("public")) && views.contains_key(table.table()) {
                self.add_view(state, table.table(), views, open)?;
            }
            self.tables.push(table);
        }
        Ok(())
    }

    fn add_view(
        &mut self,
        state: &SessionState,
        name: &str,
        views: &BTreeMap<String, String>,
        open: &mut Vec<String>,
    ) -> Result<(), Failure> {
        if self.views.iter().any(|known| known == name) {
            return Ok(());
        }
        if open.iter().any(|known| known == name) {
            let circle = open.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let what = format!("view `{name}` reads itself, by way of {circle}");
            return Err(Failure::new(ExitCode::Pipeline, what));
        }
        open.push(name.to_owned());
        // A view that cannot be parsed is told when it is planned.
        self.add(state, tables(state, &views[name]).unwrap_or_default(), views, open)?;
        open.pop();
        self.views.push(name.to_owned());
        Ok(())
    }

    /// Whether this table is read.
    pub(crate) fn has(&self, schema: Option<&str>, table: &str) -> bool {
        let schema = schema.unwrap_or("public");
        self.tables.iter().any(|named| named.schema().unwrap_or("public") == schema && named.table() == table)
    }

    /// Whether a table of this job is read: `job`, or `job.port`.
    pub(crate) fn has_job(&self, base: &str) -> bool {
        self.has(None, base) || self.tables.iter().any(|named| named.schema() == Some(base))
    }

    /// Whether a table is read that many jobs have a part of.
    pub(crate) fn has_shared(&self) -> bool {
        ["drops", "metrics"].iter().any(|table| self.has(Some("smelt"), table))
    }

    /// Whether curves are read.
    pub(crate) fn has_curves(&self) -> bool {
        self.tables.iter().any(|named| named.table() == "metrics")
    }

    /// The first of the names that `is_it` holds of, as the query has it.
    pub(crate) fn find(&self, is_it: impl Fn(&TableReference) -> bool) -> Option<&TableReference> {
        self.tables.iter().find(|named| is_it(named))
    }
}

/// None if it cannot be parsed, which planning reports.
fn tables(state: &SessionState, sql: &str) -> Option<Vec<TableReference>> {
    let statement = state.sql_to_statement(sql, &dialect(sql)).ok()?;
    state.resolve_table_references(&statement).ok()
}

/// JSON's operators are PostgreSQL's: elsewhere `a->>'k' = 'v'` would be `a->>('k' = 'v')`.
pub(crate) fn dialect(sql: &str) -> Dialect {
    if has_json_operator(sql) { Dialect::PostgreSQL } else { Dialect::default() }
}

/// Whether a query uses an operator on JSON. In a text or a comment it is none.
fn has_json_operator(sql: &str) -> bool {
    let is_operator = |token: &Token| {
        matches!(token, Token::Arrow | Token::LongArrow | Token::HashArrow | Token::HashLongArrow | Token::Question)
    };
    Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().is_ok_and(|tokens| tokens.iter().any(is_operator))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(sql: &str, views: &[(&str, &str)]) -> Result<Named, Failure> {
        let views = views.iter().map(|(name, sql)| ((*name).to_owned(), (*sql).to_owned())).collect();
        Named::of(&SessionContext::new(), sql, &views, false)
    }

    #[test]
    fn a_query_names_its_tables_wherever_they_stand() {
        let sql = "with x as (select 1) select * from clean join smelt.drops d on true where 1 in \
            (select n from a.documents union select m from public.b)";
        let named = named(sql, &[]).unwrap();
        assert!(named.has(None, "clean") && named.has(Some("smelt"), "drops") && named.has_shared() && !named.all);
        assert!(named.has_job("a") && named.has_job("b") && named.has_job("clean") && !named.has_job("c"));
        assert!(!named.has_curves() && !named.has(Some("smelt"), "jobs"));
    }

    #[test]
    fn every_table_is_meant_where_a_query_asks_which_there_are() {
        for (sql, all) in
            [("select table_name from information_schema.tables", true), ("SHOW tables", true), ("select 1", false)]
        {
            assert_eq!(named(sql, &[]).unwrap().all, all, "{sql}");
        }
    }

    #[test]
    fn a_view_names_what_it_reads_and_stands_behind_it() {
        let views = [("long", "select * from named"), ("named", "select * from a"), ("other", "select * from b")];
        let found = named("select * from long", &views).unwrap();
        assert_eq!(found.views, ["named", "long"]);
        assert!(found.has_job("a") && !found.has_job("b"));
        let circle = [("x", "select * from y"), ("y", "select * from x")];
        let error = named("select * from x", &circle).unwrap_err();
        assert_eq!(error.to_string(), "view `x` reads itself, by way of `x`, `y`");
    }

    #[test]
    fn an_operator_on_json_is_known_from_a_text_that_holds_one() {
        for sql in ["select a->'k' from t", "select a->>'k' from t", "select 1 from t where a ? 'k'"] {
            assert!(has_json_operator(sql), "{sql}");
        }
        for sql in ["select 'why?' from t", "select '->' from t -- a->>'k'", "select \"a?\" > -1 from t", "select '"] {
            assert!(!has_json_operator(sql), "{sql}");
        }
    }
}
