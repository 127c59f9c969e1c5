//! Names of schemes and observers, as plans and reports show them.

use std::fmt;

use super::{Bits, Granularity, Observer, Scheme, Storage};

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.storage == Storage::Float8 {
            return match self.granularity {
                Granularity::Block(size) => write!(f, "fp8, blocks of {size} × {size}"),
                _ => f.write_str("fp8, one scale per row"),
            };
        }
        let bits = match self.bits {
            Bits::Four => "int4",
            Bits::Eight => "int8",
        };
        let range = if self.symmetric { "symmetric" } else { "asymmetric" };
        match self.granularity {
            Granularity::Group(size) => write!(f, "{bits} {range}, groups of {size}"),
            Granularity::Block(size) => write!(f, "{bits} {range}, blocks of {size} × {size}"),
            Granularity::Channel => write!(f, "{bits} {range}, one scale per row"),
            Granularity::Tensor => write!(f, "{bits} {range}, one scale per tensor"),
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
