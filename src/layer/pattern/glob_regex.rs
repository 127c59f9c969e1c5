//! Translation of globs over dotted names to regular expressions.

use super::PatternError;

/// The regular expression, without anchors, that matches the same names as `glob`.
///
/// # Errors
/// If a bracket or brace is not closed, or closes nothing.
pub(super) fn translate(glob: &str) -> Result<String, PatternError> {
    let chars: Vec<char> = glob.chars().collect();
    let mut regex = String::with_capacity(glob.len() * 2);
    let mut braces = 0_u32;
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        match c {
            '*' if chars.get(at) == Some(&'*') => {
                let starts_segment = at == 1 || matches!(chars[at - 2], '.' | '{' | ',');
                at += 1;
                while chars.get(at) == Some(&'*') {
                    at += 1;
                }
                if starts_segment && chars.get(at) == Some(&'.') {
                    // `**.` matches any number of whole segments, including none.
                    at += 1;
                    regex.push_str(r"(?:.*\.)?");
                } else {
                    regex.push_str(".*");
                }
            }
            '*' => regex.push_str("[^.]*"),
            '?' => regex.push_str("[^.]"),
            '[' => at = class(&chars, at, &mut regex)?,
            '{' => {
                braces += 1;
                regex.push_str("(?:");
                at = range(&chars, at, &mut regex)?;
            }
            '}' if braces > 0 => {
                braces -= 1;
                regex.push(')');
            }
            ',' if braces > 0 => {
                regex.push('|');
                at = range(&chars, at, &mut regex)?;
            }
            '}' => {
                return Err(PatternError::new(
                    "this `}` closes nothing",
                    "Write `\\}` for the character itself.",
                ));
            }
            '\\' => match chars.get(at) {
                Some(escaped) => {
                    push_literal(&mut regex, *escaped);
                    at += 1;
                }
                None => {
                    let help =
                        "A backslash takes the meaning from the character after it; write `\\\\` for one.";
                    return Err(PatternError::new("this glob ends in a backslash", help));
                }
            },
            other => push_literal(&mut regex, other),
        }
    }
    if braces > 0 {
        let help = "Alternatives are written `{a,b}`. Write `\\{` for the character itself.";
        return Err(PatternError::new("this glob has a `{` that is not closed", help));
    }
    Ok(regex)
}

/// Numbers that one range may stand for. No model has so many layers.
const MAX_RANGE: u64 = 1000;

/// Translates a range of numbers, as in `{4..27}`, which begins an alternative; returns the position after it. If there is none,
/// nothing is done.
fn range(chars: &[char], at: usize, regex: &mut String) -> Result<usize, PatternError> {
    let number = |from: usize| {
        let digits: String = chars[from..].iter().take_while(|c| c.is_ascii_digit()).take(9).collect();
        Some((digits.parse::<u64>().ok()?, from + digits.len()))
    };
    let found = || {
        let (first, dots) = number(at)?;
        let (last, end) = number(dots + 2).filter(|_| chars[dots..].starts_with(&['.', '.']))?;
        matches!(chars.get(end), Some(',' | '}')).then_some((first, last, end))
    };
    if at >= chars.len() {
        return Ok(at);
    }
    let Some((first, last, end)) = found() else { return Ok(at) };
    if first > last {
        let help = format!("Write the smaller number first: `{{{last}..{first}}}`.");
        return Err(PatternError::new(format!("the range `{first}..{last}` is empty"), help));
    }
    if last - first >= MAX_RANGE {
        let help = "Write `*` for any number.";
        return Err(PatternError::new(format!("this range has more than {MAX_RANGE} numbers"), help));
    }
    let numbers: Vec<String> = (first..=last).map(|number| number.to_string()).collect();
    regex.push_str(&numbers.join("|"));
    Ok(end)
}

/// Translates what follows a `[`; returns the position after its `]`.
fn class(chars: &[char], mut at: usize, regex: &mut String) -> Result<usize, PatternError> {
    let unclosed = || {
        let help = "A set of characters is written `[abc]` or `[0-9]`. Write `\\[` for the character itself.";
        PatternError::new("this glob has a `[` that is not closed", help)
    };
    regex.push('[');
    if matches!(chars.get(at), Some('!' | '^')) {
        // A negated set stays within the segment, as `?` does.
        regex.push_str("^.");
        at += 1;
    }
    let first = at;
    loop {
        match chars.get(at) {
            None => return Err(unclosed()),
            Some(']') if at > first => break,
            Some('-') if at > first && chars.get(at + 1).is_some_and(|next| *next != ']') => {
                if chars[at - 1] > chars[at + 1] {
                    let message = format!("the range `{}-{}` is empty", chars[at - 1], chars[at + 1]);
                    return Err(PatternError::new(
                        message,
                        "Write the smaller character first, as in `[0-9]`.",
                    ));
                }
                regex.push('-');
            }
            Some(c) => push_class_literal(regex, *c),
        }
        at += 1;
    }
    regex.push(']');
    Ok(at + 1)
}

fn push_literal(regex: &mut String, c: char) {
    regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
}

fn push_class_literal(regex: &mut String, c: char) {
    if c.is_ascii_punctuation() {
        regex.push('\\');
    }
    regex.push(c);
}
