//! What documents show: commands in fenced `sh` blocks, and their outputs in fences without a language.
//!
//! An output is shown by its lines, as in the real output they follow each other. `...` stands for anything: alone on a
//! line for any lines, else for any words of that line; a word that begins with it ends as shown. What every run measures
//! anew (see [`Word`]) may differ.

use std::ops::Range;

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The line of its first line in the document, from 1.
    pub line: usize,
    /// What stands after the opening fence, such as `sh`.
    pub language: String,
    pub text: String,
}

/// All fenced blocks of a document, in order.
pub fn blocks(document: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in document.lines().enumerate() {
        match (line.strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(language), None) => {
                open = Some(Block { line: index + 2, language: language.trim().into(), text: String::new() });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    found.extend(open);
    found
}

/// An `sh` block, and the outputs shown after it, before the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub commands: Block,
    pub outputs: Vec<Block>,
}

/// The commands of a document, in order.
///
/// # Panics
/// If an output is shown before any command: nobody could tell what prints it.
pub fn steps(document: &str) -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    for block in blocks(document) {
        match block.language.as_str() {
            "sh" => found.push(Step { commands: block, outputs: Vec::new() }),
            "" => {
                let step = found.last_mut();
                step.unwrap_or_else(|| panic!("line {}: output of no command", block.line))
                    .outputs
                    .push(block);
            }
            _ => {}
        }
    }
    found
}

impl Step {
    /// Targets of `make` that its commands name.
    pub fn make_targets(&self) -> Vec<&str> {
        let lines = self.commands.text.lines();
        let arguments = lines.filter_map(|line| line.trim().strip_prefix("make "));
        arguments.flat_map(|text| text.split('#').next().unwrap_or("").split_whitespace()).collect()
    }

    /// Each output is printed, in order; else the first line that is not, and what there was.
    pub fn check(&self, printed: &str) -> Result<(), String> {
        let printed: Vec<Vec<Word>> = printed.lines().map(words).filter(|line| !line.is_empty()).collect();
        let mut from = 0;
        for output in &self.outputs {
            from += find(output, &printed[from..])?.end;
        }
        Ok(())
    }
}

/// Where the lines of `output` stand in what was printed.
fn find(output: &Block, printed: &[Vec<Word>]) -> Result<Range<usize>, String> {
    let lines: Vec<(usize, Vec<Word>)> =
        output.text.lines().enumerate().map(|(i, line)| (output.line + i, words(line))).collect();
    let lines: Vec<_> = lines.into_iter().filter(|(_, line)| !line.is_empty()).collect();
    let (mut begin, mut end) = (None, 0);
    for run in lines.split(|(_, line)| *line == [Word::Gap]) {
        let Some((number, first)) = run.first() else { continue };
        let fits = |at: &usize| {
            let there = printed[*at..].iter();
            run.iter().zip(there).filter(|((_, line), there)| same(line, there)).count() == run.len()
        };
        let Some(at) = (end..printed.len()).find(fits) else {
            let first: Vec<String> = first.iter().map(Word::to_string).collect();
            return Err(format!(
                "line {number} and the {} after it are not printed: {}",
                run.len() - 1,
                first.join(" ")
            ));
        };
        begin.get_or_insert(at);
        end = at + run.len();
    }
    Ok(begin.unwrap_or(0)..end)
}

/// A word of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Plain(String),
    /// `...`
    Gap,
    /// `...END`
    Ending(String),
    /// A time, a size, a count of something with a unit, a digest: something else at each run.
    Measured,
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(text) => text,
            Self::Gap => "...",
            Self::Ending(end) => return write!(f, "...{end}"),
            Self::Measured => "(measured)",
        })
    }
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "s", "ms", "files"];
/// Hexadecimal digits from so many on are a digest or an etag.
const DIGEST_DIGITS: usize = 16;

fn words(line: &str) -> Vec<Word> {
    let texts = line.split(|c: char| c.is_whitespace() || "\"(){}[],".contains(c));
    let texts = texts.map(|text| text.trim_end_matches([':', ';'])).filter(|text| !text.is_empty());
    let texts: Vec<&str> = texts.collect();
    let next = texts.iter().skip(1).map(Some).chain([None]);
    let unit = |next: Option<&&str>| {
        next.is_some_and(|next| UNITS.iter().any(|unit| next.trim_end_matches("/s") == *unit))
    };
    texts
        .iter()
        .zip(next)
        .map(|(text, next)| match text.strip_prefix("...") {
            Some("") => Word::Gap,
            Some(end) => Word::Ending(end.to_owned()),
            None if is_measured(text) || (is_number(text) && unit(next)) => Word::Measured,
            None => Word::Plain((*text).to_owned()),
        })
        .collect()
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok()
}

fn is_measured(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let part = |separator, index| text.split(separator).nth(index).unwrap_or("");
    let date = part('-', 0).len() == 4 && digits(part('-', 0)) && digits(part('-', 1));
    let time = digits(part(':', 0)) && digits(part(':', 1)) && part(':', 1).len() == 2;
    let digest = text.len() >= DIGEST_DIGITS && text.chars().all(|c| c.is_ascii_hexdigit());
    // As kubectl has them: `11s`, `2m5s`; and `0/756Gi`.
    let begins_with_digit = text.starts_with(|c: char| c.is_ascii_digit());
    let age = begins_with_digit && text.ends_with(['s', 'm', 'h']) && text.chars().all(is_of_age);
    let amount = text.strip_suffix('i').and_then(|text| text.strip_suffix(['K', 'M', 'G', 'T']));
    let space =
        amount.and_then(|text| text.split_once('/')).is_some_and(|(a, b)| is_number(a) && is_number(b));
    date || time || digest || age || space
}

fn is_of_age(c: char) -> bool {
    c.is_ascii_digit() || "smh".contains(c)
}

/// Whether a line is as shown. A gap takes as few words as it can.
fn same(shown: &[Word], printed: &[Word]) -> bool {
    match shown {
        [] => printed.is_empty(),
        [Word::Gap, rest @ ..] => (0..=printed.len()).any(|skipped| same(rest, &printed[skipped..])),
        [first, rest @ ..] => match printed {
            [there, others @ ..] => first.fits(there) && same(rest, others),
            [] => false,
        },
    }
}

impl Word {
    fn fits(&self, printed: &Word) -> bool {
        match (self, printed) {
            (Self::Ending(end), Self::Plain(text)) => text.ends_with(end),
            _ => self == printed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
# Title

```sh
make demo now   # and more
echo hello
```

prints

```
hello
```

```json
{}
```
";

    #[test]
    fn commands_have_their_outputs() {
        let steps = steps(DOCUMENT);
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].commands.line, steps[0].outputs[0].line), (4, 11));
        assert_eq!(steps[0].make_targets(), ["demo", "now"]);
        steps[0].check("first\nhello\n").unwrap();
        let error = steps[0].check("hello you\n").unwrap_err();
        assert_eq!(error, "line 11 and the 0 after it are not printed: hello");
    }

    fn check(shown: &str, printed: &str) -> bool {
        let output = Block { line: 1, language: String::new(), text: shown.into() };
        Step { commands: output.clone(), outputs: vec![output] }.check(printed).is_ok()
    }

    #[test]
    fn what_is_measured_may_differ_and_nothing_else() {
        assert!(check(
            "got 3 files, 20 KiB in 0.2 s (1.5 MiB/s)",
            "got 812 files, 1.1 KiB in 12.0 s (98 MiB/s)"
        ));
        assert!(!check("4 of 4 nodes live", "3 of 4 nodes live"));
        assert!(!check("20 KiB", "20 copies"));
        assert!(check("2026-11-22 15:37  a", "2027-01-02 08:11  a"));
        assert!(check(
            "{\"etag\":\"00000000ce453129f5e4e7989862a0e6\",\"at\":\"2026-11-22T15:37:34.12Z\"}",
            "{\"etag\":\"00000000aaaaaaaaf5e4e7989862a0e6\",\"at\":\"2026-11-22T15:37:35.1Z\"}"
        ));
        assert!(check("demo True 3/3 0/756Gi 11s", "demo  True  3/3  0/1.5Ti  2m5s"));
        assert!(!check("demo True 3/3 0/756Gi 11s", "demo  True  2/3  0/1.5Ti  2m5s"));
        assert!(!check("demo True 3/3 0/756Gi 11s", "demo  True  3/3  0/756Gi  never"));
        assert!(!check("demo-main-a-0 127.0.0.1:7401", "demo-main-a-1 127.0.0.1:7401"));
    }

    #[test]
    fn gaps_are_lines_or_words() {
        assert!(check("one\n...\nfour", "zero\none\n\ntwo\nthree\nfour\nfive"));
        assert!(check("data in .../x y ...", "data in /here/x y z there"));
        assert!(!check("one\ntwo", "one\nthree\ntwo"));
        assert!(!check("one\n...\ntwo", "two\none"));
    }
}
