//! The user's data folder, where the schemas are put for editors.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::output::Output;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::publish::{files, hidden};
use crate::text::visible;

/// The schemas, by the names of their files.
const SCHEMAS: [&str; 2] = ["recipe", "report"];

/// The folder, as the system has it. None if there is no home.
fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
    let data = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Application Support"))
    } else {
        // One that is not absolute is to be ignored, as its specification has it.
        variable("XDG_DATA_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| home().map(|home| home.join(".local/share")))
    };
    Some(data?.join("monoquant"))
}

fn file(folder: &Path, schema: &str) -> PathBuf {
    folder.join(format!("{schema}.schema.json"))
}

/// Whether the schemas are there.
pub(super) fn has_schemas() -> bool {
    folder().is_some_and(|folder| {
        SCHEMAS.iter().all(|schema| crate::fs::exclusive::is_there(&file(&folder, schema)))
    })
}

/// The address of a schema in the data folder.
pub(super) fn schema_address(schema: &str) -> Option<String> {
    Some(address(file(&folder()?, schema).to_str()?))
}

/// A path as an address, in which spaces and other characters that end one are escaped.
fn address(path: &str) -> String {
    let mut out = String::from("file://");
    let path = path.replace('\\', "/");
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b':' => {
                out.push(char::from(byte))
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Puts the schemas of this version into the data folder.
pub(super) fn install(output: &Output) -> Result<Exit, Failure> {
    let Some(folder) = folder() else {
        let finding = Finding::error("cli::no-data-folder", "there is no folder for the data of this user")
            .help("Set `HOME`, or `XDG_DATA_HOME`, to a folder that you may write to.");
        return Err(Failure::new(Exit::CannotWrite, finding));
    };
    files::create_dir_all(&folder)?;
    for (schema, text) in
        SCHEMAS.into_iter().zip([crate::recipe::schema_text(), crate::report::schema_text()])
    {
        let path = file(&folder, schema);
        files::replace(&path, &hidden::new(&path), |file| file.write_all(text.as_bytes()))?;
    }
    if !output.is_quiet() {
        let line = schema_address("recipe").unwrap_or_default();
        output.result_unbroken(&format!(
            "the schemas are in {}; editors with a YAML language server take them from the first line of a recipe:\n\
             # yaml-language-server: $schema={line}\n",
            visible(&folder.display().to_string())
        ));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn paths_become_addresses() {
        assert_eq!(address("/home/ana/.local/share/x.json"), "file:///home/ana/.local/share/x.json");
        assert_eq!(
            address("/Users/a/Library/Application Support/ü"),
            "file:///Users/a/Library/Application%20Support/%C3%BC"
        );
        assert_eq!(address("C:\\Users\\a\\x.json"), "file:///C:/Users/a/x.json");
    }
}
