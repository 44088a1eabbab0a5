//! Aligned tables.

use super::style::{Colour, Styles};

/// Space between columns.
const GAP: usize = 3;

/// One cell.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    colour: Option<Colour>,
    right: bool,
}

impl Cell {
    /// Text; `-` when empty, so that columns can be counted. Control characters are shown, never sent to the terminal.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text: String = text.into();
        let text = if text.is_empty() { "-".to_owned() } else { printable(&text) };
        Self { text, colour: None, right: false }
    }

    /// Text in a colour.
    pub(crate) fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Self { colour: Some(colour), ..Self::new(text) }
    }

    /// A figure, aligned to the right.
    pub(crate) fn figure(text: impl Into<String>) -> Self {
        Self { right: true, ..Self::new(text) }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// Rows under headings.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Lines of text; columns are as wide as their widest cell, or as `at_least` says.
    pub(crate) fn render(&self, styles: Styles) -> String {
        self.render_with(styles, &mut Vec::new(), true)
    }

    /// As [`Table::render`], for tables that come row by row: `widths` only ever grow, and the headings are optional.
    pub(crate) fn render_with(
        &self,
        styles: Styles,
        widths: &mut Vec<usize>,
        headings: bool,
    ) -> String {
        widths.resize(self.headings.len().max(widths.len()), 0);
        for (width, heading) in widths.iter_mut().zip(&self.headings) {
            *width = (*width).max(heading.chars().count());
        }
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let mut out = String::new();
        if headings {
            let right: Vec<bool> = (0..self.headings.len())
                .map(|column| self.rows.iter().any(|row| row.get(column).is_some_and(|c| c.right)))
                .collect();
            let cells: Vec<Cell> = self
                .headings
                .iter()
                .zip(right)
                .map(|(text, right)| Cell {
                    text: (*text).to_owned(),
                    colour: Some(Colour::Strong),
                    right,
                })
                .collect();
            push_line(&mut out, &cells, widths, styles);
        }
        for row in &self.rows {
            push_line(&mut out, row, widths, styles);
        }
        out
    }
}

fn push_line(out: &mut String, cells: &[Cell], widths: &[usize], styles: Styles) {
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let fill = " ".repeat(width.saturating_sub(cell.text.chars().count()));
        let text = match cell.colour {
            Some(colour) => styles.paint(colour, &cell.text),
            None => cell.text.clone(),
        };
        let last = index + 1 == cells.len();
        if cell.right {
            out.push_str(&fill);
            out.push_str(&text);
        } else {
            out.push_str(&text);
            if !last {
                out.push_str(&fill);
            }
        }
        if !last {
            out.push_str(&" ".repeat(GAP));
        }
    }
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

/// Control characters escaped: names and messages may come from a hostile image.
pub(super) fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", "PHASE", "SIZE"]);
        table.row(vec!["a".into(), Cell::coloured("Running", Colour::Good), Cell::figure("1")]);
        table.row(vec!["longer-é".into(), "".into(), Cell::figure("1000")]);
        table
    }

    #[test]
    fn columns_are_aligned_and_no_line_ends_in_spaces() {
        assert_eq!(
            sample().render(Styles::plain()),
            "NAME       PHASE     SIZE\na          Running      1\nlonger-é   -         1000\n"
        );
    }

    #[test]
    fn colours_do_not_disturb_the_alignment() {
        let coloured = sample().render(Styles::coloured());
        assert!(coloured.contains("\x1b[32mRunning\x1b[0m"));
        let mut stripped = coloured;
        for code in ["\x1b[32m", "\x1b[1m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, sample().render(Styles::plain()));
    }

    #[test]
    fn a_hostile_text_cannot_command_the_terminal() {
        let mut table = Table::new(&["X"]);
        table.row(vec!["\x1b]0;title\x07\nb".into()]);
        let text = table.render(Styles::plain());
        assert_eq!(text, "X\n\\u{1b}]0;title\\u{7}\\nb\n");
    }
}
