//! Element types of a safetensors file.

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal;)+) => {
        /// The element type of a tensor: every type that a safetensors file can name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Dtype { $($(#[$doc])* $variant),+ }

        impl Dtype {
            /// All of them.
            pub const ALL: &[Dtype] = &[$(Dtype::$variant),+];

            /// The name in files, such as `BF16`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name),+ }
            }

            /// Bits of one element.
            #[must_use]
            pub fn bits(self) -> u64 {
                match self { $(Dtype::$variant => $bits),+ }
            }

            /// The type with exactly this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Dtype::$variant),)+ _ => None }
            }
        }
    };
}

dtypes! {
    /// One byte, zero or one.
    Bool = "BOOL", 8;
    /// OCP microscaling, 4 bits.
    F4 = "F4", 4;
    /// OCP microscaling, 6 bits, 2 of them exponent.
    F6E2m3 = "F6_E2M3", 6;
    /// OCP microscaling, 6 bits, 3 of them exponent.
    F6E3m2 = "F6_E3M2", 6;
    /// Unsigned, 8 bits.
    U8 = "U8", 8;
    /// Signed, 8 bits.
    I8 = "I8", 8;
    /// 8-bit float with 5 exponent bits and infinities.
    F8E5m2 = "F8_E5M2", 8;
    /// 8-bit float with 4 exponent bits and no infinity.
    F8E4m3 = "F8_E4M3", 8;
    /// An 8-bit exponent alone: a power of two.
    F8E8m0 = "F8_E8M0", 8;
    /// As `F8_E4M3`, without a negative zero.
    F8E4m3Fnuz = "F8_E4M3FNUZ", 8;
    /// As `F8_E5M2`, without a negative zero and infinities.
    F8E5m2Fnuz = "F8_E5M2FNUZ", 8;
    /// Signed, 16 bits.
    I16 = "I16", 16;
    /// Unsigned, 16 bits.
    U16 = "U16", 16;
    /// IEEE half precision.
    F16 = "F16", 16;
    /// The upper half of a single precision float.
    Bf16 = "BF16", 16;
    /// Signed, 32 bits.
    I32 = "I32", 32;
    /// Unsigned, 32 bits.
    U32 = "U32", 32;
    /// IEEE single precision.
    F32 = "F32", 32;
    /// Two single precision floats.
    C64 = "C64", 64;
    /// IEEE double precision.
    F64 = "F64", 64;
    /// Signed, 64 bits.
    I64 = "I64", 64;
    /// Unsigned, 64 bits.
    U64 = "U64", 64;
}

impl Dtype {
    /// Whether weights of this type can be quantized as they are: F64, F32, F16 or BF16.
    #[must_use]
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    }

    /// Whether it is an 8-bit float with a significand, which means nothing without its scale.
    #[must_use]
    pub fn is_fp8(self) -> bool {
        matches!(self, Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::F8E4m3Fnuz | Dtype::F8E5m2Fnuz)
    }

    /// Bytes per element, if that is a whole number.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        self.bits().is_multiple_of(8).then_some(self.bits() / 8)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Dtype;

    #[test]
    fn names_and_sizes_are_those_of_the_reference_implementation() {
        for &dtype in Dtype::ALL {
            let reference: safetensors::Dtype =
                serde_json::from_value(serde_json::Value::from(dtype.name())).expect("a name of the format");
            assert_eq!(u64::try_from(reference.bitsize()).unwrap(), dtype.bits(), "{dtype}");
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("bf16"), None);
    }
}
