//! Changes of a recipe's text that leave everything else of it as it is, comments too.

use crate::finding::Place;
use crate::ids::StageId;
use crate::recipe::Loaded;
use crate::stage::Stage;

/// The text with values set in a stage. None if the text is written in a way that cannot be changed like that.
pub(super) fn set(loaded: &Loaded, stage: StageId, sets: &[(&str, String)]) -> Option<String> {
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    let name = own(loaded, loaded.stage_place(stage)?)?;
    let text = &loaded.source.text;
    for (key, value) in sets {
        let pointer = format!("/stages/{stage}/{key}");
        if loaded.says(&pointer) {
            let place = own(loaded, loaded.place(&pointer)?)?;
            let is_scalar =
                !text[place.start..].starts_with(['{', '[']) && key_of(text, place.start) == Some(key);
            if !is_scalar {
                return None;
            }
            edits.push((place.start, place.end, value.clone()));
        } else if is_flow(text, name.start) {
            edits.push((name.end, name.end, format!(", {key}: {value}")));
        } else {
            let (end, indent) = (line_end(text, name.end), column_of_key(text, name.start)?);
            edits.push((end, end, format!("{}{key}: {value}\n", " ".repeat(indent))));
        }
    }
    Some(edited(text, edits))
}

/// The text with a stage, whose parameter `list` names some modules, before another stage.
pub(super) fn insert(
    loaded: &Loaded,
    before: StageId,
    (stage, list): (&str, &str),
    modules: &[String],
) -> Option<String> {
    let name = own(loaded, loaded.stage_place(before)?)?;
    let text = &loaded.source.text;
    if is_flow(text, name.start) {
        return None;
    }
    let indent = column_of_key(text, name.start)?;
    // The line in which the item of the list begins, and the comments above it.
    let mut start = line_start(text, name.start);
    while !text[start..].trim_start_matches(' ').starts_with("- ") {
        start = line_start(text, start.checked_sub(1)?);
    }
    while start > 0 {
        let above = line_start(text, start - 1);
        if !text[above..start].trim_start().starts_with('#') {
            break;
        }
        start = above;
    }
    let key = " ".repeat(indent);
    let dash = " ".repeat(indent.checked_sub(2)?);
    let mut stage = format!("{dash}- stage: {stage}\n{key}{list}:\n");
    for module in modules {
        stage.push_str(&format!("{key}  - {}\n", word(module)));
    }
    Some(edited(text, vec![(start, start, stage)]))
}

/// The text with some modules left as they are by the `resolve-skips` that governs a stage, or by a new one before it.
pub(super) fn skip(loaded: &Loaded, of: StageId, modules: &[String]) -> Option<String> {
    const KEY: &str = "modules_to_not_convert";
    let stages = loaded.recipe.stages.numbered();
    let before = stages.take_while(|(index, _)| *index < of);
    let governing = before.filter(|(_, stage)| matches!(stage, Stage::ResolveSkips(_))).last();
    let Some((index, Stage::ResolveSkips(stage))) = governing else {
        return insert(loaded, of, ("resolve-skips", KEY), modules);
    };
    let words: Vec<String> = modules.iter().map(|module| word(module)).collect();
    let pointer = format!("/stages/{index}/{KEY}");
    if !loaded.says(&pointer) {
        return set(loaded, index, &[(KEY, format!("[{}]", words.join(", ")))]);
    }
    let last = stage.modules_to_not_convert.len().checked_sub(1)?;
    let place = own(loaded, loaded.place(&format!("{pointer}/{last}"))?)?;
    let text = &loaded.source.text;
    let before = line_before(text, place.start);
    if before.trim() == "-" {
        let end = line_end(text, place.end);
        let lines = words.iter().map(|word| format!("{before}{word}\n"));
        return Some(edited(text, vec![(end, end, lines.collect())]));
    }
    if !before.contains('[') && !before.trim().is_empty() {
        return None;
    }
    let quotes = usize::from(text[place.end..].starts_with(['"', '\'']));
    let end = place.end + quotes;
    Some(edited(text, vec![(end, end, format!(", {}", words.join(", ")))]))
}

/// A module's name as a value of YAML: as a JSON string, which YAML takes too, if it is more than a word.
fn word(module: &str) -> String {
    let is_word = module.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && module.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_word { module.to_owned() } else { serde_json::Value::from(module).to_string() }
}

/// The text with a stage `quantize-int8` in the place of a `quantize-int4`, without its groups.
pub(super) fn eight(loaded: &Loaded, stage: StageId) -> Option<String> {
    let text = &loaded.source.text;
    let name = own(loaded, loaded.stage_place(stage)?)?;
    let mut edits = vec![(name.start, name.end, "quantize-int8".to_owned())];
    let groups = format!("/stages/{stage}/group_size");
    if loaded.says(&groups) {
        let place = own(loaded, loaded.place(&groups)?)?;
        if is_flow(text, place.start) || is_flow(text, name.start) {
            return None;
        }
        edits.push((line_start(text, place.start), line_end(text, place.end), String::new()));
    }
    Some(edited(text, edits))
}

/// A place in the recipe's own text, rather than in an override.
fn own(loaded: &Loaded, place: Place) -> Option<Place> {
    (place.source.text == loaded.source.text).then_some(place)
}

fn edited(text: &str, mut edits: Vec<(usize, usize, String)>) -> String {
    edits.sort_by_key(|(start, ..)| *start);
    let mut out = text.to_owned();
    for (start, end, with) in edits.into_iter().rev() {
        // The last line of a file may have no end.
        let break_before =
            if start == out.len() && !out.ends_with('\n') && with.ends_with('\n') { "\n" } else { "" };
        out.replace_range(start..end, &format!("{break_before}{with}"));
    }
    out
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |end| end + 1)
}

/// The start of the next line.
fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |end| at + end + 1)
}

/// The line up to a position.
fn line_before(text: &str, at: usize) -> &str {
    &text[line_start(text, at)..at]
}

fn is_flow(text: &str, at: usize) -> bool {
    line_before(text, at).contains('{')
}

/// The column in which the keys of a stage begin whose key `stage` has its value at a position.
fn column_of_key(text: &str, at: usize) -> Option<usize> {
    let before = line_before(text, at);
    let key = before.find("stage")?;
    before[..key].chars().all(|c| matches!(c, ' ' | '-')).then_some(key)
}

/// The key before a value in its line.
fn key_of(text: &str, at: usize) -> Option<&str> {
    let before = line_before(text, at).trim_end().strip_suffix(':')?;
    Some(before.rsplit([' ', '{', ',']).next().unwrap_or(before))
}
