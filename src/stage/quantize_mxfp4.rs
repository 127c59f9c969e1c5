//! `quantize-mxfp4`: quantization of weights to 4-bit floats with an exponent per 32 columns.

super::quantize::float4_stage! {
    /// Parameters of `quantize-mxfp4`. If several quantize stages claim a module, the first one keeps it.
    QuantizeMxfp4, "mxfp4", Mxfp4, group: 32
}
