//! The record beside an output, from which the next run takes over what need not be made again.

use std::fs;

use monoquant::plan::Plan;
use monoquant::publish::hidden;
use monoquant::run::{self, Options, Silent};
use serde_json::Value;

use super::folder::Folder;
use super::{Target, findings};

/// A record as a whole (where the input begins with `{`), of whatever build, or changes of the record of a real run: a line each, `LINE POINTER JSON`
/// or `LINE`, which leaves that line out. The next run makes the same weights whatever the record says.
pub struct Record {
    folder: Folder,
    plan: Plan,
    weights: Vec<u8>,
    record: Vec<Value>,
}

const RECIPE: &str = "version: 1
stages:
  - {stage: load, model: model}
  - {stage: quantize-int4, targets: [Linear], group_size: 32}
  - {stage: validate}
  - {stage: check-warnings, sqnr_error_threshold: 3, sqnr_warning_threshold: 5}
  - {stage: export, path: out}
";

const TENSORS: &[(&str, &str, &[u64])] = &[
    ("model.layers.0.mlp.down_proj.weight", "BF16", &[32, 64]),
    ("model.layers.0.mlp.up_proj.weight", "F32", &[64, 32]),
    ("model.norm.weight", "BF16", &[32]),
];

impl Target for Record {
    fn new() -> Self {
        let folder = Folder::empty();
        let (header, data) = super::folder::header(TENSORS);
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        // Bytes of ordinary numbers: exponents vary little.
        file.extend((0..data).map(|at| if at % 2 == 1 { 60 } else { (at * 37 % 251) as u8 }));
        folder.write("model/model.safetensors", &file);
        folder.write("model/config.json", br#"{"model_type": "llama", "hidden_size": 32}"#);
        let plan = folder.plan(RECIPE).expect("a plan");
        run::run(&plan, &Options::default(), &Silent).expect("a run");
        let weights = fs::read(folder.path("out/model.safetensors")).expect("the output's weights");
        let text = fs::read_to_string(hidden::record(&folder.path("out"))).expect("a record");
        let unsealed = |line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            line.as_object_mut().expect("an object").remove("hash");
            line
        };
        let record = text.lines().map(unsealed).collect();
        Self { folder, plan, weights, record }
    }

    fn try_on(&self, input: &[u8]) {
        let record = if input.first() == Some(&b'{') { self.whole(input) } else { self.changed(input) };
        fs::write(hidden::record(&self.folder.path("out")), record).expect("a record");
        match run::run(&self.plan, &Options::default(), &Silent) {
            Ok(outcome) => findings::check(&outcome.findings),
            Err(failure) => findings::check_failure(&failure),
        }
        let found = fs::read(self.folder.path("out/model.safetensors")).expect("the output's weights");
        assert!(found == self.weights, "the record has changed the weights");
    }
}

impl Record {
    /// The record of the real run, without what differs from one machine and build to the next.
    pub fn real(&self) -> String {
        let mut lines = self.record.clone();
        let header = &mut lines[0];
        header["build"] = "".into();
        header["boot"] = "".into();
        for files in ["sources", "files"] {
            for file in header[files].as_array_mut().expect("files") {
                let identity = &mut file["identity"];
                let identity = if files == "sources" { &mut identity["file"] } else { identity };
                let identity = identity.as_object_mut().into_iter().flatten();
                identity.filter(|(name, _)| *name != "len").for_each(|(_, number)| *number = 1.into());
            }
        }
        run::sealed_record(&lines.iter().map(Value::to_string).collect::<Vec<_>>())
    }

    /// A whole record as if this build had written it just now, or nothing of it would be believed; as it is where its lines are
    /// no objects.
    fn whole(&self, input: &[u8]) -> Vec<u8> {
        let lines = input.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_slice).collect();
        let Ok(mut lines) = lines else { return input.to_vec() };
        if !lines.iter().all(Value::is_object) {
            return input.to_vec();
        }
        for name in ["record_version", "monoquant", "build", "boot"] {
            lines[0][name] = self.record[0][name].clone();
        }
        let lines: Vec<String> = lines
            .iter_mut()
            .map(|line| {
                line.as_object_mut().expect("an object").remove("hash");
                line.to_string()
            })
            .collect();
        run::sealed_record(&lines).into_bytes()
    }

    fn changed(&self, edits: &[u8]) -> Vec<u8> {
        let mut lines: Vec<Option<Value>> = self.record.iter().cloned().map(Some).collect();
        if let Some(Some(header)) = lines.first_mut() {
            // The files are not the ones that it was written of: what is in them is to be looked at.
            for inode in ["/sources/0/identity/file/ino", "/files/0/identity/ino"] {
                if let Some(inode) = header.pointer_mut(inode) {
                    *inode = 0.into();
                }
            }
        }
        for edit in String::from_utf8_lossy(edits).lines() {
            let mut words = edit.splitn(3, ' ');
            let line = words.next().and_then(|word| word.parse::<usize>().ok());
            let Some(slot) = line.and_then(|line| lines.get_mut(line)) else { continue };
            match (words.next(), words.next().map(serde_json::from_str)) {
                (None, _) => *slot = None,
                (Some(pointer), Some(Ok(new))) => {
                    if let Some(value) = slot.as_mut().and_then(|line| line.pointer_mut(pointer)) {
                        *value = new;
                    }
                }
                _ => {}
            }
        }
        // With the right hashes, or nothing of it would be believed.
        let mut lines: Vec<Value> = lines.into_iter().flatten().collect();
        let count = lines.len().saturating_sub(1);
        if let Some(tensors) = lines.first_mut().and_then(|header| header.pointer_mut("/tensors")) {
            *tensors = count.into();
        }
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        run::sealed_record(&lines).into_bytes()
    }
}
