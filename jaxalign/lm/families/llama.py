"""Llama 2 and 3, and what other families build on (SmolLM2 and TinyLlama are Llamas as well)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxalign.core.errors import UserError
from jaxalign.lm.families import FAMILIES

if TYPE_CHECKING:
    from jaxalign.lm.config import LlamaConfig
    from jaxalign.lm.weights import Weight


class Llama:
    """A family of models; other families override what they do differently.

    Attributes:
        model_type: Name of the family in `config.json`, and in the registry.
        architecture: The class of transformers that computes it.
        required: Fields of `config.json` that must have exactly this value, because no other is
            implemented.
        ignored: Fields that change nothing that is computed here.
        defaults: Values of fields that are missing, as transformers takes them.
        layer_types: Values that the list `layer_types` may hold.
        template_values: Names that the chat template reads, beside those of every template.
        gguf_pairs: Whether llama.cpp turns neighbouring dimensions of a head, and stores them so.
    """

    model_type: str = "llama"
    architecture: str = "LlamaForCausalLM"
    required: Mapping[str, Any] = MappingProxyType(
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "pretraining_tp": 1,
            "quantization_config": None,
            "is_decoder": False,
            "add_cross_attention": False,
            "partial_rotary_factor": 1.0,
            "sliding_window": None,
            "use_sliding_window": False,
            "rope_interleaved": False,
            "tie_encoder_decoder": False,
            "cross_attention_hidden_size": None,
            "pruned_heads": {},
            "chunk_size_feed_forward": 0,
        }
    )
    ignored: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = MappingProxyType(
        {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
    )
    layer_types: frozenset[str] = frozenset({"full_attention"})
    template_values: Mapping[str, Any] = MappingProxyType({})
    gguf_pairs: bool = True

    def handles(self, name: str, value: Any) -> bool:
        """Whether a field of `config.json` is one of the family's own, and has a possible value.

        Raises:
            UserError: If its value is not implemented.
        """
        if name == "layer_types":
            kinds = value if isinstance(value, list) else [value]
            known = all(isinstance(kind, str) and kind in self.layer_types for kind in kinds)
            if value is not None and not known:
                only = " and ".join(sorted(self.layer_types))
                raise UserError(f"config.json: {name}={value!r} is not handled (only {only} is)")
        elif name in self.required:
            if value != self.required[name]:
                only = self.required[name]
                raise UserError(f"config.json: {name}={value!r} is not handled (only {only!r} is)")
        else:
            return name in self.ignored
        return True

    def settings(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of `LlamaConfig` that follow from the family's own fields.

        Args:
            fields: The fields of `config.json`, with `defaults` for those that are missing.
        """
        return {}

    def fields(self, config: LlamaConfig) -> dict[str, Any]:
        """Return the fields of a `config.json` that transformers reads back as the same model."""
        return {"attention_bias": False, "mlp_bias": False}

    def layer_weights(self, config: LlamaConfig) -> dict[str, Weight]:
        """Return the weights of a layer beside those of a Llama.

        What is named `q_bias`, `k_bias`, `v_bias` or `o_bias` is added to that linear map's
        outputs; `q_norm` and `k_norm` scale normed queries and keys.
        """
        return {}


FAMILIES.register("llama")(Llama())
