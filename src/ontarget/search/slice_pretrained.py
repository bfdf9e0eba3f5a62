"""The super-network of a pretrained text encoder, by its architecture."""

from __future__ import annotations

from typing import Any

from ontarget.errors import SettingError
from ontarget.search.elastic_transformer import ElasticTransformer


def slice_pretrained(model: Any, *, outputs: int, length: int, option: str = "--source") -> ElasticTransformer:
    """A transformers BertModel or LlamaModel as a super-network. Raises SettingError for another architecture.

    Fewer layers are spread over the model's: they lose less than the first ones (benchmarks/instatune_half_latency.py).
    """
    kind = type(model).__name__
    if kind == "BertModel":
        from ontarget.search.elastic_bert import elastic_bert

        return elastic_bert(model, outputs=outputs, length=length, depth="spread")
    if kind == "LlamaModel":
        from ontarget.search.elastic_llama import elastic_llama

        return elastic_llama(model, outputs=outputs, length=length, depth="spread")
    raise SettingError(
        f"{kind} cannot be sliced.", allowed="BertModel, LlamaModel", option=option,
        next_step="choose a text encoder such as zoo:minilm or zoo:smollm2-135m",
    )  # fmt: skip
