//! Tasks: what is read, quantized and written as one. A task is a tensor, or one of the matrices of a stack of experts.

use crate::ids::TensorId;
use crate::model::{ExpertMatrix, MatrixView, ModelFolder};

/// A tensor or a matrix of a stack of experts that is read, quantized and written as one. There may be millions, so it
/// holds only what does not follow from its tensor. [`super::task_list`] shows tasks as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    tensor: TensorId,
    form: Form,
    expert: Option<Box<ExpertMatrix>>,
}

/// What a whole tensor is taken as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Bytes, as they are.
    Bytes,
    /// A matrix [out, in].
    Matrix,
    /// A matrix [in, out].
    Transposed,
}

impl Task {
    /// A tensor whose bytes are taken as they are.
    #[must_use]
    pub fn bytes(tensor: TensorId) -> Self {
        Self { tensor, form: Form::Bytes, expert: None }
    }

    /// A tensor that is a matrix.
    #[must_use]
    pub fn matrix_of(tensor: TensorId, is_transposed: bool) -> Self {
        let form = if is_transposed { Form::Transposed } else { Form::Matrix };
        Self { tensor, form, expert: None }
    }

    /// One matrix of a stack of experts.
    #[must_use]
    pub fn expert(tensor: TensorId, matrix: ExpertMatrix) -> Self {
        Self { tensor, form: Form::Matrix, expert: Some(Box::new(matrix)) }
    }

    /// The source tensor.
    #[must_use]
    pub fn tensor(&self) -> TensorId {
        self.tensor
    }

    /// The module that the task is in the output, such as `model.layers.0.mlp.experts.3.up_proj`.
    #[must_use]
    pub fn module<'p>(&'p self, model: &'p ModelFolder) -> &'p str {
        match &self.expert {
            Some(expert) => &expert.module,
            None => model.tensors[self.tensor()].module(),
        }
    }

    /// The module, if that is not the tensor's own.
    #[must_use]
    pub fn own_module(&self) -> Option<&str> {
        self.expert.as_ref().map(|expert| expert.module.as_str())
    }

    /// The weight matrix if the task is one. None if the tensor's bytes are copied unchanged.
    #[must_use]
    pub fn matrix(&self, model: &ModelFolder) -> Option<MatrixView> {
        let info = &model.tensors[self.tensor()];
        match (&self.expert, self.form) {
            (Some(expert), _) => Some(expert.view),
            (None, Form::Bytes) => None,
            (None, Form::Matrix) => MatrixView::whole(info),
            (None, Form::Transposed) => MatrixView::transposed(info).or_else(|| MatrixView::whole(info)),
        }
    }
}
