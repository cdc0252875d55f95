//! Extended regular expressions, matched by the functions of the C library that `pgrep -f` calls
//! and in the locale that it takes, so that a pattern means here what it means there.

use memchr::memmem;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

/// A compiled extended regular expression (regex(7)).
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

/// The locale that the environment names, in which pgrep works too. It decides whether `é` is one
/// character, and what `[[:alpha:]]` and `[a-z]` hold.
struct Locale(libc::locale_t);

// SAFETY: the locale is never changed nor freed, and any thread may take it for its own.
#[expect(unsafe_code, reason = "the C library's type is a pointer")]
unsafe impl Sync for Locale {}
#[expect(unsafe_code, reason = "as above")]
unsafe impl Send for Locale {}

/// Runs `work` in the locale of the environment, or in the C locale if there is no such locale. The
/// locale is looked up for the first pattern only, which takes a tenth of a millisecond. It holds
/// for this thread and this call alone: nothing else that gpuctl says or reads is to depend on it.
#[expect(unsafe_code, reason = "no crate of ours has locales")]
fn in_locale<T>(work: impl FnOnce() -> T) -> T {
    static LOCALE: OnceLock<Option<Locale>> = OnceLock::new();
    let locale = LOCALE.get_or_init(|| {
        // All categories at once: pgrep takes no locale if one of them is missing.
        // SAFETY: the name is a C string, and no locale is passed that would be changed.
        let locale = unsafe { libc::newlocale(libc::LC_ALL_MASK, c"".as_ptr(), ptr::null_mut()) };
        (!locale.is_null()).then_some(Locale(locale))
    });
    let Some(Locale(locale)) = locale else { return work() };
    // SAFETY: `locale` is never freed, and `before` is what this thread had before.
    unsafe {
        let before = libc::uselocale(*locale);
        let result = work();
        libc::uselocale(before);
        result
    }
}

/// Longest pattern in bytes: more than any pattern for a command line needs. The C library itself
/// is limited only by the stack and the memory.
const LONGEST: usize = 1000;
/// Most copies of a part that a pattern's repetitions may ask for, which is likewise more than any
/// pattern needs.
const MOST_REPEATED: u64 = 10_000;

impl Pattern {
    /// Compiles a pattern. The error says what is wrong with it.
    #[expect(unsafe_code, reason = "no crate of ours speaks POSIX expressions")]
    pub fn new(text: &str) -> Result<Pattern, String> {
        if text.len() > LONGEST || repetitions(text) > MOST_REPEATED {
            return Err("it is too long, or repeats too much".to_owned());
        }
        let text = CString::new(text).map_err(|_| "it contains a NUL character".to_owned())?;
        let mut compiled = MaybeUninit::uninit();
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: both pointers are valid, and what is compiled is only used where that succeeded.
        let compile = || unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), flags) };
        let code = in_locale(compile);
        if code == 0 {
            // SAFETY: the expression has been compiled, and holds no pointer into itself, so it may
            // be moved.
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

    /// Reports whether the pattern is found anywhere in a text; never in one with a NUL character.
    pub fn matches_text(&self, text: &str) -> bool {
        CString::new(text).is_ok_and(|text| self.matches(&text))
    }

    /// Reports whether the pattern is found anywhere in a command line.
    #[expect(unsafe_code, reason = "as above")]
    pub fn matches(&self, line: &CStr) -> bool {
        // SAFETY: both are valid, and no places of what was found are asked for.
        let execute = || unsafe { libc::regexec(&self.0, line.as_ptr(), 0, ptr::null_mut(), 0) };
        in_locale(execute) == 0
    }
}

/// Returns for each expression the numbers of the lines that it may match: those that hold the
/// longest text that each match must hold, or all lines if there is no such text. An expression
/// without any line need not be compiled.
pub fn candidates(expressions: &[&str], lines: &[impl AsRef<CStr>]) -> Vec<BTreeSet<usize>> {
    // The lines are put into one text, so that one search serves them all; the NUL characters keep
    // them apart.
    let (mut text, mut ends) = (Vec::new(), Vec::new());
    for line in lines {
        text.extend_from_slice(line.as_ref().to_bytes_with_nul());
        ends.push(text.len());
    }
    let line_at = |place: usize| ends.partition_point(|end| *end <= place);
    let with = |literal: &str| memmem::find_iter(&text, literal).map(line_at).collect();
    let all = || (0..lines.len()).collect();
    expressions.iter().map(|text| longest_literal(text).map_or_else(all, with)).collect()
}

/// Returns the longest text that every line which the expression matches must hold. `None` if there
/// is none, or if finding it takes more analysis: for alternatives, and for characters of more than
/// one byte, whose meaning depends on the locale.
fn longest_literal(expression: &str) -> Option<&str> {
    let bytes = expression.as_bytes();
    if !expression.is_ascii() {
        return None;
    }
    let mut literals = Vec::new();
    let (mut begin, mut at, mut depth) = (0, 0, 0_usize);
    while at < bytes.len() {
        let was_outside = depth == 0;
        // `end`: where the literal text before this character ends; `next`: where another may
        // begin.
        let (end, next) = match bytes[at] {
            b'|' if was_outside => return None,
            b'|' | b'.' | b'^' | b'$' | b'}' => (at, at + 1),
            b'(' | b')' => {
                // A `)` that closes nothing stands for itself.
                depth = if bytes[at] == b'(' { depth + 1 } else { depth.saturating_sub(1) };
                (at, at + 1)
            }
            b'[' => (at, bracket_end(bytes, at)?),
            // An escape: `\.` and `\w` alike.
            b'\\' => (at, at + 2),
            // The character before this one may also be absent, or come again.
            b'*' | b'+' | b'?' => (at.saturating_sub(1), at + 1),
            b'{' => (at.saturating_sub(1), at + 1 + memchr::memchr(b'}', &bytes[at..])?),
            _ => {
                at += 1;
                continue;
            }
        };
        if was_outside {
            literals.extend(expression.get(begin..end));
        }
        (begin, at) = (next, next);
    }
    literals.extend(expression.get(begin..));
    // `max_by_key` returns the last of several equally long ones: expressions begin with what many
    // lines have, and end with what tells them apart.
    literals.into_iter().max_by_key(|literal| literal.len()).filter(|literal| !literal.is_empty())
}

/// Returns where the bracket expression that begins at `open` ends, or `None` if nothing closes it.
fn bracket_end(bytes: &[u8], open: usize) -> Option<usize> {
    let mut at = open + 1;
    at += usize::from(bytes.get(at) == Some(&b'^'));
    // A `]` in the first place is a member of the set.
    at += usize::from(bytes.get(at) == Some(&b']'));
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            (b']', _) => return Some(at + 1),
            // `[:alpha:]`, `[.].]` and `[=a=]`, which have a bracket of their own.
            (b'[', Some(kind @ (b':' | b'.' | b'='))) => {
                let name = at + 2;
                at = name + 2 + memmem::find(&bytes[name..], &[*kind, b']'])?;
            }
            _ => at += 1,
        }
    }
}

/// Returns how many copies of a part the C library may have to make: `(a{2,30}){9}` is 270.
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
        // SAFETY: the expression has been compiled, and nothing uses it any more.
        unsafe { libc::regfree(&mut self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn candidates_are_the_lines_with_the_longest_text_of_an_expression() {
        let lines = [c"serve voice", c"serve serve", c"", c"a voice on"];
        let expressions = ["^serve", "vo.ce", "[v]oice", "(a|b) v", "nobody", "voice", "a|voice"];
        let found = candidates(&expressions, &lines);
        let expected: [&[usize]; 7] =
            [&[0, 1], &[0, 3], &[0, 3], &[0, 3], &[], &[0, 3], &[0, 1, 2, 3]];
        assert_eq!(found, expected.map(|lines| lines.iter().copied().collect()));
        assert_eq!(candidates(&["", "a"], &[] as &[&CStr]), [BTreeSet::new(), BTreeSet::new()]);
    }

    #[test]
    fn what_is_looked_for_first_is_in_all_that_matches() {
        for (text, literal) in [
            ("python.*main.py.*8188", "python"),
            ("serve.*voice-1$", "voice-1"),
            ("serve.*--port=8188.*8189", "--port=8188"),
            ("port.*8188", "8188"),
            ("^serve", "serve"),
            ("colou?r", "colo"),
            ("abc*", "ab"),
            ("abc{0,2}d", "ab"),
            ("abcdef+?g", "abcde"),
            ("a{12345}", ""),
            ("a{2}bc", "bc"),
            ("vllm|ollama", ""),
            ("(vllm|ollama)", ""),
            ("(vllm|ollama) serve", " serve"),
            ("(long (and nested))+ab", "ab"),
            ("(ab)?c", "c"),
            ("((a)bcd)?e", "e"),
            ("ab)|c", ""),
            ("abc)?de", "abc"),
            (r"a(\)|bcd)e", "e"),
            (r"a\(|bcd", ""),
            (r"ma\.in\wpython", "python"),
            ("[v]llm", "llm"),
            ("[]vllm] a", " a"),
            ("[^]vllm]|a", ""),
            (r"[\]vllm", "vllm"),
            ("[[:alpha:]|([.].]x]?b", "b"),
            ("[[:alpha:]", ""),
            ("...", ""),
            ("", ""),
            ("codeé?server", ""),
        ] {
            assert_eq!(longest_literal(text).unwrap_or_default(), literal, "{text}");
        }
    }

    /// The few characters that expressions and lines are made of, so that many match.
    const ALPHABET: &str = "[abé]";

    fn expression() -> impl Strategy<Value = String> {
        let atom = prop_oneof![
            4 => ALPHABET,
            1 => r"\.|\^|\$|\\[.w(|a\[{]|[)}]",
            1 => r"\[\^?\]?[ab(|\\]{1,2}(\[:alpha:\]|\[\.\]\.\]|\[=a=\])?\]",
        ];
        let whole = atom.prop_recursive(4, 24, 4, |inner| {
            let two = (inner.clone(), inner.clone());
            prop_oneof![
                3 => prop::collection::vec(inner.clone(), 1..5).prop_map(|parts| parts.concat()),
                1 => two.clone().prop_map(|(a, b)| format!("{a}|{b}")),
                2 => two.prop_map(|(a, b)| format!("(({a}){b}|{a})")),
                1 => (inner, r"[*+?]|\{[0-2](,2?)?\}").prop_map(|(inner, times)| inner + &times),
            ]
        });
        prop_oneof![4 => whole, 1 => r"[abé().*+?|\[\]{}^$\\:,1-]{0,8}"]
    }

    proptest! {
        #[test]
        fn each_line_that_an_expression_matches_is_among_its_candidates(
            expressions in prop::collection::vec(expression(), 1..9),
            lines in prop::collection::vec(r"[abé.(|)w\[\]{}\\]{0,8}", 1..20),
        ) {
            let lines: Vec<CString> =
                lines.into_iter().map(|line| CString::new(line).expect("no NUL")).collect();
            let expressions: Vec<&str> = expressions.iter().map(String::as_str).collect();
            for (text, found) in expressions.iter().zip(candidates(&expressions, &lines)) {
                let Ok(pattern) = Pattern::new(text) else { continue };
                for (number, line) in lines.iter().enumerate() {
                    prop_assert!(!pattern.matches(line) || found.contains(&number), "{text}: {line:?}");
                }
            }
        }
    }
}
