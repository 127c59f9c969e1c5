//! `quantize-int8`: weights become 8-bit integers.

super::quantize::quantize_stage! {
    /// Parameters of `quantize-int8`. Of several quantize stages the first that claims a module keeps it.
    QuantizeInt8, bits: 8, granularity: Channel
}
