//! `quantize-int8`: quantization of weights to 8-bit integers.

super::quantize::quantize_stage! {
    /// Parameters of `quantize-int8`. If several quantize stages claim a module, the first one keeps it.
    QuantizeInt8, bits: 8, granularity: Channel
}
