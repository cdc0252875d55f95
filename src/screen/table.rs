//! A table that fits a screen: if there is not enough room, the least important columns are left
//! out, and then columns that may be cut are cut.

use super::layout::Text;
use super::{STRONG, Screen};

const GAP: usize = 2;

pub struct Column {
    pub title: &'static str,
    /// Whether the column holds figures, which are aligned to the right.
    pub is_figure: bool,
    /// Rank by which columns are left out if there is no room for all: the lowest first, and those
    /// of rank 0 never.
    pub rank: u8,
    /// Width to which the column may be cut before another is left out, or `None` if it is always
    /// as wide as its widest cell. If no more columns can be left out, it is cut further.
    pub at_least: Option<usize>,
}

pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Text>>,
}

impl Table {
    /// Returns the table without the column that has this title.
    pub fn without(mut self, title: &str) -> Table {
        if let Some(at) = self.columns.iter().position(|column| column.title == title) {
            self.columns.remove(at);
            self.rows.iter_mut().for_each(|row| drop(row.remove(at)));
        }
        self
    }

    /// Returns the line of titles, and then a line for each row.
    pub fn lines(&self, screen: &Screen) -> Vec<String> {
        let limit = screen.limit();
        let natural: Vec<usize> =
            (0..self.columns.len()).map(|index| self.natural_width(index)).collect();
        let least = |index: &usize| {
            self.columns[*index]
                .at_least
                .map_or(natural[*index], |least| least.min(natural[*index]))
        };
        let with_gaps = |shown: &[usize], width: &dyn Fn(&usize) -> usize| {
            shown.iter().map(width).sum::<usize>() + GAP * shown.len().saturating_sub(1)
        };
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        while with_gaps(&shown, &least) > limit {
            let ranked = shown.iter().filter(|index| self.columns[**index].rank > 0);
            let Some(goes) = ranked.min_by_key(|index| self.columns[**index].rank).copied() else {
                break;
            };
            shown.retain(|index| *index != goes);
        }
        let excess = with_gaps(&shown, &|index| natural[*index]).saturating_sub(limit);
        let width = |index: usize| match self.columns[index].at_least {
            Some(_) => natural[index].saturating_sub(excess).max(1),
            None => natural[index],
        };
        let line = |cells: &dyn Fn(usize) -> Text| {
            let cells = shown.iter().map(|index| {
                let cell = cells(*index).cut(width(*index), screen);
                let pad = " ".repeat(width(*index) - cell.width());
                let text = cell.on(screen);
                let is_last = Some(index) == shown.last();
                match self.columns[*index].is_figure {
                    true => format!("{pad}{text}"),
                    false if is_last => text,
                    false => format!("{text}{pad}"),
                }
            });
            cells.collect::<Vec<_>>().join(&" ".repeat(GAP))
        };
        let titles = line(&|index| Text::styled(STRONG, self.columns[index].title));
        let rows = self.rows.iter().map(|row| line(&|index| row[index].clone()));
        std::iter::once(titles).chain(rows).collect()
    }

    /// Returns the width in columns that the table has if there is room for all of it.
    pub fn width(&self) -> usize {
        let widths = (0..self.columns.len()).map(|index| self.natural_width(index));
        widths.sum::<usize>() + GAP * self.columns.len().saturating_sub(1)
    }

    fn natural_width(&self, index: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[index].width());
        cells.max().unwrap_or(0).max(self.columns[index].title.len())
    }
}
