//! A chunk of the model: blocks one after the other, with the embedding before the first block and the head behind the
//! last one.
//!
//! A model is a list of chunks. On one rank it has one; under pipeline parallelism a rank holds some of them, and what
//! flows between two chunks is the residual stream forward and its gradient backward, `[N, D]` each.

use crate::block::BlockSaved;
use crate::head::{HeadOutput, OutputGradient, OutputHead, OutputSaved};
use crate::prepared::Prepared;
use crate::{Block, Cx, Grads, Layer, Param};
use smelt_kernels::Tensor;

#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub embedding: Option<Param>, // [V, D]
    pub blocks: Vec<Block>,
    pub head: Option<OutputHead>,
}

/// What a chunk hands on.
pub(crate) enum Flow {
    /// To the next chunk: the residual stream, `[N, D]`.
    Hidden(Tensor),
    /// Of the last chunk.
    Output(HeadOutput),
}

/// The loss's derivative in what a chunk handed on.
pub(crate) enum FlowGradient {
    Hidden(Tensor),
    Output(OutputGradient),
}

/// Everything backward needs of a chunk's pass.
#[derive(Debug)]
pub(crate) struct ChunkSaved {
    blocks: Vec<BlockSaved>,
    pub head: Option<OutputSaved>,
}

impl Chunk {
    /// x: what the chunk before handed on; None for the first one, which reads the batch.
    fn enter(&self, cx: &Cx, batch: &Prepared, x: Option<Tensor>) -> Tensor {
        match (self.embedding, x) {
            (Some(embedding), None) => cx.backend.embedding(&batch.ids, cx.params.get(embedding)),
            (None, Some(x)) => x,
            (embedding, x) => panic!("chunk: embedding {embedding:?}, input {:?}", x.map(|x| x.shape())),
        }
    }

    pub(crate) fn forward(&self, cx: &Cx, batch: &Prepared, x: Option<Tensor>) -> (Flow, ChunkSaved) {
        let mut x = self.enter(cx, batch, x);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (y, saved) = block.forward(cx, x);
            blocks.push(saved);
            x = y;
        }
        match &self.head {
            None => (Flow::Hidden(x), ChunkSaved { blocks, head: None }),
            Some(head) => {
                let (out, saved) = head.forward(cx, batch, x, true);
                (Flow::Output(out), ChunkSaved { blocks, head: Some(saved) })
            }
        }
    }

    /// Forward without the MTP modules and without anything for backward: a block's saved state is dropped when the
    /// block is done.
    pub(crate) fn score(&self, cx: &Cx, batch: &Prepared, x: Option<Tensor>) -> Flow {
        let x = self.blocks.iter().fold(self.enter(cx, batch, x), |x, block| block.forward(cx, x).0);
        match &self.head {
            None => Flow::Hidden(x),
            Some(head) => Flow::Output(head.forward(cx, batch, x, false).0),
        }
    }

    /// Adds the gradients of a pass to `grads`. Returns the gradient of what the chunk before handed on; None for the
    /// first one.
    pub(crate) fn backward(
        &self,
        cx: &Cx,
        batch: &Prepared,
        saved: ChunkSaved,
        d: FlowGradient,
        grads: &mut Grads,
    ) -> Option<Tensor> {
        let mut dx = match (d, &self.head, saved.head) {
            (FlowGradient::Output(d), Some(head), Some(saved)) => head.backward(cx, batch, saved, d, grads),
            (FlowGradient::Hidden(dx), None, None) => dx,
            _ => panic!("chunk: the gradient is not of what was handed on"),
        };
        for (block, saved) in self.blocks.iter().zip(saved.blocks).rev() {
            dx = block.backward(cx, saved, dx, grads);
        }
        let Some(embedding) = self.embedding else { return Some(dx) };
        cx.backend.embedding_backward(&batch.ids, &dx, grads.get_mut(cx.backend, embedding));
        None
    }
}
