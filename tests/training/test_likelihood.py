"""Log-likelihoods of answers against the plain forward pass of each example by itself."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params, param_shardings
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.likelihood import answer_likelihoods
from jaxalign.training.packing import Example
from tests.support.parity_cases import BASE

CONFIG = BASE.replace(initializer_range=0.3)
LENGTHS = [(5, 3), (9, 8), (2, 1), (30, 12), (17, 2), (40, 39)]  # tokens, of which the answer


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def examples_of(soft: int = 0) -> list[Example]:
    """Random examples; one of them is what the model would say. Soft tokens stand in front."""
    random = np.random.RandomState(0)
    front = range(CONFIG.vocab_size, CONFIG.vocab_size + soft)
    return [
        Example((*front, *random.randint(0, CONFIG.vocab_size, n).tolist()), soft + n - answer)
        for n, answer in LENGTHS
    ]


def plain(params, examples, extra=None) -> tuple[list[float], list[bool]]:
    """The answers' log-probabilities by one forward pass each."""
    table = np.asarray(params["embed"])
    if extra is not None:
        table = np.concatenate([table, extra])
    log_probs, greedy = [], []
    forward = jax.jit(Llama(CONFIG).apply)
    for example in examples:
        x = np.zeros((1, 64, CONFIG.hidden_size), np.float32)
        x[0, : len(example.tokens)] = table[list(example.tokens)]
        logits = np.asarray(forward({"params": params}, x))[0].astype(float)
        at = np.arange(example.prompt_length - 1, len(example.tokens) - 1)
        normed = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        log_probs.append(normed[at, list(example.answer)].sum())
        greedy.append(bool(np.all(logits[at].argmax(-1) == example.answer)))
    return log_probs, greedy


@pytest.mark.parametrize("soft", [0, 4])
def test_packed_as_each_alone(params, soft: int, devices) -> None:
    """In rows of several passes on two devices, also behind a soft prompt."""
    extra = None
    if soft:
        extra = np.random.RandomState(1).uniform(-1, 1, (soft, CONFIG.hidden_size))
        extra = extra.astype(np.float32)
    examples = examples_of(soft)
    # What the model itself would say after the shortest prompt.
    [short] = [e for e in examples if len(e.tokens) == soft + 2]
    best = np.argmax(
        [
            plain(params, [Example((*short.tokens[:-1], t), soft + 1)], extra)[0][0]
            for t in range(CONFIG.vocab_size)
        ]
    )
    examples.append(Example((*short.tokens[:-1], int(best)), soft + 1))
    mesh = make_mesh(devices[:2], population=1, data=2)
    placed = jax.device_put(params, param_shardings(CONFIG, mesh))
    passes = []
    found = answer_likelihoods(
        CONFIG,
        placed,
        examples,
        mesh=mesh,
        extra_embeddings=extra,
        tokens_per_pass=128,
        on_progress=passes.append,
    )
    log_probs, greedy = plain(params, examples, extra)
    np.testing.assert_allclose(found.log_probs, log_probs, rtol=1e-5, atol=1e-5)
    assert found.greedy.tolist() == greedy
    assert found.greedy[-1]
    assert (passes[-1].done, passes[-1].total) == (passes[-1].total, len(passes))


def test_bad_input(params) -> None:
    with pytest.raises(UserError, match="token id 64: the model knows 64"):
        answer_likelihoods(CONFIG, params, [Example((1, 64), 1)])
    short = CONFIG.replace(max_position_embeddings=8)
    with pytest.raises(UserError, match=r"10 tokens.*max_position_embeddings=8"):
        answer_likelihoods(short, params, [Example((1,) * 10, 1)])
    assert len(answer_likelihoods(CONFIG, params, []).log_probs) == 0
