"""Families of models: what a `config.json` may say, and which weights a layer has beside Llama's.

All families share one table of weights (`jaxalign.lm.weights`) and one transformer. A family says
which fields of its `config.json` matter and which weights it adds; a bias or a norm of queries and
keys is then computed because it is there (`jaxalign.lm.transformer`). To add a family, write a
module in this folder; nothing else needs an edit::

    from jaxalign.lm.families import FAMILIES
    from jaxalign.lm.families.llama import Llama

    class Mine(Llama):
        model_type = "mine"
        architecture = "MineForCausalLM"

    FAMILIES.register("mine")(Mine())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxalign.core.errors import UserError
from jaxalign.core.registry import Registry

if TYPE_CHECKING:
    from jaxalign.lm.families.llama import Llama

FAMILIES: Registry[Llama] = Registry("family of models", __name__, parameter="model_type")


def find_family(model_type: object) -> Llama:
    """Return the family that a `config.json` names with its `model_type`.

    Raises:
        UserError: If it is not handled; the message lists those that are.
    """
    if model_type not in FAMILIES.names():
        raise UserError(
            f"config.json: model_type={model_type!r} is not handled; handled are "
            f"{', '.join(FAMILIES.names())}"
        )
    return FAMILIES[str(model_type)]
