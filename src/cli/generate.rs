//! `monoquant schema`, `completions` and `man`: output that is generated from the program's own definitions.

use super::output::Output;
use super::{SchemaArgs, SchemaOf, data};
use crate::exit::Exit;
use crate::finding::{Failure, Finding};

pub(super) fn schema(args: &SchemaArgs, output: &Output) -> Result<Exit, Failure> {
    if args.install {
        return data::install(output);
    }
    output.own(&match args.of {
        SchemaOf::Recipe => crate::recipe::schema_text(),
        SchemaOf::Report => crate::report::schema_text(),
    });
    Ok(Exit::Done)
}

pub(super) fn completions(
    shell: clap_complete::Shell,
    command: &mut clap::Command,
    output: &Output,
) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, command, "monoquant", &mut text);
    output.own(&String::from_utf8_lossy(&text));
    Ok(Exit::Done)
}

pub(super) fn man(command: clap::Command, output: &Output) -> Result<Exit, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text).map_err(|error| {
        let finding = Finding::error("cli::man", format!("cannot write the manual page: {error}"));
        Failure::new(Exit::Internal, finding)
    })?;
    output.own(&String::from_utf8_lossy(&text));
    Ok(Exit::Done)
}
