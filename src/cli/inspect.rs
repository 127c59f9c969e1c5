//! `monoquant inspect`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::output::Output;
use super::{Format, InspectArgs};
use crate::calibration;
use crate::exit::Exit;
use crate::finding::Failure;
use crate::format::encoding::unquantized;
use crate::format::source;
use crate::model::{self, Because, LayerClass, Layers, ModelFolder, TensorInfo};
use crate::show::each::Each;
use crate::show::statistics;
use crate::show::table::{Columns, table, write_table};
use crate::text::units::{bytes, counted, grouped};
use crate::text::visible;

pub(super) fn inspect(args: &InspectArgs, output: &Output) -> Result<Exit, Failure> {
    let here = Path::new(".");
    if let Some(path) = source::path(&args.path, here)?.filter(|path| calibration::is_statistics(path)) {
        let statistics = calibration::read(&path)?;
        if args.json || output.format() == Format::Json {
            let value = statistics::json(&statistics);
            output.json(&value);
        } else {
            output.result(&statistics::text_at(&args.path, &statistics, output.width()));
        }
        return Ok(Exit::Done);
    }
    let folder = model::look(source::open(&args.path, here, &args.links.follow_links)?)?;
    let layers = model::layers(&folder);
    if args.json || output.format() == Format::Json {
        output.json(&as_json(&folder, &layers));
        return Ok(Exit::Done);
    }
    output.findings(&folder.warnings);
    output.findings(&layers.classified.warnings);
    let width = output.width();
    output.result_by_line(|out| write_text(out, &folder, &layers, width));
    Ok(Exit::Done)
}

fn write_text(out: &mut dyn Write, folder: &ModelFolder, layers: &Layers, width: usize) -> io::Result<()> {
    let classes = &layers.classified.classes;
    let parts = folder.tensors.iter().filter(|tensor| tensor.part_of.is_some()).count();
    let tensors = counted(folder.tensors.len(), "tensor");
    writeln!(
        out,
        "{}: {} in {}, {} parameters, {}",
        visible(folder.config.model_type().unwrap_or("model of unknown type")),
        if parts > 0 {
            format!("{} in {tensors}", counted(folder.tensors.len() - parts, "weight"))
        } else {
            tensors
        },
        counted(folder.shards.len(), "file"),
        grouped(layers.parameters),
        bytes(folder.tensor_bytes()),
    )?;
    if let Some(config) = folder.config.quantization_config() {
        writeln!(out, "quantized: {}", visible(&quantization(config)))?;
    }
    /// Kind, role, type and encoding.
    type Class<'a> = [&'a str; 4];
    let mut types: BTreeMap<Class<'_>, (usize, u64, &str)> = BTreeMap::new();
    for (index, tensor) in folder.tensors.numbered() {
        // Scales and other parts count as bytes of their weight.
        let weight = tensor.part_of.unwrap_or(index);
        let (of, class) = (&folder.tensors[weight], &classes[weight]);
        let role = class.role.map_or("", crate::layer::LayerType::name);
        let entry = types.entry([class.kind.name(), role, of.stored.name(), stored(of)]).or_insert((
            0,
            0,
            of.stored_name(),
        ));
        entry.0 += usize::from(weight == index);
        entry.1 += tensor.bytes;
    }
    let mut rows: Vec<_> = types.into_iter().collect();
    rows.sort_by_key(|(_, (_, size, _))| std::cmp::Reverse(*size));
    // Of plain numbers alone nothing is to be said.
    let has_codes = folder.tensors.iter().any(|tensor| !stored(tensor).is_empty());
    let rows: Vec<_> = rows
        .into_iter()
        .map(|([kind, role, dtype, encoding], (count, size, first))| {
            let mut row = vec![kind.to_owned(), role.to_owned(), dtype.to_owned()];
            row.extend(has_codes.then(|| encoding.to_owned()));
            row.extend([count.to_string(), bytes(size), first.to_owned()]);
            row
        })
        .collect();
    let counted = if parts > 0 { "weights" } else { "tensors" };
    let columns = match has_codes {
        true => Columns {
            headings: &["kind", "role", "dtype", "encoding", counted, "size", "first of them"],
            numeric: &[4, 5],
            optional: &[6],
        },
        false => Columns {
            headings: &["kind", "role", "dtype", counted, "size", "first of them"],
            numeric: &[3, 4],
            optional: &[5],
        },
    };
    write!(
        out,
        "
{}
",
        table(columns, width, &rows)
    )?;
    let row = |(tensor, class): (&TensorInfo, &LayerClass)| {
        let role = class.role.map_or("", crate::layer::LayerType::name);
        [
            tensor.stored_name().to_owned(),
            tensor.stored.name().to_owned(),
            format!("{:?}", tensor.stored_shape()),
            class.kind.name().to_owned(),
            role.to_owned(),
            bytes(tensor.bytes),
        ]
    };
    let rows = || folder.tensors.iter().zip(classes);
    if has_codes {
        let headings = &["tensor", "dtype", "shape", "kind", "role", "encoding", "size"];
        let columns = Columns { headings, numeric: &[6], optional: &[4, 3] };
        let with_encoding = |item: (&TensorInfo, &LayerClass)| {
            let [name, dtype, shape, kind, role, size] = row(item);
            [name, dtype, shape, kind, role, stored(item.0).to_owned(), size]
        };
        return write_table(out, columns, width, || rows().map(with_encoding));
    }
    let headings = &["tensor", "dtype", "shape", "kind", "role", "size"];
    let columns = Columns { headings, numeric: &[5], optional: &[4, 3] };
    write_table(out, columns, width, || rows().map(row))
}

/// How a tensor is stored, for people: nothing for plain numbers.
fn stored(tensor: &TensorInfo) -> &'static str {
    match tensor.encoding() {
        None => "part",
        Some(unquantized::NAME) if tensor.is_unknown_code() => "not known",
        Some(unquantized::NAME) => "",
        Some(name) => name,
    }
}

/// A summary of a `quantization_config`, in one line.
fn quantization(config: &Value) -> String {
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let method = word(&config["quant_method"]).unwrap_or_else(|| "unknown method".to_owned());
    let mut parts = vec![method];
    parts.extend(word(&config["format"]));
    for group in config["config_groups"].as_object().into_iter().flat_map(|groups| groups.values()) {
        let weights = &group["weights"];
        let bits = weights["num_bits"].as_u64().map(|bits| format!("int{bits}"));
        let strategy = match (word(&weights["strategy"]), weights["group_size"].as_u64()) {
            (Some(strategy), Some(size)) => Some(format!("{strategy} {size}")),
            (strategy, _) => strategy,
        };
        let symmetric =
            weights["symmetric"].as_bool().map(|is| if is { "symmetric" } else { "asymmetric" }.to_owned());
        let targets: Vec<&str> =
            group["targets"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let scheme: Vec<String> = [bits, symmetric, strategy].into_iter().flatten().collect();
        parts.push(format!("{} for {}", scheme.join(" "), targets.join(", ")));
    }
    parts.join("; ")
}

/// A model for a program. Its tensors are written as they come: as a tree of values they would take more memory than all else.
#[derive(Serialize)]
struct AsJson<'a, T: Serialize> {
    model_type: Option<&'a str>,
    files: Vec<Value>,
    parameters: u64,
    bytes: u64,
    quantization_config: Option<&'a Value>,
    tensors: T,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    dtype: &'static str,
    /// The encoding by which its weights are read; `unknown` if it looks like codes that none reads. None for a part.
    encoding: Option<&'static str>,
    /// The tensor whose weights it is a part of.
    part_of: Option<&'a str>,
    shape: &'a [u64],
    file: &'a str,
    offset: u64,
    bytes: u64,
    kind: &'static str,
    kind_rule: &'static str,
    role: Option<&'static str>,
    role_rule: Option<&'static str>,
}

fn as_json(folder: &ModelFolder, layers: &Layers) -> impl Serialize {
    let files = folder.shards.iter().map(|shard| json!({"name": shard.name, "bytes": shard.len}));
    AsJson {
        model_type: folder.config.model_type(),
        files: files.collect(),
        parameters: layers.parameters,
        bytes: folder.tensor_bytes(),
        quantization_config: folder.config.quantization_config(),
        tensors: Each(|| {
            folder.tensors.iter().zip(&layers.classified.classes).map(|(tensor, class)| Tensor {
                name: tensor.stored_name(),
                dtype: tensor.stored.name(),
                encoding: if tensor.is_unknown_code() { Some("unknown") } else { tensor.encoding() },
                part_of: tensor.part_of.map(|weight| folder.tensors[weight].stored_name()),
                shape: tensor.stored_shape(),
                file: &folder.shards[tensor.shard].name,
                offset: tensor.offset,
                bytes: tensor.bytes,
                kind: class.kind.name(),
                kind_rule: class.kind_rule.words(),
                role: class.role.map(crate::layer::LayerType::name),
                role_rule: class.role_rule.map(Because::words),
            })
        }),
    }
}
