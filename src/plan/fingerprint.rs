//! Fingerprints of all settings that decide the output bytes of a source tensor. If two plans agree on the
//! fingerprint and the tensor holds the same bytes, the outputs are the same, too.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Checks, ExportPlan, Plan, shared_scales};
use crate::ids::{ExportId, IdVec, TensorId};

/// The build of this program: a hash of all that decides what it computes. Another build may give other codes, scales or
/// measurements, so nothing of it is mixed in.
pub(crate) const BUILD: &str = env!("MONOQUANT_BUILD");

/// The first 128 bits of a BLAKE3 hash; in hexadecimal where it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint([u8; 16]);

impl Fingerprint {
    fn of(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FingerprintVisitor)
    }
}

struct FingerprintVisitor;

impl de::Visitor<'_> for FingerprintVisitor {
    type Value = Fingerprint;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 hexadecimal digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Fingerprint, E> {
        let digits = (text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text);
        let number = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        number.map(|number| Fingerprint(number.to_be_bytes())).ok_or_else(|| E::custom("no fingerprint"))
    }
}

/// The fingerprints of all source tensors of a plan.
#[derive(Debug)]
pub(crate) struct Prints {
    exports: usize,
    numbers: IdVec<TensorId, Fingerprint>,
    outputs: Vec<Fingerprint>,
}

impl Prints {
    /// The fingerprints of a plan's source tensors. They do not cover the tensors' bytes, but the statistics that weigh them.
    #[must_use]
    pub(crate) fn of(plan: &Plan) -> Self {
        Self::with(plan, true)
    }

    /// The same without the codes that rounding with calibration has chosen, which parts choose one after another.
    #[must_use]
    pub(crate) fn without_codes(plan: &Plan) -> Self {
        Self::with(plan, false)
    }

    fn with(plan: &Plan, codes: bool) -> Self {
        let (exports, tensors) = (plan.exports.len(), plan.model.tensors.len());
        let mut out = Self {
            exports,
            numbers: IdVec::with_capacity(tensors),
            outputs: Vec::with_capacity(exports * tensors),
        };
        let groups = shared_scales::tensors(plan.content());
        let group_of: HashMap<TensorId, &[TensorId]> =
            groups.iter().flat_map(|group| group.iter().map(|tensor| (*tensor, group.as_slice()))).collect();
        for tensor in plan.model.tensors.ids() {
            let mut numbers = numbers(plan, tensor, codes);
            for other in group_of.get(&tensor).copied().unwrap_or_default() {
                add(&mut numbers, format_args!(" {:?}", plan.model.tensors[*other].name));
            }
            out.numbers.push(Fingerprint::of(&numbers));
            for export in &plan.exports {
                out.outputs.push(outputs(plan, export, tensor, numbers.clone()));
            }
        }
        out
    }

    /// What is measured of a tensor: the stored type and shape, the matrices and how they are quantized.
    #[must_use]
    pub(crate) fn numbers(&self, tensor: TensorId) -> Fingerprint {
        self.numbers[tensor]
    }

    /// What is written of a tensor by an export, wherever it is put.
    #[must_use]
    pub(crate) fn output(&self, export: ExportId, tensor: TensorId) -> Fingerprint {
        self.outputs[tensor.index() * self.exports + export.index()]
    }
}

/// Writes to a hash, which takes everything.
fn add(hasher: &mut blake3::Hasher, text: fmt::Arguments<'_>) {
    let _ = hasher.write_fmt(text);
}

fn numbers(plan: &Plan, tensor: TensorId, codes: bool) -> blake3::Hasher {
    let info = &plan.model.tensors[tensor];
    let encoded = info.encoded.as_ref().map(|encoded| (encoded.encoding, &encoded.matrix));
    let action = plan.decisions[tensor].spec().map(|spec| (spec.scheme, spec.observer, spec.is_relabelled));
    let mut hasher = blake3::Hasher::new();
    add(&mut hasher, format_args!("{BUILD} {} {:?} {encoded:?} {action:?}", info.stored, info.shape));
    for index in plan.tasks_of(tensor) {
        add(&mut hasher, format_args!(" {:?}", plan.tasks[index].matrix(&plan.model)));
        if let Some(importance) = plan.weighing.of(index) {
            let mut columns = blake3::Hasher::new();
            for column in importance.columns() {
                columns.update(&column.to_le_bytes());
            }
            add(&mut hasher, format_args!(" {}", columns.finalize().to_hex()));
        }
        if let Some(codes) =
            plan.roundings.as_ref().and_then(|roundings| roundings.chosen(index)).filter(|_| codes)
        {
            add(&mut hasher, format_args!(" {}", codes.hash));
        }
    }
    hasher
}

fn outputs(plan: &Plan, export: &ExportPlan, tensor: TensorId, mut hasher: blake3::Hasher) -> Fingerprint {
    let content = plan.content();
    add(&mut hasher, format_args!(" {:?}", export.format));
    for output in export.tensors_of(plan, tensor) {
        let written = &export.tensors[output];
        let (role, dtype, shape) = (written.role(content), written.dtype(content), written.shape(content));
        add(&mut hasher, format_args!(" {role:?} {dtype} {shape:?}"));
    }
    Fingerprint::of(&hasher)
}

/// The fingerprint of all that decides the weight files of a run and their records, on whatever machine: the same for all
/// parts that can be joined, if its prints are without codes. Gates, other files and the places of the outputs are not in it.
#[must_use]
pub(crate) fn of_plan(plan: &Plan, prints: &Prints, checks: Checks) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    if let Some(roundings) = &plan.roundings {
        add(
            &mut hasher,
            format_args!("{:?} ", roundings.moments.as_ref().map(|given| given.identity.anywhere())),
        );
        for spec in plan.decisions.iter().filter_map(|decision| decision.spec()) {
            add(&mut hasher, format_args!("{:?} ", spec.rounding));
        }
    }
    add(&mut hasher, format_args!("{BUILD} {checks:?} {}", plan.asks_for_hashes()));
    for shard in &plan.model.shards {
        add(&mut hasher, format_args!(" {:?} {:?}", shard.name, shard.identity.anywhere()));
    }
    for print in &prints.outputs {
        hasher.update(&print.0);
    }
    for export in &plan.exports {
        hasher.update(&layout(plan, export).0);
    }
    Fingerprint::of(&hasher)
}

/// The fingerprint of the layout of an export's weight files.
#[must_use]
pub(crate) fn layout(plan: &Plan, export: &ExportPlan) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for (index, file) in export.files.numbered() {
        for part in [file.name.as_bytes(), &file.bytes.to_le_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(&file.header_len.to_le_bytes());
        // A hash takes everything.
        let _ = export.write_header(plan.content(), index, &mut hasher);
    }
    Fingerprint::of(&hasher)
}
