//! Extended regular expressions by the C library's own functions, those that `pgrep -f` calls, so
//! that a pattern means here what it means there.

use aho_corasick::Input;
use aho_corasick::automaton::Automaton;
use aho_corasick::nfa::noncontiguous::NFA;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;

pub struct Pattern(libc::regex_t);

// SAFETY: regexec(3) may be called by several threads at once on one compiled expression, and no
// thread in particular has to free it.
#[expect(unsafe_code, reason = "the C library's type is a plain structure of pointers")]
unsafe impl Sync for Pattern {}
#[expect(unsafe_code, reason = "as above")]
unsafe impl Send for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pattern")
    }
}

/// More than any command line has to be told by. The C library's own limits are those of the
/// stack and of the memory.
const LONGEST: usize = 1000;
const MOST_REPEATED: u64 = 10_000;

impl Pattern {
    /// Compiles it, or says what is wrong with it.
    #[expect(unsafe_code, reason = "no crate of ours speaks POSIX expressions")]
    pub fn new(text: &str) -> Result<Pattern, String> {
        if text.len() > LONGEST || repetitions(text) > MOST_REPEATED {
            return Err("it is too long, or repeats too much".to_owned());
        }
        let text = CString::new(text).map_err(|_| "it holds a NUL character".to_owned())?;
        let mut compiled = MaybeUninit::uninit();
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: both pointers are valid, and what is compiled is only used where that succeeded.
        let code = unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), flags) };
        if code == 0 {
            // SAFETY: it has been compiled, and points to nothing in itself, so that it may be moved.
            return Ok(Pattern(unsafe { compiled.assume_init() }));
        }
        let mut why = [0_u8; 128];
        // SAFETY: no more than its length is written to the text, with a NUL at the end.
        unsafe {
            libc::regerror(code, ptr::null(), why.as_mut_ptr().cast::<c_char>(), why.len());
        }
        let why = CStr::from_bytes_until_nul(&why).unwrap_or_default();
        Err(why.to_string_lossy().into_owned())
    }

    /// The same in a text; in none that holds a NUL character.
    pub fn matches_text(&self, text: &str) -> bool {
        CString::new(text).is_ok_and(|text| self.matches(&text))
    }

    /// Whether it is found anywhere in a command line.
    #[expect(unsafe_code, reason = "as above")]
    pub fn matches(&self, line: &CStr) -> bool {
        // SAFETY: both are valid, and no places of what was found are asked for.
        unsafe { libc::regexec(&self.0, line.as_ptr(), 0, ptr::null_mut(), 0) == 0 }
    }
}

/// The lines, by number, that each of some expressions may match: those with the longest text that
/// it asks for. All are found in one pass, and an expression without any need not be compiled.
pub fn candidates(expressions: &[&str], lines: &[impl AsRef<CStr>]) -> Vec<BTreeSet<usize>> {
    let texts = expressions.iter().map(|expression| longest_literal(expression.as_bytes()));
    let automaton = NFA::new(texts).expect("fewer characters than 31 bits count");
    let mut found = vec![BTreeSet::new(); expressions.len()];
    for (number, line) in lines.iter().enumerate() {
        let places = automaton.try_find_overlapping_iter(Input::new(line.as_ref().to_bytes()));
        for place in places.expect("an automaton of the standard kind") {
            found[place.pattern().as_usize()].insert(number);
        }
    }
    found
}

/// The longest text that stands in an expression as it must stand in the line; none where that takes more to tell.
fn longest_literal(text: &[u8]) -> Vec<u8> {
    if text.iter().any(|byte| b"()|[]".contains(byte)) {
        return Vec::new();
    }
    let mut text = text.to_vec();
    // `\.` and `\w` alike.
    while let Some(at) = text.iter().position(|byte| *byte == b'\\') {
        text.splice(at..text.len().min(at + 2), *b".");
    }
    let mut literals = vec![Vec::new()];
    for part in text.split_inclusive(|byte| b".^$*+?{}".contains(byte)) {
        let (last, before) = part.split_last().unwrap_or((&b'.', &[]));
        let mut literal = before.to_vec();
        match last {
            // What may also be absent.
            b'*' | b'+' | b'?' | b'{' => drop(literal.pop()),
            // Bounds of a repetition.
            b'}' => literal.clear(),
            b'.' | b'^' | b'$' => {}
            _ => literal.push(*last),
        }
        literals.push(literal);
    }
    literals.into_iter().max_by_key(Vec::len).unwrap_or_default()
}

/// How many copies of a part the C library may have to make: `(a{2,30}){9}` is 270.
fn repetitions(text: &str) -> u64 {
    let bound = |after: &str| -> Option<u64> {
        after.split_once('}')?.0.split(',').filter_map(|bound| bound.trim().parse().ok()).max()
    };
    text.split('{')
        .skip(1)
        .filter_map(bound)
        .fold(1, |product, bound| product.saturating_mul(bound.max(1)))
}

impl Drop for Pattern {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        // SAFETY: it has been compiled, and nobody has it any more.
        unsafe { libc::regfree(&mut self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_the_lines_with_the_longest_text_of_an_expression() {
        let lines = [c"serve voice", c"serve serve", c"", c"a voice on"];
        let found = candidates(&["^serve", "vo.ce", "[v]oice", "nobody", "voice"], &lines);
        let expected: [&[usize]; 5] = [&[0, 1], &[0, 3], &[0, 1, 2, 3], &[], &[0, 3]];
        assert_eq!(found, expected.map(|lines| lines.iter().copied().collect()));
    }

    #[test]
    fn what_is_looked_for_first_is_in_all_that_matches() {
        for (text, literal) in [
            ("python.*main.py.*8188", "python"),
            ("serve.*voice-1$", "voice-1"),
            ("^serve", "serve"),
            ("colou?r", "colo"),
            ("abc*", "ab"),
            ("abc{0,2}d", "ab"),
            ("abcdef+?g", "abcde"),
            ("a{12345}", ""),
            ("vllm|ollama", ""),
            ("(ab)?c", ""),
            (r"ma\.in\wpython", "python"),
            ("[v]llm", ""),
            ("...", ""),
        ] {
            assert_eq!(longest_literal(text.as_bytes()), literal.as_bytes(), "{text}");
        }
    }
}
