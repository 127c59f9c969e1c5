//! The scale and zero point of a whole tensor.

use super::Scheme;

/// The one scale and zero point of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorParams {
    /// A value of the scheme's scale type, finite and above 0.
    pub scale: f32,
    /// 0 if symmetric.
    pub zero_point: i8,
}

impl TensorParams {
    /// The bytes of the scale tensor.
    #[must_use]
    pub fn scale_bytes(&self, scheme: &Scheme) -> Vec<u8> {
        let mut bytes = Vec::new();
        scheme.scale_type.narrow(&[self.scale], &mut bytes);
        bytes
    }

    /// The bytes of the zero-point tensor, one I8; none if symmetric.
    #[must_use]
    pub fn zero_point_bytes(&self, scheme: &Scheme) -> Vec<u8> {
        if scheme.symmetric { Vec::new() } else { vec![self.zero_point as u8] }
    }
}
