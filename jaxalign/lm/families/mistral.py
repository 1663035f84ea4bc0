"""Mistral: a Llama whose first version sees a window of the last 4,096 tokens only.

Windows are not computed. A sequence that is no longer than the window is seen whole, so a model
with a window is read as one of that many positions, and longer sequences are refused as always.
Versions 0.2 and 0.3 of Mistral 7B have no window.

Source: Mistral 7B (Jiang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxalign.core.errors import UserError
from jaxalign.lm.families import FAMILIES
from jaxalign.lm.families.llama import Llama

if TYPE_CHECKING:
    from jaxalign.lm.config import LlamaConfig


class Mistral(Llama):
    """Mistral 7B, Nemo and what is tuned from them."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    required = MappingProxyType(
        {name: value for name, value in Llama.required.items() if name != "sliding_window"}
    )
    ignored = frozenset({"sliding_window"})  # read by `settings`
    defaults = MappingProxyType(
        {
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        }
    )
    layer_types = frozenset({"full_attention", "sliding_attention"})

    def settings(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the window, and positions cut to it."""
        window, positions = fields["sliding_window"], fields["max_position_embeddings"]
        if window is None:
            return {}
        if type(window) is not int or window < 1:
            raise UserError(f"config.json: sliding_window={window!r}: must be a number of tokens")
        if type(positions) is int:  # other types are refused with all other fields
            positions = min(positions, window)
        return {"sliding_window": window, "max_position_embeddings": positions}

    def fields(self, config: LlamaConfig) -> dict[str, Any]:
        """Return the window as well."""
        return {"sliding_window": config.sliding_window}


FAMILIES.register("mistral")(Mistral())
