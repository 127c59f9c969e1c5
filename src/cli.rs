//! The command line, with one file per command. It holds no logic that the library lacks.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::exit::Exit;
use crate::recipe::Overrides;
use crate::text;

mod calibrate;
mod check;
mod ci;
mod clean;
mod compare;
mod data;
mod evaluate;
mod explain;
mod fix;
mod generate;
mod init;
mod inspect;
mod keys;
mod lock;
mod output;
mod parts;
mod plan;
mod recipe_args;
mod run;
mod signals;
mod sweep;
mod verify;
mod watch;
mod workspace;

use output::Output;
use signals::Signals;

/// Runs recipes: a YAML file says how a Hugging Face model directory is quantized to INT4 or INT8, one command does it.
#[derive(Debug, Parser)]
#[command(
    name = "monoquant",
    version,
    max_term_width = 100,
    after_help = "Exit statuses: 0 done · 1 a quality gate failed · 2 recipe or command line wrong · 3 model wrong or damaged · \
                  4 cannot write · 5 the output failed its own check · 70 bug · \
                  75 not there yet, try again · 130 interrupted"
)]
struct Cli {
    #[command(flatten)]
    terminal: Terminal,
    #[command(subcommand)]
    command: Command,
}

/// How things are shown, for every command.
#[derive(Debug, Args)]
struct Terminal {
    /// When to use colour. `auto` asks the terminal and the environment (NO_COLOR, CLICOLOR_FORCE).
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,
    /// Say only what is wrong, and what was asked for: no progress, no summary, no mere warnings.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more: each file that is written, carried over or left behind; each tensor as it is finished.
    #[arg(short, long, global = true)]
    verbose: bool,
    /// The form of results and diagnostics.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human, value_name = "FORM")]
    format: Format,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    /// If the terminal supports it.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The form of results and diagnostics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people, with the words underlined.
    Human,
    /// One line a diagnostic.
    Plain,
    /// JSON, on standard output.
    Json,
    /// Annotations of GitHub Actions.
    Github,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a recipe to begin with: one that fits a model, with comments that say what it does and why.
    ///
    /// Looks at the model's headers. The recipe goes to standard output, or to a file that does not exist yet.
    Init(init::InitArgs),
    /// Run a recipe: quantize its model, judge the result, publish the output.
    ///
    /// Weights are read once and in tiles, so memory does not grow with the model. The output is built beside its place and
    /// moved there in one step, after every gate before it has passed; until then nothing that was there is touched.
    Run(RunArgs),
    /// Run a recipe's `calibrate` stage alone, and write the statistics that it measures.
    ///
    /// The model runs layer by layer on the text of the stage. A recipe takes the file with `calibration: {file: …}`.
    Calibrate(CalibrateArgs),
    /// Show what a run would do, from the headers of the model alone.
    ///
    /// Per rule: tensors, scheme and bytes. Per reason: the skipped tensors. Then the size of the output to the byte,
    /// the disk space it takes and the memory bound. Reads no weight and writes nothing.
    Plan(PlanArgs),
    /// Run a quantized model beside its original on held-out text, and say how far their answers are apart.
    ///
    /// The directory is one of monoquant or of another tool that writes compressed-tensors. Exit status 1 if a threshold is crossed.
    Evaluate(EvaluateArgs),
    /// Show every rule that matches a tensor, and the rule that decides.
    Explain(ExplainArgs),
    /// Check recipes without their models. Fast enough for a pre-commit hook.
    Check(CheckArgs),
    /// Show a model's tensors, layer types, data types, totals and quantization config; or a file of activation
    /// statistics.
    Inspect(InspectArgs),
    /// Remove what runs of a recipe keep beside its outputs: measured statistics, comparisons, the remains of interrupted runs.
    ///
    /// Outputs and their records stay.
    Clean(CleanArgs),
    /// Compare two quantized models: sizes, the SQNR of the model and of each layer.
    ///
    /// By their reports; or by their weights, if one has no report: the output of another tool, a source model.
    Compare(compare::CompareArgs),
    /// Measure all combinations of some values of a recipe in one pass over the weights, and rank them by size and quality.
    ///
    /// Nothing is exported. The settings that no other one beats in both are marked.
    Sweep(sweep::SweepArgs),
    /// Find the smallest change of a recipe that lets its gate pass, and print it as a patch.
    ///
    /// Tried and measured on the model: `observer: mse`, smaller groups, eight bits for the layers that need them. The patch keeps
    /// comments and goes to standard output, for `patch -p1`.
    Fix(fix::FixArgs),
    /// Lock what a run has made: write `monoquant.lock` beside the recipe, which `run --locked` holds later runs to.
    ///
    /// One entry per recipe: its values, the version of monoquant, the hashes of the source's files and its revision on the Hub, and
    /// those of the output's files. The files of source and output are read, to be sure of them.
    Lock(lock::LockArgs),
    /// Check an output directory against its report: sizes and checksums of its files.
    Verify(VerifyArgs),
    /// Print the JSON Schema of recipes, or of reports.
    Schema(SchemaArgs),
    /// Print shell completions.
    Completions(CompletionsArgs),
    /// Print the manual page.
    Man,
}

/// Overrides of recipe values.
#[derive(Debug, Args)]
struct OverrideArgs {
    /// Override a value of the recipe, such as `quantize-int4.group_size=64` or `stages.2.group_size=64`.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Use this model instead of the one of `load`; relative to the current folder.
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Publish here instead of `path` of `export`; relative to the current folder.
    #[arg(long, value_name = "DIR")]
    output: Option<String>,
}

impl OverrideArgs {
    fn overrides(&self) -> Overrides {
        Overrides {
            set: self.set.clone(),
            model: self.model.clone(),
            output: self.output.clone(),
            ..Overrides::default()
        }
    }
}

/// Folders that links may lead to.
#[derive(Debug, Args)]
struct LinkArgs {
    /// Follow links in the model's folder that lead into DIR, for example a shared store of files. May be repeated.
    #[arg(long, value_name = "DIR")]
    follow_links: Vec<PathBuf>,
}

/// A recipe and what overrides it.
#[derive(Debug, Args)]
struct RecipeArgs {
    /// The recipe.
    recipe: PathBuf,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    links: LinkArgs,
    /// Worker threads. Results do not depend on it. Default: the number of cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Bound of the resident memory, such as 128MiB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
}

fn size(text: &str) -> Result<u64, String> {
    crate::stage::export::shards::parse_size(text)
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
    /// Put the output on the disk before it is published, so that it survives a power cut. Slower: without it the system
    /// writes back when it likes, as after any copy.
    #[arg(long)]
    durable: bool,
    /// Do everything again: take nothing over from the last output or an interrupted run
    #[arg(long)]
    fresh: bool,
    /// Trust no existing files: never reuse earlier results, and keep nothing for the next cycle of a watch. This is
    /// the default if CI is set in the environment and not `false`: there, existing files may come from a stranger
    #[arg(long, overrides_with = "trusted")]
    untrusted: bool,
    /// Reuse results that an earlier run has left, even if CI is set
    #[arg(long, overrides_with = "untrusted")]
    trusted: bool,
    /// Make only one of several parts of the output's files, on this machine or another one: part I of N, from 0. `auto` takes I
    /// and N from a Slurm array, `auto/N` only I, also of a Kubernetes indexed job or an AWS Batch array
    #[arg(long, value_name = "I/N", conflicts_with_all = ["join", "watch", "dry_run", "report", "baseline", "locked"])]
    part: Option<String>,
    /// Take the files that all parts have made, judge the gates and publish. Exit status 75 if some are missing
    #[arg(long, conflicts_with_all = ["watch", "dry_run"])]
    join: bool,
    /// With `--join`: wait so long for missing files, such as 90s, 30m or 6h
    #[arg(long, value_name = "TIME", requires = "join", value_parser = parts::time)]
    wait: Option<std::time::Duration>,
    /// Run, then wait, and run again whenever the recipe or the model changes. On a terminal, `r` runs again, `b` pins the
    /// result that later ones are compared with, and `q` or Ctrl-C ends it
    #[arg(long, conflicts_with = "dry_run")]
    watch: bool,
    /// With `--watch`: look every so many seconds instead of waiting for events, which network disks and some containers do
    /// not send
    #[arg(long, value_name = "SECONDS", requires = "watch", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    poll: Option<u16>,
    /// Use the kernels of this instruction set (portable, avx2, avx512, neon). Results do not depend on it.
    #[arg(long, value_name = "NAME", env = "MONOQUANT_ISA", hide_env_values = true)]
    isa: Option<String>,
    #[command(flatten)]
    ci: ci::CiArgs,
}

#[derive(Debug, Args)]
struct CalibrateArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The file to write.
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: PathBuf,
    /// Write second moments of all inputs to another file too: what rounding with calibration works with. It measures again.
    #[arg(long, value_name = "FILE")]
    moments: Option<PathBuf>,
    /// Measure again, whatever an earlier run has kept.
    #[arg(long)]
    fresh: bool,
}

#[derive(Debug, Args)]
struct EvaluateArgs {
    /// The quantized model: a directory, or hf://org/name.
    directory: String,
    /// The model that it was made from.
    #[arg(long, value_name = "MODEL")]
    source: String,
    /// Held-out text: a plain file, or JSONL with `text` or `messages` in each line. May be given several times.
    #[arg(long, value_name = "FILE", required = true)]
    text: Vec<String>,
    /// Run only the first so many samples.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// Tokens of a sample.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    sequence_length: u32,
    /// Whether the first sample begins with the token that texts begin with. Default: as the tokenizer has it.
    #[arg(long, value_name = "BOOL")]
    begin_with_bos: Option<bool>,
    /// The largest mean KL divergence, in nats per token.
    #[arg(long, value_name = "X")]
    max_kl: Option<f64>,
    /// The largest ratio of perplexities.
    #[arg(long, value_name = "X")]
    max_perplexity_ratio: Option<f64>,
    /// The smallest share of tokens for which both models find the same next token most likely.
    #[arg(long, value_name = "X")]
    min_top1_agreement: Option<f64>,
    /// The smallest mean cosine of an encoder's pooled states.
    #[arg(long, value_name = "X")]
    min_cosine: Option<f64>,
    /// Worker threads. Results do not depend on it. Default: the number of cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(flatten)]
    links: LinkArgs,
}

#[derive(Debug, Args)]
struct CleanArgs {
    /// The recipe.
    recipe: PathBuf,
    #[command(flatten)]
    overrides: OverrideArgs,
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Print the plan as JSON, with every tensor.
    #[arg(long)]
    json: bool,
    /// Also show what each of N parts of the run has to do.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    parts: Option<u32>,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The name of a tensor or a module.
    tensor: String,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Recipes, folders of recipes (every .yaml and .yml file in them and below), or `-` for standard input.
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    /// Let warnings fail as well.
    #[arg(long)]
    deny_warnings: bool,
    #[command(flatten)]
    overrides: OverrideArgs,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// A model directory, a .safetensors file, hf://org/name, or a file of activation statistics.
    path: String,
    #[command(flatten)]
    links: LinkArgs,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// A directory that monoquant wrote.
    directory: PathBuf,
}

#[derive(Debug, Args)]
struct SchemaArgs {
    /// The document whose schema is printed.
    #[arg(value_enum, default_value_t = SchemaOf::Recipe)]
    of: SchemaOf,
    /// Put the schemas into the user's data folder, where the recipes of `monoquant init` say that editors find them.
    #[arg(long)]
    install: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SchemaOf {
    /// Recipes.
    Recipe,
    /// Reports.
    Report,
}

#[derive(Debug, Args)]
struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Runs the command of the process's arguments.
#[must_use]
pub fn main() -> Exit {
    as_process(|| run_with(std::env::args_os()))
}

/// Does all the work of a process, and says how it ends: a panic is told as the bug that it is, and neither it nor a file that is
/// too long ends the process on the spot.
pub fn as_process(work: impl FnOnce() -> Exit) -> Exit {
    std::panic::set_hook(Box::new(output::panicked));
    crate::fs::limits::outlive_long_files();
    shielded(work)
}

/// A panic is a bug in monoquant, and the exit status says so. Staged files have been removed by then, as after any
/// failure.
fn shielded(work: impl FnOnce() -> Exit) -> Exit {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(Exit::Internal)
}

/// Runs a command line; the first argument is the program's name.
#[must_use]
pub fn run_with(args: impl IntoIterator<Item = OsString>) -> Exit {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match parse(args.clone()) {
        Ok(cli) => cli,
        Err(error) => {
            output::usage(&error, || parse(args.iter().map(visible)).err());
            return if error.use_stderr() { Exit::BadRecipe } else { Exit::Done };
        }
    };
    let output = Output::new(&cli.terminal);
    let signals = Signals::listen(Output::new(&cli.terminal));
    let done = match &cli.command {
        Command::Init(args) => init::init(args, &output),
        Command::Run(args) if args.dry_run => plan::plan(&args.recipe, (false, None), &output),
        Command::Run(args) if args.part.is_some() => parts::run(args, &output, &signals),
        Command::Run(args) if args.watch => watch::watch(args, &output, &signals),
        Command::Run(args) => run::run(args, &output, &signals),
        Command::Calibrate(args) => calibrate::calibrate(args, &output, &signals),
        Command::Clean(args) => clean::clean(args, &output),
        Command::Plan(args) => plan::plan(&args.recipe, (args.json, args.parts), &output),
        Command::Evaluate(args) => evaluate::evaluate(args, &output, &signals),
        Command::Explain(args) => explain::explain(args, &output),
        Command::Check(args) => check::check(args, &output),
        Command::Inspect(args) => inspect::inspect(args, &output),
        Command::Compare(args) => compare::run(args, &output, &signals),
        Command::Sweep(args) => sweep::sweep(args, &output, &signals),
        Command::Fix(args) => fix::fix(args, &output, &signals),
        Command::Lock(args) => lock::lock(args, &output, &signals),
        Command::Verify(args) => verify::verify(&args.directory, &output),
        Command::Schema(args) => generate::schema(args, &output),
        Command::Completions(args) => generate::completions(args.shell, &mut Cli::command(), &output),
        Command::Man => generate::man(Cli::command(), &output),
    };
    let exit = done.unwrap_or_else(|failure| {
        output.findings(&failure.findings);
        failure.exit
    });
    if exit == Exit::Done && output.has_lost_a_result() { Exit::CannotWrite } else { exit }
}

/// Parses a command line. The error for an unknown command lists the commands that exist.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(args).map_err(|mut error| {
        if error.kind() == clap::error::ErrorKind::InvalidSubcommand {
            let mut command = Cli::command();
            command.build();
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            let tip = clap::builder::StyledStr::from(format!("the commands are: {}", names.join(", ")));
            let tips = match error.remove(ContextKind::Suggested) {
                Some(ContextValue::StyledStrs(mut tips)) => {
                    tips.push(tip);
                    tips
                }
                _ => vec![tip],
            };
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
        error
    })
}

/// An argument as it can be shown.
fn visible(arg: &OsString) -> OsString {
    text::visible(&arg.to_string_lossy()).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_internal_error() {
        assert_eq!(shielded(|| Exit::Done), Exit::Done);
        assert_eq!(shielded(|| panic!("a bug on purpose")), Exit::Internal);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
