"""A language model made ready to answer on its device: what is served, bundled and timed is this form of it."""

from __future__ import annotations

from typing import Any

from ontarget.serve.fused_decoder import fuse_decoder
from ontarget.serve.packed_linear import pack_linears


def lay_out_to_answer(model: Any) -> None:
    """On a CPU, decoder layers in fewer operators and matrices in the order that oneDNN reads them, in place; elsewhere
    nothing. The model cannot be trained or saved any more. Same arithmetic, other order of sums."""
    if model.device.type == "cpu":
        fuse_decoder(model)
        pack_linears(model)
