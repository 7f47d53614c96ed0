//! Columns of text, as wide as their contents.

use comfy_table::{Cell, ContentArrangement, presets};

/// Columns that always show, further ones that show on demand, and the rows.
#[derive(Debug)]
pub(super) struct Table {
    columns: &'static [&'static str],
    wide: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Each row has a value for every column of both kinds.
    pub(super) fn new(
        columns: &'static [&'static str],
        wide: &'static [&'static str],
        rows: Vec<Vec<String>>,
    ) -> Self {
        Self { columns, wide, rows }
    }

    pub(super) fn text(&self, wide: bool) -> String {
        let count = self.columns.len() + if wide { self.wide.len() } else { 0 };
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.columns.iter().chain(self.wide).take(count));
        for row in &self.rows {
            table.add_row(row.iter().take(count).map(Cell::new));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}
