//! Comparison of two quantized models by their reports, or by their weights.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use crate::cancel::Cancel;
use crate::exit::Exit;
use crate::finding::{Failure, Finding};
use crate::format::source;
use crate::fs::{exclusive, paths};
use crate::model::{self, ModelFolder};
use crate::network::{Quantized, Weights};
use crate::report::comparison::{Comparison, Layer, Side};
use crate::report::{self, Report};
use crate::threads::Pool;

/// Weights that are decoded at once, of each model.
const CHUNK: usize = 1 << 20;

/// Memory of a thread: chunks of three models, and what decoding them takes.
const THREAD_BYTES: usize = CHUNK * 4 * 6;

/// The models to compare.
#[derive(Debug)]
pub struct Sides<'a> {
    /// The model that the other is compared with: a report, an output directory, another model's folder, or `hf://org/name`. With the
    /// name that it is told by.
    pub a: (&'a str, &'a str),
    /// The model that is compared, likewise.
    pub b: (&'a str, &'a str),
    /// The model that both were made from.
    pub source: Option<&'a str>,
    /// Folders that links may lead to.
    pub follow_links: &'a [std::path::PathBuf],
}

/// Compares two models. Their reports are compared if both have one and no source is given, else their weights.
///
/// # Errors
/// If one cannot be read, or the work is cancelled.
pub fn compare(sides: &Sides<'_>, threads: usize, cancel: &Cancel) -> Result<Comparison, Failure> {
    if sides.source.is_none()
        && let (Some(a), Some(b)) = (report_of(sides.a.0)?, report_of(sides.b.0)?)
    {
        return Ok(Comparison::of((sides.a.1, &a), (sides.b.1, &b)));
    }
    let open = |word: &str| {
        if is_report(word) {
            let finding =
                Finding::error("compare::report", format!("`{word}` is a report, which has no weights"))
                    .help("Name two reports, or two directories.");
            return Err(Failure::new(Exit::BadRecipe, finding));
        }
        model::look(source::open(word, Path::new("."), sides.follow_links)?)
    };
    let (a, b) = (open(sides.a.0)?, open(sides.b.0)?);
    let original = sides.source.map(open).transpose()?;
    let (in_a, in_b) = (Quantized::open(&a, &a.config.raw)?, Quantized::open(&b, &b.config.raw)?);
    let given = original.as_ref().map(|model| Quantized::open(model, &model.config.raw)).transpose()?;
    let is_source = |model: &Quantized<'_>| model.matrices().next().is_none();
    let reference = match &given {
        Some(given) => Some(given),
        None if is_source(&in_a) => Some(&in_a),
        None if is_source(&in_b) => Some(&in_b),
        None => None,
    };
    let pool = Pool::start(threads, THREAD_BYTES);
    let work = Work { a: &in_a, b: &in_b, reference, cancel };
    let names: Vec<&str> = in_a.matrices().chain(in_b.matrices()).map(|(name, ..)| name).collect();
    let names: std::collections::BTreeSet<&str> = names.into_iter().collect();
    let names: Vec<&str> = names.into_iter().collect();
    let measured: Result<Vec<Option<Energies>>, Failure> =
        pool.install(|| names.par_iter().map(|name| work.measure(name)).collect());
    let measured: BTreeMap<&str, Energies> =
        names.iter().zip(measured?).filter_map(|(name, found)| Some((*name, found?))).collect();
    Ok(put_together((sides.a.1, &a, &in_a), (sides.b.1, &b, &in_b), &measured, reference.is_some()))
}

fn is_report(word: &str) -> bool {
    let path = Path::new(word);
    path.extension().is_some_and(|extension| extension == "json") && !paths::is_folder(path)
}

/// The report that a word names, or that lies in the directory that it names.
fn report_of(word: &str) -> Result<Option<Report>, Failure> {
    let path = Path::new(word);
    if is_report(word) {
        return report::read(path).map(Some);
    }
    let inside = path.join(report::FILE_NAME);
    if !paths::is_address(word) && exclusive::is_there(&inside) {
        report::read(&inside).map(Some)
    } else {
        Ok(None)
    }
}

/// Sums of squares over a matrix.
#[derive(Debug, Clone, Copy, Default)]
struct Energies {
    /// Of the reference's weights, or of A's if there is none.
    signal: f64,
    /// Of the error of A.
    noise_a: f64,
    /// Of the error of B.
    noise_b: f64,
    /// Of A less B.
    difference: f64,
}

impl Energies {
    fn add(&mut self, other: &Self) {
        self.signal += other.signal;
        self.noise_a += other.noise_a;
        self.noise_b += other.noise_b;
        self.difference += other.difference;
    }
}

struct Work<'a, 'm> {
    a: &'a Quantized<'m>,
    b: &'a Quantized<'m>,
    reference: Option<&'a Quantized<'m>>,
    cancel: &'a Cancel,
}

impl Work<'_, '_> {
    /// Compares a matrix. None if not all models have it in the same shape.
    fn measure(&self, name: &str) -> Result<Option<Energies>, Failure> {
        let shape = |model: &Quantized<'_>| model.shape(name).filter(|shape| shape.len() == 2);
        let Some(own) = shape(self.a) else { return Ok(None) };
        let others = [Some(self.b), self.reference].into_iter().flatten();
        if others.map(shape).any(|other| other.as_ref() != Some(&own)) {
            return Ok(None);
        }
        let (rows, columns) = (own[0], own[1].max(1));
        let step = (CHUNK / columns).max(1);
        let mut sum = Energies::default();
        for start in (0..rows).step_by(step) {
            self.cancel.check()?;
            let range = start..rows.min(start + step);
            let read = |model: &Quantized<'_>| {
                model.read(name, range.clone()).map_err(|finding| Failure::new(Exit::BadModel, finding))
            };
            let (a, b) = (read(self.a)?, read(self.b)?);
            let reference = self.reference.map(read).transpose()?;
            let of = reference.as_ref().unwrap_or(&a);
            let square = |x: f32, y: f32| (f64::from(x) - f64::from(y)).powi(2);
            let mut part = Energies::default();
            for ((w, a), b) in of.iter().zip(&a).zip(&b) {
                part.add(&Energies {
                    signal: f64::from(*w).powi(2),
                    noise_a: square(*w, *a),
                    noise_b: square(*w, *b),
                    difference: square(*a, *b),
                });
            }
            sum.add(&part);
        }
        Ok(Some(sum))
    }
}

/// 10·log10 of a ratio. None if nothing differs or there is nothing.
fn decibels(signal: f64, noise: f64) -> Option<f64> {
    (signal > 0.0 && noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}

type Opened<'a> = (&'a str, &'a ModelFolder, &'a Quantized<'a>);

fn put_together(
    a: Opened<'_>,
    b: Opened<'_>,
    measured: &BTreeMap<&str, Energies>,
    has_reference: bool,
) -> Comparison {
    let mut sum = Energies::default();
    measured.values().for_each(|energies| sum.add(energies));
    let side = |(name, model, quantized): Opened<'_>, noise: fn(&Energies) -> f64| {
        let sqnr = |energies: &Energies| {
            if has_reference { decibels(energies.signal, noise(energies)) } else { None }
        };
        let matrices: BTreeMap<&str, (String, u64)> =
            quantized.matrices().map(|(name, scheme, bytes)| (name, (scheme, bytes))).collect();
        let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
        for name in quantized.names() {
            let own = matrices.get(name.as_str());
            let bytes = own.map(|(_, bytes)| *bytes).or_else(|| Some(model.by_name(&name)?.bytes));
            let sqnr_db = own.and(measured.get(name.as_str())).and_then(sqnr);
            layers.insert(name, Layer { scheme: own.map(|(scheme, _)| scheme.clone()), sqnr_db, bytes });
        }
        let side = Side {
            name: name.to_owned(),
            bytes: Some(model.shards.iter().map(|shard| shard.len).sum()),
            quantized: matrices.len(),
            sqnr_db: if matrices.is_empty() { None } else { sqnr(&sum) },
            min_sqnr_db: layers.values().filter_map(|layer| layer.sqnr_db).min_by(f64::total_cmp),
            kl: None,
        };
        (side, layers)
    };
    let differences: BTreeMap<String, Option<f64>> = measured
        .iter()
        .filter(|_| !has_reference)
        .map(|(name, energies)| ((*name).to_owned(), decibels(energies.signal, energies.difference)))
        .collect();
    let sides = (side(a, |energies| energies.noise_a), side(b, |energies| energies.noise_b));
    let mut found = Comparison::between(sides.0, sides.1, &differences);
    found.difference_db = if has_reference { None } else { decibels(sum.signal, sum.difference) };
    found
}
