//! Rules of the engines' kernels about the rows, columns and groups of a matrix.
//!
//! They are taken from the sources of vLLM 0.32.0 and SGLang 0.5.23. `tests/interop/README.md` lists the files.

use crate::quant::{Bits, FloatType, Granularity, Scheme, Storage};
use crate::stage::ActivationScheme;

/// An engine that computes with the codes themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
}

impl Server {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Server::Vllm => "vLLM",
            Server::Sglang => "SGLang",
        }
    }
}

/// A matrix as a kernel sees it: on one GPU, with its parts fused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matrix {
    pub rows: u64,
    pub cols: u64,
    pub scheme: Scheme,
    pub activations: ActivationScheme,
    pub is_expert: bool,
    /// Whether it writes to the residual stream, and so is cut by columns.
    pub writes: bool,
}

impl Matrix {
    fn group(&self) -> Option<u64> {
        match self.scheme.granularity {
            Granularity::Group(size) => Some(size as u64),
            Granularity::Channel | Granularity::Tensor | Granularity::Block(_) => None,
        }
    }

    /// Of an expert: the width of the residual stream, and how many neurons it has.
    fn hidden_and_neurons(&self) -> (u64, u64) {
        if self.writes { (self.rows, self.cols) } else { (self.cols, self.rows / 2) }
    }

    fn is_grouped_by(&self, sizes: &[u64]) -> Result<(), Unfit> {
        match self.group() {
            Some(size) if !sizes.contains(&size) => Err(Unfit::Scheme),
            _ => Ok(()),
        }
    }
}

/// The reason why a kernel does not take a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It is not for the scheme, whatever the shape.
    Scheme,
    /// The shape.
    Shape(String),
}

/// A kernel.
pub(super) struct Kernel {
    pub server: Server,
    pub name: &'static str,
    /// The machines that it runs on.
    pub machines: &'static str,
    /// The shapes that it takes, for people.
    pub needs: &'static str,
    pub takes: fn(&Matrix) -> Result<(), Unfit>,
}

impl Kernel {
    /// Whether it is one of those for GPUs, between which a model may be cut.
    pub(super) fn is_for_gpus(&self) -> bool {
        self.machines.contains("GPU")
    }
}

/// All kernels, in the order in which the engines try them.
pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        server: Server::Vllm,
        name: "Machete",
        machines: "Hopper GPUs",
        needs: "columns in multiples of 64, rows of 128; groups of 64, 128 or a row",
        takes: machete,
    },
    Kernel {
        server: Server::Vllm,
        name: "Marlin",
        machines: "NVIDIA GPUs",
        needs: "any shape, which is padded; groups of 32, 64, 128 or a row; experts: a hidden size in multiples of 128, neurons \
                of 64 and of whole groups",
        takes: vllm_marlin,
    },
    Kernel {
        server: Server::Vllm,
        name: "Exllama",
        machines: "NVIDIA and AMD GPUs",
        needs: "F16; groups of any size; rows in multiples of a word's codes",
        takes: exllama,
    },
    Kernel {
        server: Server::Vllm,
        name: "Triton",
        machines: "NVIDIA and AMD GPUs",
        needs: "rows in multiples of 8; groups of 32, 64, 128, 256 or a row",
        takes: triton,
    },
    Kernel {
        server: Server::Vllm,
        name: "Triton for experts",
        machines: "NVIDIA and AMD GPUs",
        needs: "groups, of any size",
        takes: triton_for_experts,
    },
    Kernel {
        server: Server::Vllm,
        name: "CPU",
        machines: "x86 CPUs",
        needs: "rows and columns in multiples of 32; groups of an even size, or a row",
        takes: cpu,
    },
    Kernel {
        server: Server::Vllm,
        name: "scaled int8",
        machines: "GPUs and CPUs",
        needs: "any shape",
        takes: scaled_int8,
    },
    Kernel {
        server: Server::Vllm,
        name: "scaled FP8",
        machines: "GPUs and CPUs",
        needs: "any shape; experts on GPUs only",
        takes: scaled_fp8,
    },
    Kernel {
        server: Server::Vllm,
        name: "FP8 in blocks",
        machines: "GPUs, and CPUs with AMX",
        needs: "rows of each part in multiples of 128, but for the last",
        takes: block_fp8,
    },
    Kernel {
        server: Server::Vllm,
        name: "Marlin for FP8",
        machines: "NVIDIA GPUs",
        needs: "weights only, no experts; any shape",
        takes: marlin_fp8,
    },
    Kernel {
        server: Server::Vllm,
        name: "Marlin for FP4",
        machines: "NVIDIA GPUs",
        needs: "columns in multiples of 128 and rows of 64, or columns of 64 and rows of 128",
        takes: marlin_fp4,
    },
    Kernel {
        server: Server::Vllm,
        name: "CUTLASS W4A8",
        machines: "Hopper GPUs",
        needs: "BF16; int4 in groups of 128 with FP8 activations; rows and columns in multiples of 128",
        takes: cutlass_w4a8,
    },
    Kernel {
        server: Server::Sglang,
        name: "scaled FP8",
        machines: "NVIDIA and AMD GPUs",
        needs: "any shape",
        takes: scaled_fp8,
    },
    Kernel {
        server: Server::Sglang,
        name: "FP8 in blocks",
        machines: "NVIDIA and AMD GPUs",
        needs: "rows of each part in multiples of 128, but for the last",
        takes: block_fp8,
    },
    Kernel {
        server: Server::Sglang,
        name: "Marlin",
        machines: "NVIDIA GPUs",
        needs: "columns in multiples of 128 and rows of 64, or columns of 64 and rows of 128; groups of 32, 64, 128 or a row",
        takes: sglang_marlin,
    },
    Kernel {
        server: Server::Sglang,
        name: "scaled int8",
        machines: "NVIDIA GPUs",
        needs: "columns in multiples of 16, rows of 8",
        takes: sglang_int8,
    },
];

/// Packed codes whose activations stay as they are.
fn weights_only(matrix: &Matrix) -> Result<(), Unfit> {
    let is_packed = matrix.activations == ActivationScheme::None && matrix.scheme.storage == Storage::Packed;
    if is_packed && matrix.scheme.granularity != Granularity::Tensor { Ok(()) } else { Err(Unfit::Scheme) }
}

fn only(holds: bool) -> Result<(), Unfit> {
    if holds { Ok(()) } else { Err(Unfit::Scheme) }
}

fn multiple(what: &str, number: u64, of: u64) -> Result<(), Unfit> {
    if number.is_multiple_of(of) {
        Ok(())
    } else {
        Err(Unfit::Shape(format!("{number} {what} are no multiple of {of}")))
    }
}

fn machete(matrix: &Matrix) -> Result<(), Unfit> {
    weights_only(matrix)?;
    only(!matrix.is_expert)?;
    matrix.is_grouped_by(&[64, 128])?;
    multiple("columns", matrix.cols, 64)?;
    multiple("rows", matrix.rows, 128)
}

/// Types that Marlin has kernels of: there is none for int8 with zero points.
fn marlin_scheme(matrix: &Matrix) -> Result<(), Unfit> {
    weights_only(matrix)?;
    only(matrix.scheme.symmetric || matrix.scheme.bits == Bits::Four)?;
    matrix.is_grouped_by(&[32, 64, 128])
}

fn vllm_marlin(matrix: &Matrix) -> Result<(), Unfit> {
    marlin_scheme(matrix)?;
    if !matrix.is_expert {
        return Ok(());
    }
    let (hidden, neurons) = matrix.hidden_and_neurons();
    multiple("hidden columns", hidden, 128)?;
    multiple("neurons", neurons, matrix.group().unwrap_or(1).max(64))
}

fn exllama(matrix: &Matrix) -> Result<(), Unfit> {
    weights_only(matrix)?;
    let is_grouped = matrix.group().is_some();
    only(!matrix.is_expert && matrix.scheme.symmetric && is_grouped)?;
    only(matrix.scheme.scale_type == FloatType::F16)?;
    multiple("rows", matrix.rows, 32 / matrix.scheme.bits.count() as u64)
}

fn triton(matrix: &Matrix) -> Result<(), Unfit> {
    weights_only(matrix)?;
    only(!matrix.is_expert && matrix.scheme.bits == Bits::Four)?;
    matrix.is_grouped_by(&[32, 64, 128, 256, matrix.cols])?;
    multiple("rows", matrix.rows, 8)
}

fn triton_for_experts(matrix: &Matrix) -> Result<(), Unfit> {
    weights_only(matrix)?;
    only(matrix.is_expert && matrix.group().is_some())
}

fn cpu(matrix: &Matrix) -> Result<(), Unfit> {
    weights_only(matrix)?;
    only(!matrix.is_expert && matrix.scheme.bits == Bits::Four)?;
    multiple("columns", matrix.cols, 32)?;
    multiple("rows", matrix.rows, 32)
}

/// int8 weights with int8 activations.
fn w8a8(matrix: &Matrix) -> Result<(), Unfit> {
    only(matrix.activations == ActivationScheme::DynamicToken && matrix.scheme.bits == Bits::Eight)?;
    only(matrix.scheme.symmetric && matrix.group().is_none())
}

fn scaled_int8(matrix: &Matrix) -> Result<(), Unfit> {
    w8a8(matrix)
}

/// FP8 weights with FP8 activations.
fn w8a8_fp8(matrix: &Matrix) -> Result<(), Unfit> {
    let has_activations = matrix.activations == ActivationScheme::DynamicTokenFp8;
    only(has_activations && matrix.scheme.storage == Storage::Float8)
}

fn scaled_fp8(matrix: &Matrix) -> Result<(), Unfit> {
    w8a8_fp8(matrix)?;
    only(matrix.scheme.granularity == Granularity::Channel)
}

fn block_fp8(matrix: &Matrix) -> Result<(), Unfit> {
    w8a8_fp8(matrix)?;
    only(matrix.scheme.granularity != Granularity::Channel)
}

fn marlin_fp8(matrix: &Matrix) -> Result<(), Unfit> {
    only(matrix.activations == ActivationScheme::None && matrix.scheme.storage == Storage::Float8)?;
    only(!matrix.is_expert)
}

fn cutlass_w4a8(matrix: &Matrix) -> Result<(), Unfit> {
    let scheme = &matrix.scheme;
    only(matrix.activations == ActivationScheme::DynamicTokenFp8 && scheme.bits == Bits::Four)?;
    only(scheme.symmetric && scheme.scale_type == FloatType::Bf16)?;
    only(scheme.granularity == Granularity::Group(128))?;
    multiple("columns", matrix.cols, 128)?;
    multiple("rows", matrix.rows, 128)
}

fn marlin_fp4(matrix: &Matrix) -> Result<(), Unfit> {
    only(matrix.scheme.storage.is_float() && matrix.scheme.bits == Bits::Four)?;
    marlin_tiles(matrix)
}

fn sglang_marlin(matrix: &Matrix) -> Result<(), Unfit> {
    marlin_scheme(matrix)?;
    marlin_tiles(matrix)
}

/// Shapes that Marlin takes if nothing pads them.
fn marlin_tiles(matrix: &Matrix) -> Result<(), Unfit> {
    let Matrix { rows, cols, .. } = *matrix;
    let fits = |by_rows: u64, by_cols: u64| rows.is_multiple_of(by_rows) && cols.is_multiple_of(by_cols);
    if fits(64, 128) || fits(128, 64) {
        return Ok(());
    }
    Err(Unfit::Shape(format!(
        "{rows} rows and {cols} columns are not multiples of 64 and 128, nor of 128 and 64"
    )))
}

fn sglang_int8(matrix: &Matrix) -> Result<(), Unfit> {
    w8a8(matrix)?;
    only(!matrix.is_expert)?;
    multiple("columns", matrix.cols, 16)?;
    multiple("rows", matrix.rows, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: u64, cols: u64, bits: Bits, granularity: Granularity) -> Matrix {
        let scheme = Scheme {
            bits,
            symmetric: true,
            granularity,
            scale_type: FloatType::Bf16,
            storage: Storage::Packed,
        };
        Matrix { rows, cols, scheme, activations: ActivationScheme::None, is_expert: false, writes: false }
    }

    fn takers(matrix: &Matrix) -> Vec<String> {
        let takers = KERNELS.iter().filter(|kernel| (kernel.takes)(matrix).is_ok());
        takers.map(|kernel| format!("{} {}", kernel.server.name(), kernel.name)).collect()
    }

    #[test]
    fn shapes_at_the_edge_of_what_kernels_take() {
        let int4 = |rows, cols, group| takers(&matrix(rows, cols, Bits::Four, Granularity::Group(group)));
        let all = ["vLLM Machete", "vLLM Marlin", "vLLM Triton", "vLLM CPU", "SGLang Marlin"];
        assert_eq!(int4(128, 128, 128), all);
        assert_eq!(int4(128, 64, 64), all);
        // Rows in multiples of 64 do not suffice for Machete, columns of 64 then not for SGLang.
        assert_eq!(int4(192, 128, 64), ["vLLM Marlin", "vLLM Triton", "vLLM CPU", "SGLang Marlin"]);
        assert_eq!(int4(192, 192, 64), ["vLLM Marlin", "vLLM Triton", "vLLM CPU"]);
        assert_eq!(int4(1096, 256, 32), ["vLLM Marlin", "vLLM Triton"]);
        assert_eq!(int4(100, 96, 32), ["vLLM Marlin"]);
        assert_eq!(int4(128, 128, 16), ["vLLM CPU"]);
        let int8 = matrix(128, 128, Bits::Eight, Granularity::Channel);
        assert_eq!(takers(&int8), ["vLLM Machete", "vLLM Marlin", "SGLang Marlin"]);
        let asymmetric = Matrix { scheme: Scheme { symmetric: false, ..int8.scheme }, ..int8 };
        assert_eq!(takers(&asymmetric), ["vLLM Machete"]);
    }

    #[test]
    fn experts_that_marlin_does_not_take_are_for_triton() {
        let gate_up = |neurons: u64, hidden: u64, granularity| Matrix {
            is_expert: true,
            ..matrix(2 * neurons, hidden, Bits::Four, granularity)
        };
        let groups = Granularity::Group(32);
        assert_eq!(
            takers(&gate_up(128, 256, groups)),
            ["vLLM Marlin", "vLLM Triton for experts", "SGLang Marlin"]
        );
        assert_eq!(takers(&gate_up(352, 2816, groups)), ["vLLM Triton for experts", "SGLang Marlin"]);
        assert_eq!(takers(&gate_up(128, 192, Granularity::Channel)), ["SGLang Marlin"]);
    }
}
