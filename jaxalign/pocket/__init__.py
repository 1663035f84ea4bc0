"""The embedded default: a pocket Llama and the simulated society that it was trained on.

`MODEL_FOLDER` is a model folder in Hugging Face layout (0.9 million parameters, 4 MB), trained by
`experiments/train_pocket.py`. With it, everything in this package runs without a download, from a
first command to a whole experiment. It answers survey questions the way large models are reported
to: with the values of one home culture when it is told nothing, half-heartedly in character when it
is given a persona, and closer to a country once it has seen some of that country's answers.

All of it is made up for this purpose. The countries' dimension scores are published figures; all
survey answers are simulated from them (`society`). No number that the pocket model or the society
produces is a finding about people, about a country or about Llama-3.
"""

from __future__ import annotations

from jaxalign.lm.model import LM, POCKET_FOLDER, load_model

MODEL_FOLDER = POCKET_FOLDER

__all__ = ["MODEL_FOLDER", "pocket_model"]


def pocket_model() -> LM:
    """Load the pocket Llama that ships with the package, in float32.

    It has 0.9 million parameters and needs no download. Use it to try the library and to test
    code; what it answers says nothing about people or about Llama-3.

    Returns:
        The model, with its weights on all devices of this machine.

    Example:
        >>> import jaxalign as ja
        >>> lm = ja.pocket_model()
        >>> lm.config.num_hidden_layers, lm.config.dtype
        (4, 'float32')
    """
    return load_model(MODEL_FOLDER)
