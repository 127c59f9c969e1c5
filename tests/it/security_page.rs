//! `docs/security.md`: each promise names a test, and the test is there.

use std::fs;

use crate::support::root;

/// The rows of the page's table of promises: the promise, and what is named for it in backquotes.
fn promises() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/security.md")).expect("the page");
    let table = text.lines().skip_while(|line| *line != "| promise | test |").skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let [promise, tests] = cells[..] else { panic!("{row} has not two cells") };
        let named = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (promise.trim().to_owned(), named)
    })
    .collect()
}

/// What is wrong with `FILE::NAME`, a test, or with `FILE`, an attack that the checks of a change run.
fn missing(test: &str) -> Option<String> {
    let (file, name) = test.split_once("::").map_or((test, None), |(file, name)| (file, Some(name)));
    let Ok(text) = fs::read_to_string(root().join(file)) else { return Some(format!("{file} is not there")) };
    match name {
        Some(name) => {
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let is_test =
                |at: usize| at > 0 && lines[..at].iter().rev().take(3).any(|line| *line == "#[test]");
            let found = lines.iter().position(|line| line.starts_with(&format!("fn {name}()")));
            (!found.is_some_and(is_test)).then(|| format!("{file} has no test {name}"))
        }
        None => (!file.starts_with("tests/attacks/")).then(|| format!("{file} is no attack that is run")),
    }
}

#[test]
fn each_promise_names_a_test_that_is_there() {
    let promises = promises();
    assert!(promises.len() >= 20, "{} promises", promises.len());
    let mut wrong = Vec::new();
    for (promise, tests) in &promises {
        if tests.is_empty() {
            wrong.push(format!("no test: {promise}"));
        }
        wrong.extend(tests.iter().filter_map(|test| missing(test)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_can_be_found() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README");
    assert!(readme.contains("(docs/security.md)"));
    let policy = fs::read_to_string(root().join("SECURITY.md")).expect("the policy");
    assert!(policy.contains("(docs/security.md)"));
}

#[test]
fn a_test_that_is_not_there_is_found() {
    assert!(missing("tests/it/security_page.rs::a_test_that_is_not_there_is_found").is_none());
    assert!(missing("tests/it/security_page.rs::missing").is_some());
    assert!(missing("tests/it/nowhere.rs::x").is_some());
    assert!(missing("README.md").is_some());
}
