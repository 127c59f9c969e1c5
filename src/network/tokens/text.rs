//! Files of text: plain, or JSONL with `text` or `messages` in each line.

use serde_json::Value;

use crate::finding::Finding;

/// A piece of text that is tokenized by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// Plain text.
    Text(String),
    /// A conversation, and what else its line holds (`tools`, …).
    Chat(serde_json::Map<String, Value>),
}

fn wrong(name: &str, what: &str, help: &str) -> Finding {
    Finding::error("tokens::bad-text", format!("`{name}` {what}")).help(help)
}

/// The documents of a file: one of plain text, one a line of JSONL. `name` is the file's for messages, and its ending tells
/// the two apart.
///
/// # Errors
/// It is no UTF-8, has no text, or a line is no object with `text` or `messages`.
pub fn documents(name: &str, bytes: &[u8]) -> Result<Vec<Document>, Finding> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|b| *b == b'\n').count();
        wrong(name, &format!("is no UTF-8 in line {line}"), "Save the text as UTF-8.")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(wrong(
            name,
            "has no text",
            "Give a file with some thousand words of the kind that the model works on.",
        ));
    }
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    if !matches!(ending.as_deref(), Some("jsonl" | "ndjson")) {
        return Ok(vec![Document::Text(text.to_owned())]);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            document(line)
                .map_err(|(what, help)| wrong(name, &format!("has a line {} that {what}", index + 1), &help))
        })
        .collect()
}

fn document(line: &str) -> Result<Document, (String, String)> {
    let help = "Each line is a JSON object with `text`, or with `messages` as chats have them.";
    let value: Value =
        serde_json::from_str(line).map_err(|error| (format!("is no JSON: {error}"), help.to_owned()))?;
    let Value::Object(object) = value else { return Err(("is no JSON object".into(), help.to_owned())) };
    match (object.get("text"), object.get("messages")) {
        (Some(Value::String(text)), _) => Ok(Document::Text(text.clone())),
        (_, Some(Value::Array(messages)))
            if !messages.is_empty() && messages.iter().all(Value::is_object) =>
        {
            Ok(Document::Chat(object))
        }
        (None, None) => Err(("has neither `text` nor `messages`".into(), help.to_owned())),
        (Some(_), _) => Err(("has a `text` that is no text".into(), help.to_owned())),
        (None, Some(_)) => Err(("has `messages` that are no list of messages".into(), help.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_jsonl_are_texts_or_chats() {
        let lines =
            b"{\"text\": \"one\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\r\n";
        let found = documents("a.JSONL", lines).expect("documents");
        assert_eq!(found[0], Document::Text("one".into()));
        assert!(matches!(&found[1], Document::Chat(line) if line.contains_key("messages")));
        assert_eq!(documents("a.txt", lines).expect("one").len(), 1);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (name, bytes, message) in [
            ("a.txt", &b"fine\nnot \xff fine"[..], "`a.txt` is no UTF-8 in line 2"),
            ("a.txt", b" \n", "`a.txt` has no text"),
            (
                "a.jsonl",
                b"{\"text\": \"a\"}\n{\"prompt\": 1}",
                "`a.jsonl` has a line 2 that has neither `text` nor `messages`",
            ),
            ("a.jsonl", b"[1]", "`a.jsonl` has a line 1 that is no JSON object"),
            ("a.jsonl", b"{\"text\": 1}", "`a.jsonl` has a line 1 that has a `text` that is no text"),
            (
                "a.jsonl",
                b"{\"messages\": []}",
                "`a.jsonl` has a line 1 that has `messages` that are no list of messages",
            ),
        ] {
            assert_eq!(documents(name, bytes).expect_err("wrong").message, message);
        }
        assert!(documents("a.jsonl", b"{").expect_err("wrong").message.contains("line 1 that is no JSON"));
    }
}
