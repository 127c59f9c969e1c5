//! Tokens of texts and conversations against those that transformers makes with the same tokenizer.

use std::fs;
use std::path::PathBuf;

use monoquant::network::tokens::{Document, Tokenizer};
use serde_json::{Value, json};

use crate::support::root;

fn folder() -> PathBuf {
    root().join("tests/fixtures/tokenizers")
}

/// The kinds, with what transformers makes of them.
fn kinds() -> Vec<(String, Value)> {
    let mut kinds: Vec<(String, Value)> = fs::read_dir(folder())
        .expect("the fixtures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON"))
        })
        .collect();
    kinds.sort_by(|a, b| a.0.cmp(&b.0));
    kinds
}

fn tokenizer(kind: &str, template: Option<&str>) -> Tokenizer {
    let read = |name: &str| fs::read(folder().join(kind).join(name)).expect("a file");
    let config = read("tokenizer_config.json");
    Tokenizer::new(&read("tokenizer.json"), Some(&config), template).expect("a tokenizer")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn texts_have_the_tokens_that_transformers_gives_them() {
    let kinds = kinds();
    assert_eq!(kinds.len(), 7);
    for (kind, expected) in &kinds {
        let tokenizer = tokenizer(kind, None);
        let before = ids(&expected["before"]);
        for pair in expected["texts"].as_array().expect("texts") {
            let text = pair[0].as_str().expect("a text");
            let document = [Document::Text(text.to_owned())];
            let own = ids(&pair[1]);
            assert_eq!(tokenizer.encode(&document, Some(false)).expect("tokens"), own, "{kind}: {text:?}");
            let whole = [before.clone(), own.clone()].concat();
            assert_eq!(tokenizer.encode(&document, None).expect("tokens"), whole, "{kind}: {text:?}");
            // Each document by itself, and one beginning.
            let twice = [before.clone(), own.clone(), own].concat();
            let documents = [document[0].clone(), document[0].clone()];
            assert_eq!(tokenizer.encode(&documents, None).expect("tokens"), twice, "{kind}: {text:?}");
        }
        let begun = tokenizer.encode(&[Document::Text("x".into())], Some(true)).expect("tokens");
        assert_eq!(begun.len(), 1 + ids(&expected["texts"][6][1]).len(), "{kind} has a token to begin with");
    }
}

#[test]
fn conversations_are_those_of_transformers_in_words_and_tokens() {
    let (mut all, mut begun) = (0, 0);
    for (kind, expected) in kinds() {
        for chat in expected["chats"].as_array().expect("chats") {
            let template = chat[0].as_str().expect("a name");
            let source = expected["templates"][template].as_str().expect("a template");
            let tokenizer = tokenizer(&kind, Some(source));
            let line = chat[1].as_object().expect("a line").clone();
            let own = ids(&chat[3]);
            let document = [Document::Chat(line.clone())];
            let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
            let rendered = monoquant::network::tokens::Template::new(&config, Some(source))
                .expect("a template")
                .expect("one")
                .render(&line)
                .expect("rendered");
            assert_eq!(Value::from(rendered), chat[2], "{kind}, {template}");
            assert_eq!(tokenizer.encode(&document, Some(false)).expect("tokens"), own, "{kind}, {template}");
            // What the template begins with itself is not put before it again.
            let before = ids(&expected["before"]);
            let whole = if own.starts_with(&before) { own } else { [before.clone(), own].concat() };
            begun += usize::from(chat[2].as_str().is_some_and(|text| text.starts_with("<s>")));
            assert_eq!(tokenizer.encode(&document, None).expect("tokens"), whole, "{kind}, {template}");
            all += 1;
        }
    }
    assert!(all == 54 && begun > 20, "{all} {begun}");
}
