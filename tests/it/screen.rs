//! What is shown at the widths of terminals: no line is wider than the terminal, no word is lost where there is room for it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use unicode_width::UnicodeWidthStr;

use crate::support::{Model, Said, Workspace, root};

const WIDTHS: [&str; 3] = ["60", "80", "120"];

/// A model whose gate fails, with a file that is left behind.
fn workspace() -> Workspace {
    let workspace = Workspace::with(&Model::heavy());
    workspace.write("model/pytorch_model.bin", "old weights");
    workspace.write("model/chat_template.jinja", "{{ messages }}");
    workspace.recipe(
        "  - stage: resolve-skips\n    modules_to_not_convert: [\"re:model.layers.1.(self_attn|mlp).*_proj\"]\n  - stage: \
         quantize-int4\n  - stage: validate\n  - stage: check-warnings\n    sqnr_warning_threshold: 19\n",
    );
    workspace
}

fn at(workspace: &Workspace, width: &str, args: &[&str]) -> Said {
    let mut command = workspace.command(args);
    command.env("COLUMNS", width);
    let output = command.output().expect("the binary runs");
    let status = output.status.code().expect("it ends by itself");
    workspace.ended(output).exits(status)
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    let workspace = workspace();
    for width in WIDTHS {
        let mut text = String::new();
        for args in [
            &["run", "recipe.yaml", "--fresh"][..],
            &["run", "recipe.yaml", "-v"],
            &["plan", "recipe.yaml"],
            &["explain", "recipe.yaml", "layers.1.mlp.down_proj"],
            &["inspect", "model"],
            &["verify", "out"],
            &["check", "recipe.yaml", "--set", "stages.1.skip_layer_nams=[lm_head]"],
        ] {
            let said = at(&workspace, width, args);
            // Without a terminal, the progress of a run is a log.
            let stderr = if args[0] == "run" { "" } else { &said.stderr };
            text += &format!("$ monoquant {}\n{stderr}{}\n", args.join(" "), said.stdout);
        }
        let columns: usize = width.parse().expect("a number");
        for line in text.lines().filter(|line| !line.starts_with("$ ")) {
            assert!(line.width() <= columns, "{width}: {line}");
        }
        insta::assert_snapshot!(format!("screen-{width}"), text);
    }
}

#[test]
fn help_fits_and_breaks_no_name() {
    let workspace = workspace();
    for width in WIDTHS {
        let said = at(&workspace, width, &["check", "recipe.yaml", "--set", "stages.3.stage=check-warning"]);
        assert!(!said.stderr.contains("check-\n"), "{}", said.stderr);
        let said = at(&workspace, width, &["check", "recipe.yaml", "--set", "stages.9.x=1"]);
        let columns: usize = width.parse().expect("a number");
        assert!(said.stderr.lines().all(|line| line.width() <= columns), "{}", said.stderr);
    }
}

#[test]
fn without_a_terminal_nothing_is_left_out() {
    let workspace = workspace();
    let mut command = workspace.command(["inspect", "model"]);
    command.env_remove("COLUMNS");
    let said = workspace.ended(command.output().expect("the binary runs")).exits(0);
    assert!(said.stdout.contains("model.layers.1.post_attention_layernorm.weight  BF16"), "{}", said.stdout);
    assert!(!said.stdout.contains('…'), "{}", said.stdout);
}

#[test]
fn a_summary_has_colours_if_they_are_wanted() {
    let workspace = workspace();
    let said = workspace.monoquant(["run", "recipe.yaml", "--color", "always"]).exits(0).stdout;
    assert!(said.starts_with("\u{1b}[32m✓ test"), "{said}");
    assert!(said.contains("\u{1b}[33mpassed with warnings\u{1b}[0m"), "{said}");
    let said = workspace.monoquant(["run", "recipe.yaml", "--fresh"]).exits(0).stdout;
    assert!(!said.contains('\u{1b}'), "NO_COLOR is set: {said}");
    assert!(said.trim_end().lines().next_back().is_some_and(|line| line.starts_with("  took  ")), "{said}");
}

#[test]
fn the_rate_is_told_of_what_was_read() {
    let workspace = workspace();
    let took = |args: &[&str]| {
        let output = workspace.command(args).output().expect("the binary runs");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().find(|line| line.starts_with("  took  ")).expect("the time").to_owned()
    };
    let first = took(&["run", "recipe.yaml"]);
    assert!(first.contains(" of weights read at ") && first.ends_with(" GB/s"), "{first}");
    // An output that is up to date needs no weights.
    let again = took(&["run", "recipe.yaml"]);
    assert!(!again.contains("GB/s"), "{again}");
}

#[test]
fn check_takes_folders_and_standard_input_and_can_deny_warnings() {
    let workspace = workspace();
    let good = "version: 1\nname: good\nstages:\n  - stage: load\n    model: m\n  - stage: quantize-int4\n  - stage: export\n    \
                path: out\n";
    workspace.write("recipes/a.yaml", good);
    workspace.write("recipes/below/b.YML", good);
    workspace.write("recipes/.hidden/c.yaml", "no recipe");
    workspace.write("recipes/README.md", "no recipe");
    assert_eq!(workspace.monoquant(["check", "recipes"]).exits(0).stdout, "2 recipes are fine\n");
    workspace.write("recipes/below/bad.yaml", "version: 2\n");
    let said = workspace.monoquant(["check", "recipes"]).exits(2);
    assert!(said.stderr.contains("recipes/below/bad.yaml:1:10"), "{}", said.stderr);
    workspace.write("empty/README.md", "no recipe");
    let said = workspace.monoquant(["check", "empty"]).exits(2);
    assert!(said.stderr.contains("`empty` is a directory without a recipe"), "{}", said.stderr);

    let input = |text: &[u8], args: &[&str]| {
        let mut child = workspace
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        // One that is too large is not read to its end.
        let _ = child.stdin.take().expect("a pipe").write_all(text);
        workspace.ended(child.wait_with_output().expect("the binary ends"))
    };
    assert_eq!(input(good.as_bytes(), &["check", "-"]).exits(0).stdout, "1 recipe is fine\n");
    let said = input(good.replace("model", "modell").as_bytes(), &["check", "-"]).exits(2);
    assert!(said.stderr.contains("standard input:5:5"), "{}", said.stderr);
    assert!(input(b"\xff", &["check", "-"]).exits(2).stderr.contains("cannot read standard input"));
    assert!(input(&vec![b'#'; 2 << 20], &["check", "-"]).exits(2).stderr.contains("1024 KiB"));

    let doubtful = good.replace("  - stage: export", "    maxshrink: 0.1\n  - stage: export");
    workspace.write("doubtful.yaml", doubtful);
    workspace.monoquant(["check", "doubtful.yaml"]).exits(0);
    let said = workspace.monoquant(["check", "doubtful.yaml", "--deny-warnings"]).exits(2);
    assert!(said.stderr.contains("`maxshrink` has no effect"), "{}", said.stderr);
    workspace.monoquant(["check", "recipes/a.yaml", "--deny-warnings"]).exits(0);
}

/// All that a command wrote to a pseudo-terminal of this size.
#[cfg(unix)]
fn on_a_terminal(workspace: &Workspace, columns: u16, args: &[&str]) -> String {
    on_a_terminal_until(workspace, columns, args, None).0
}

/// All that a command wrote to a pseudo-terminal of this size, and its exit status. It is interrupted when it has written this text.
#[cfg(unix)]
fn on_a_terminal_until(
    workspace: &Workspace,
    columns: u16,
    args: &[&str],
    until: Option<&str>,
) -> (String, Option<i32>) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("a pseudo-terminal");
    let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
    let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).expect("a size");
    let open = || {
        std::os::fd::OwnedFd::from(File::options().read(true).write(true).open(&name).expect("its other end"))
    };
    let mut command = workspace.command(args);
    if until.is_some() {
        command.env("TERM", "xterm");
    }
    let mut child = command
        .stdin(Stdio::from(open()))
        .stdout(Stdio::from(open()))
        .stderr(Stdio::from(open()))
        .spawn()
        .expect("the binary runs");
    // It holds the other end, too.
    drop(command);
    let (id, mut until) = (child.id().to_string(), until.map(str::to_owned));
    let reader = std::thread::spawn(move || {
        let (mut said, mut part, mut master) = (Vec::new(), [0; 4096], File::from(master));
        // Reading from a terminal that nobody holds any more is an error.
        while let Ok(count @ 1..) = master.read(&mut part) {
            said.extend_from_slice(&part[..count]);
            if until.take_if(|text| String::from_utf8_lossy(&said).contains(text.as_str())).is_some() {
                let killed = std::process::Command::new("kill").args(["-INT", &id]).status();
                assert!(killed.expect("kill").success());
            }
        }
        String::from_utf8_lossy(&said).into_owned()
    });
    let status = child.wait().expect("the binary ends").code();
    (reader.join().expect("a reader"), status)
}

#[cfg(unix)]
#[test]
fn the_terminal_is_measured() {
    let workspace = workspace();
    // `COLUMNS` says 100, and the terminal knows better.
    for columns in [60, 80, 120] {
        let said = on_a_terminal(&workspace, columns, &["inspect", "model"]);
        let widest = said.lines().map(|line| line.trim_end().width()).max().expect("lines");
        assert!(widest <= usize::from(columns), "{columns}: {said}");
        assert!(widest > usize::from(columns) * 3 / 4 || columns == 120, "{columns}: {said}");
    }
    // No kind of terminal is said, so that lines are told, as in a log.
    let said = on_a_terminal(&workspace, 60, &["run", "recipe.yaml", "--fresh"]);
    assert!(said.contains("reading") && !said.contains('━') && said.contains("✓ test"), "{said}");
    // A bar is drawn within the terminal, and nothing is left of it.
    let args = ["run", "recipe.yaml", "--fresh"];
    let (said, status) = on_a_terminal_until(&workspace, 60, &args, Some("never said"));
    let last = said.rsplit('\r').next().unwrap_or_default();
    assert!(status == Some(0) && !last.contains('─') && said.contains("✓ test"), "{said}");
}

#[cfg(unix)]
#[test]
fn nothing_is_left_of_a_bar_that_is_broken_off() {
    let workspace = workspace();
    // Some seconds of work.
    let (model, text) =
        (root().join("examples/tiny-llama"), root().join("examples/calibration/calibration.txt"));
    let load = format!("  - stage: load\n    model: {}\n", model.display());
    let calibrate = format!("  - stage: calibrate\n    text: [{}]\n", text.display());
    let rest = "  - stage: quantize-int4\n    observer: mse\n  - stage: export\n    path: out\n";
    workspace.whole_recipe(&format!("{load}{calibrate}{rest}"));
    let args = ["run", "recipe.yaml", "--threads", "1"];
    let (said, status) = on_a_terminal_until(&workspace, 60, &args, Some("─"));
    assert_eq!(status, Some(130), "{said}");
    let (_, after) = said.rsplit_once(['─', '━', '╸']).expect("a bar");
    assert!(after.contains("\u{1b}[2K"), "{said:?}");
    let (_, left) = after.rsplit_once("\u{1b}[2K").expect("the line is cleared");
    assert!(!left.contains('%') && left.contains("interrupted"), "{said:?}");
}
