//! Schemes as data, in reports and plans.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::format::encoding;
use crate::plan::QuantSpec;
use crate::quant::{Granularity, Observer};
use crate::stage::ActivationScheme;

/// How a tensor was quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SchemeRecord {
    /// Bits per code: 4 or 8.
    pub bits: usize,
    /// Whether the range is symmetric, without zero points.
    pub symmetric: bool,
    /// Which weights share a scale: `group`, `channel`, `tensor` or `block`.
    pub granularity: String,
    /// Consecutive columns of a row that share one scale; of `block` as many rows. None if `granularity` is another.
    pub group_size: Option<usize>,
    /// The observer that chose the ranges.
    pub observer: ObserverRecord,
    /// `gptq` or `guided` if codes were chosen with the model's activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<String>,
    /// `signed` if scales may be negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<String>,
    /// The type in which scales are stored, such as `BF16`; `U8` if they are exponents.
    pub scale_dtype: String,
    /// How codes lie in the file: the name of the format in compressed-tensors, such as `pack-quantized`.
    pub storage: String,
    /// How engines round activations: `none`, `dynamic-token` (int8) or `dynamic-token-fp8`.
    pub activations: String,
}

/// An observer and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ObserverRecord {
    /// `minmax`, `mse`, `imatrix-mse` or `percentile`; `none` if the tensor is re-labelled.
    pub name: String,
    /// Of a search: the share of the range by which it shrinks at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maxshrink: Option<f64>,
    /// Of a search: steps into which the whole range is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<f64>,
    /// Of a search: the power of the errors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<f64>,
    /// Of `percentile`: the percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentile: Option<f64>,
}

impl SchemeRecord {
    /// The data of a quantization spec.
    #[must_use]
    pub fn of(spec: &QuantSpec) -> Self {
        let scheme = &spec.scheme;
        let (granularity, group_size) = match scheme.granularity {
            Granularity::Group(size) => ("group", Some(size)),
            Granularity::Channel => ("channel", None),
            Granularity::Tensor => ("tensor", None),
            Granularity::Block(size) => ("block", Some(size)),
        };
        Self {
            bits: scheme.bits.count(),
            symmetric: scheme.symmetric,
            granularity: granularity.to_owned(),
            group_size,
            observer: if spec.is_relabelled {
                ObserverRecord::none()
            } else {
                ObserverRecord::of(&spec.observer)
            },
            rounding: spec.is_calibrated().then(|| spec.rounding.name().to_owned()),
            scales: spec.observer.is_signed().then(|| "signed".to_owned()),
            scale_dtype: scheme.stored_scales().0.to_owned(),
            storage: encoding::of(scheme).name().to_owned(),
            activations: match spec.activations {
                ActivationScheme::None => "none",
                ActivationScheme::DynamicToken => "dynamic-token",
                ActivationScheme::DynamicTokenFp8 => "dynamic-token-fp8",
            }
            .to_owned(),
        }
    }
}

impl ObserverRecord {
    /// Of scales that nothing chose.
    fn none() -> Self {
        Self { name: "none".to_owned(), ..Self::of(&Observer::Minmax) }
    }

    fn of(observer: &Observer) -> Self {
        let named = |name: &str| Self {
            name: name.to_owned(),
            maxshrink: None,
            grid: None,
            norm: None,
            percentile: None,
        };
        match observer {
            Observer::Minmax | Observer::SignedMinmax => named("minmax"),
            Observer::Percentile(percentile) => Self { percentile: Some(*percentile), ..named("percentile") },
            Observer::Mse(mse) => Self {
                maxshrink: Some(mse.maxshrink),
                grid: Some(mse.grid),
                norm: Some(mse.norm),
                ..named(if mse.last { "imatrix-mse" } else { "mse" })
            },
        }
    }
}

impl fmt::Display for SchemeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = if self.symmetric { "symmetric" } else { "asymmetric" };
        match self.storage.as_str() {
            "float-quantized" => f.write_str("fp8, ")?,
            "mxfp4-pack-quantized" => f.write_str("mxfp4, ")?,
            "nvfp4-pack-quantized" => f.write_str("nvfp4, ")?,
            _ => write!(f, "int{} {range}, ", self.bits)?,
        }
        match self.group_size {
            Some(size) if self.granularity == "block" => write!(f, "blocks of {size} × {size}"),
            Some(size) => write!(f, "groups of {size}"),
            None if self.granularity == "tensor" => f.write_str("one scale per tensor"),
            None => f.write_str("one scale per row"),
        }
    }
}

/// Reads a scheme. Reports of version 1 had it in words, which are as good as none.
///
/// # Errors
/// If it is neither data nor words.
pub(super) fn or_words<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SchemeRecord>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Data(Box<SchemeRecord>),
        Words(#[expect(dead_code, reason = "the words of an older report")] String),
    }
    Ok(match Option::<Written>::deserialize(from)? {
        Some(Written::Data(scheme)) => Some(*scheme),
        Some(Written::Words(_)) | None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_of_older_reports_are_understood() {
        #[derive(Deserialize)]
        struct Tensor {
            #[serde(default, deserialize_with = "or_words")]
            scheme: Option<SchemeRecord>,
        }
        let read = |text: &str| serde_json::from_str::<Tensor>(text).map(|tensor| tensor.scheme);
        assert_eq!(read(r#"{"scheme": "int4 symmetric, groups of 128"}"#).unwrap(), None);
        assert_eq!(read(r#"{"scheme": null}"#).unwrap(), None);
        let data = r#"{"scheme": {"bits": 4, "symmetric": true, "granularity": "group", "group_size": 128, "observer":
            {"name": "minmax"}, "scale_dtype": "BF16", "storage": "pack-quantized", "activations": "none"}}"#;
        assert_eq!(read(data).unwrap().unwrap().group_size, Some(128));
        assert!(read(r#"{"scheme": 4}"#).is_err());
    }
}
