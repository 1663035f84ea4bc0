"""Qwen3: every head's queries and keys are normed, and heads have a width of their own.

Its chat template lets the model think before it replies unless `enable_thinking` is false. Surveys
read the reply itself, so here it is false: the template then writes an empty thought.

Source: Qwen3 Technical Report (Qwen Team 2025).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxalign.lm.families import FAMILIES
from jaxalign.lm.families.llama import Llama
from jaxalign.lm.weights import Weight

if TYPE_CHECKING:
    from jaxalign.lm.config import LlamaConfig


class Qwen3(Llama):
    """Qwen3, without experts."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    required = MappingProxyType(
        {name: value for name, value in Llama.required.items() if name != "sliding_window"}
    )
    # The size of a window says nothing where `use_sliding_window` is false.
    ignored = frozenset({"sliding_window", "max_window_layers"})
    defaults = MappingProxyType(
        {
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 32,
            "head_dim": 128,
        }
    )
    template_values = MappingProxyType({"enable_thinking": False})
    gguf_pairs = False

    def fields(self, config: LlamaConfig) -> dict[str, Any]:
        """Return that there are no biases and no windows."""
        return {"attention_bias": False, "use_sliding_window": False}

    def layer_weights(self, config: LlamaConfig) -> dict[str, Weight]:
        """Return the scales of the norms of queries and keys, which all heads share."""
        return {
            f"{name}_norm": Weight(
                (config.head_dim,),
                ("head_dim",),
                f"self_attn.{name}_norm.weight",
                transposed=False,
                fan_in=None,
            )
            for name in ("q", "k")
        }


FAMILIES.register("qwen3")(Qwen3())
