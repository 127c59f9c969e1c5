//! `quantize-int4`: quantization of weights to 4-bit integers.

super::quantize::quantize_stage! {
    /// Parameters of `quantize-int4`. If several quantize stages claim a module, the first one keeps it.
    QuantizeInt4, bits: 4, granularity: Group
}
