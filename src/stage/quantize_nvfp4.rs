//! `quantize-nvfp4`: quantization of weights to 4-bit floats with a scale in FP8 per 16 columns.

super::quantize::float4_stage! {
    /// Parameters of `quantize-nvfp4`. If several quantize stages claim a module, the first one keeps it.
    QuantizeNvfp4, "nvfp4", Nvfp4, group: 16
}
