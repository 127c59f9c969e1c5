//! NVFP4 as compressed-tensors has it: `nvfp4-pack-quantized`, two E2M1 codes per byte, a scale in FP8 (E4M3) per 16 columns,
//! and one in F32 by which these are divided. It is written here; [`super::nvfp4`] reads it.

use super::small_floats::{E2M1, E4M3};
use super::{Contents, Encoding, Part, WrittenEncoding, codes, integer_part, scales, whole};
use crate::quant::{FloatType, Role, Scheme, Storage};

/// `nvfp4-pack-quantized`.
#[derive(Debug)]
pub(super) struct Nvfp4Packed;

impl Encoding for Nvfp4Packed {
    fn name(&self) -> &'static str {
        "nvfp4-pack-quantized"
    }

    fn written(&self) -> Option<&dyn WrittenEncoding> {
        Some(self)
    }
}

/// The scale for all weights.
fn global_scale() -> Part {
    let dtype = FloatType::F32;
    Part {
        role: Role::GlobalScale,
        dtype: dtype.name(),
        shape: vec![1],
        bytes: dtype.bytes() as u64,
        contents: Contents::Same,
    }
}

impl WrittenEncoding for Nvfp4Packed {
    fn stores(&self, scheme: &Scheme) -> bool {
        scheme.storage == Storage::Nvfp4
    }

    fn roles(&self, _: &Scheme) -> &'static [(Role, &'static str)] {
        &[
            (Role::Codes, "weight_packed"),
            (Role::Scales, "weight_scale"),
            (Role::GlobalScale, "weight_global_scale"),
        ]
    }

    fn part(&self, scheme: &Scheme, role: Role, rows: u64, columns: u64) -> Part {
        match role {
            Role::GlobalScale => global_scale(),
            _ => integer_part(scheme, role, rows, columns),
        }
    }

    fn decode<'a>(
        &self,
        scheme: &Scheme,
        rows: usize,
        columns: usize,
        part: &dyn Fn(Role) -> Option<&'a [u8]>,
    ) -> Option<Vec<f32>> {
        let codes = whole(&codes(scheme, rows as u64, columns as u64), part)?;
        let locals = whole(&scales(scheme, rows as u64, columns as u64), part)?;
        let of_all = *FloatType::F32.widen(whole(&global_scale(), part)?).first()?;
        let mut weights = Vec::with_capacity(rows * columns);
        for (codes, &local) in codes.chunks(scheme.group_cols(columns).max(2) / 2).zip(locals) {
            let scale = E4M3[usize::from(local)] / of_all;
            let meant = |nibble: u8| scheme.scale_type.round(E2M1[usize::from(nibble)] * scale);
            weights.extend(codes.iter().flat_map(|code| [meant(code & 15), meant(code >> 4)]));
        }
        Some(weights)
    }
}
