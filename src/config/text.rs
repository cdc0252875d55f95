//! Parses the text of a configuration file, and finds the line of a key in it, so that every
//! complaint names the file, the line and the key.

use super::file::{ConfigFile, StrictTable};
use super::words;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::redact::mask;
use std::path::Path;

/// Text of a configuration file, with the path that complaints about it name.
pub struct ConfigText<'a> {
    pub path: &'a Path,
    pub text: &'a str,
}

/// Reports whether a configuration of this name is read as JSON. Any other is read as TOML.
pub fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

impl ConfigText<'_> {
    /// Parses the text as JSON or TOML, depending on the file's name.
    pub fn parse(&self) -> Result<ConfigFile> {
        if is_json(self.path) {
            let mut reader = serde_json::Deserializer::from_str(self.text);
            let StrictTable(file) = serde_path_to_error::deserialize(&mut reader)
                .map_err(|e| self.unparsable(&e, Some(e.inner().line())))?;
            reader.end().map_err(|e| self.failure(Some(e.line()), &e.to_string()))?;
            Ok(file)
        } else {
            let line = |error: &toml::de::Error| Some(self.line_at(error.span()?.start));
            let reader = toml::Deserializer::parse(self.text)
                .map_err(|e| self.failure(line(&e), e.message()))?;
            serde_path_to_error::deserialize(reader)
                .map_err(|e| self.unparsable(&e, line(e.inner())))
        }
    }

    fn unparsable<E: std::fmt::Display>(
        &self,
        error: &serde_path_to_error::Error<E>,
        line: Option<usize>,
    ) -> Failure {
        let text = error.inner().to_string();
        // The messages of both parsers begin or end with the position, which the failure names
        // anyway.
        let problem = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let problem = problem.split(" at line ").next().unwrap_or(problem);
        let key = error.path().to_string();
        let mut told = words::told(problem);
        // The value of a variable or a header may be a secret, so it is never shown, whatever its
        // type.
        if [".env.", ".headers."].iter().any(|secret| format!("{key}.").contains(secret)) {
            told = told.without_value();
        }
        let problem = if key == "." { told.problem } else { format!("{key}: {}", told.problem) };
        let failure = self.failure(line, &problem);
        told.hints.iter().fold(failure, |failure, hint| failure.hint(mask(hint)))
    }

    /// Returns the failure for a key whose value has the right type but is not acceptable.
    pub fn complaint(&self, key: &[&str], problem: &str) -> Failure {
        self.failure(self.line_of(key), &format!("{}: {problem}", key.join(".")))
    }

    fn failure(&self, line: Option<usize>, problem: &str) -> Failure {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        Failure::new(
            Code::Config,
            format!("configuration {}{line}: {}", self.path.display(), mask(problem)),
        )
    }

    fn line_at(&self, offset: usize) -> usize {
        let offset = offset.min(self.text.len());
        1 + self.text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count()
    }

    /// Returns the line of a key, or of the nearest table above it that the file contains. `None`
    /// if it contains none of these.
    fn line_of(&self, key: &[&str]) -> Option<usize> {
        if is_json(self.path) {
            let mut offset = None;
            for part in key {
                let from = offset.unwrap_or(0);
                let Some(found) = self.text[from..].find(&format!("\"{part}\"")) else {
                    break;
                };
                offset = Some(from + found);
            }
            return Some(self.line_at(offset?));
        }
        let document = toml::de::DeTable::parse(self.text).ok()?;
        let mut table = document.get_ref();
        let mut offset = None;
        for part in key {
            let Some((name, value)) = table.get_key_value(*part) else {
                break;
            };
            offset = Some(name.span().start);
            let toml::de::DeValue::Table(inner) = value.get_ref() else {
                break;
            };
            table = inner;
        }
        Some(self.line_at(offset?))
    }
}
