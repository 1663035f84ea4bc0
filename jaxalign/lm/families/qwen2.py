"""Qwen2 and Qwen2.5: queries, keys and values have a bias, and small models a tied head.

Source: Qwen2.5 Technical Report (Qwen Team 2024).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxalign.lm.families import FAMILIES
from jaxalign.lm.families.llama import Llama
from jaxalign.lm.weights import Weight

if TYPE_CHECKING:
    from jaxalign.lm.config import LlamaConfig


class Qwen2(Llama):
    """Qwen2 and Qwen2.5, without experts."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    required = MappingProxyType(
        {
            name: value
            for name, value in Llama.required.items()
            if name not in ("attention_bias", "mlp_bias", "sliding_window")
        }
        | {"use_mrope": False}
    )
    # The size of a window says nothing where `use_sliding_window` is false.
    ignored = frozenset({"sliding_window", "max_window_layers"})
    defaults = MappingProxyType(
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "num_key_value_heads": 32}
    )
    gguf_pairs = False

    def fields(self, config: LlamaConfig) -> dict[str, Any]:
        """Return that no layer has a window; the biases need no field."""
        return {"use_sliding_window": False}

    def layer_weights(self, config: LlamaConfig) -> dict[str, Weight]:
        """Return the biases of queries, keys and values."""
        heads = {
            "q": ("heads", config.num_attention_heads),
            "k": ("kv_heads", config.num_key_value_heads),
            "v": ("kv_heads", config.num_key_value_heads),
        }
        return {
            f"{name}_bias": Weight(
                (count, config.head_dim),
                (axis, "head_dim"),
                f"self_attn.{name}_proj.bias",
                transposed=False,
                fan_in=None,
                initial=0.0,
            )
            for name, (axis, count) in heads.items()
        }


FAMILIES.register("qwen2")(Qwen2())
