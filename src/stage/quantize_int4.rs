//! `quantize-int4`: weights become 4-bit integers.

super::quantize::quantize_stage! {
    /// Parameters of `quantize-int4`. Of several quantize stages the first that claims a module keeps it.
    QuantizeInt4, bits: 4, granularity: Group
}
