//! Pages of `docs/`: their sections, and the tables and fenced blocks in them.

use std::fs;
use std::path::{Path, PathBuf};

/// A page of `docs/`, divided at its headings.
pub struct Page {
    pub name: String,
    pub sections: Vec<Section>,
}

/// The part of a page between two headings, of whatever level.
#[derive(Default)]
pub struct Section {
    pub title: String,
    /// The fenced blocks: the language and the text of each.
    blocks: Vec<(String, String)>,
    prose: String,
}

/// Returns the root folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

impl Page {
    /// Reads all pages of `docs/`.
    pub fn all() -> Vec<Page> {
        let entries = fs::read_dir(repository().join("docs")).unwrap();
        let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        let is_page = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "md");
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.iter().filter(is_page).map(|path| Page::read(&name(path))).collect()
    }

    /// Reads a page, given the name of its file.
    pub fn read(name: &str) -> Page {
        let text = fs::read_to_string(repository().join("docs").join(name)).unwrap();
        let mut sections = vec![Section::default()];
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let section = sections.last_mut().unwrap();
            if let Some(language) = line.strip_prefix("```") {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                section.blocks.push((language.to_owned(), block.join("\n") + "\n"));
            } else if line.starts_with('#') {
                let title = line.trim_start_matches('#').trim().to_owned();
                sections.push(Section { title, ..Section::default() });
            } else {
                section.prose.push_str(line);
                section.prose.push('\n');
            }
        }
        Page { name: name.to_owned(), sections }
    }

    /// Returns the targets of the page's links within the repository, as they are written.
    pub fn links(&self) -> Vec<String> {
        let links = self.sections.iter().flat_map(|section| section.prose.split("](").skip(1));
        let targets = links.map(|rest| rest.split(')').next().unwrap().to_owned());
        targets.filter(|target| !target.contains("://")).collect()
    }
}

impl Section {
    /// Returns the text of all blocks in a language, one after another.
    pub fn text_of(&self, language: &str) -> String {
        let blocks = self.blocks.iter().filter(|(of, _)| of == language);
        blocks.map(|(_, text)| text.as_str()).collect()
    }

    /// Returns the rows of the section's tables without the header rows, each as its cells.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let lines: Vec<&str> = self.prose.lines().collect();
        let rows = lines.iter().enumerate().filter(|(index, line)| {
            let is_head = lines.get(index + 1).is_some_and(|next| next.starts_with("|---"));
            line.starts_with('|') && !line.starts_with("|---") && !is_head
        });
        rows.map(|(_, line)| cells(line)).collect()
    }
}

fn cells(row: &str) -> Vec<String> {
    // A bar in a cell is written `\|`.
    let row = row.trim_matches('|').replace("\\|", "\0");
    row.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
}
