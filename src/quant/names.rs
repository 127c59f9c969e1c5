//! Names of schemes and observers, as plans and reports show them.

use std::fmt;

use super::{Bits, Granularity, Observer, Scheme, Storage};

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = if self.symmetric { "symmetric" } else { "asymmetric" };
        match (self.storage, self.bits) {
            (Storage::Float8, _) => f.write_str("fp8")?,
            (Storage::Mxfp4, _) => f.write_str("mxfp4")?,
            (Storage::Nvfp4, _) => f.write_str("nvfp4")?,
            (Storage::Packed | Storage::Plain, Bits::Four) => write!(f, "int4 {range}")?,
            (Storage::Packed | Storage::Plain, Bits::Eight) => write!(f, "int8 {range}")?,
        }
        match self.granularity {
            Granularity::Group(size) => write!(f, ", groups of {size}"),
            Granularity::Block(size) => write!(f, ", blocks of {size} × {size}"),
            Granularity::Channel => f.write_str(", one scale per row"),
            Granularity::Tensor => f.write_str(", one scale per tensor"),
        }
    }
}

impl fmt::Display for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Observer::Minmax => f.write_str("minmax"),
            Observer::SignedMinmax => f.write_str("minmax, signed scales"),
            Observer::Mse(mse) => {
                f.write_str(if mse.last { "imatrix-mse" } else { "mse" })?;
                f.write_str(if mse.signed { ", signed scales" } else { "" })
            }
            Observer::Percentile(percent) => write!(f, "percentile {percent}"),
        }
    }
}
