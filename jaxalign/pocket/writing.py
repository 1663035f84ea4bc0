"""Sample survey questions from the pocket model, and check which are usable.

The whole text is recomputed for every token, which is simple and fast enough for a few dozen
samples of such a small model; `jaxalign.lm.generate` keeps a cache.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import Params
from jaxalign.pocket.corpus import Corpus, encode, opening, question_request
from jaxalign.pocket.tokenizer import EOT, HEAD, TAIL

_LENGTH = 384


@functools.partial(jax.jit, static_argnums=0)
def _next(config: LlamaConfig, params: Params, tokens_BxT: jax.Array, last_B: jax.Array, key):
    model = Llama(config, unroll=True)
    logits = model.apply({"params": params}, tokens_BxT, at_BxA=last_B[:, None])[:, 0]
    return jax.random.categorical(key, logits / 0.9)


def write_questions(
    config: LlamaConfig, params: Params, corpus: Corpus, count: int, seed: int = 0
) -> list[tuple[str, str]]:
    """Sample replies to requests for new questions, at temperature 0.9 and up to 70 tokens long.

    Returns:
        (topic, reply) of `count` requests, each on a random topic with four examples.
    """
    random = np.random.default_rng(seed)
    pool = corpus.questions["held_out"]
    topics = [pool[i].item.topic for i in random.integers(len(pool), size=count)]
    tokens, last = np.zeros((count, _LENGTH), np.int32), np.zeros(count, np.int32)
    for b, topic in enumerate(topics):
        shown = [q.item for q in pool if q.item.topic == topic][:4]
        ask = question_request(random, topic, shown)
        text = f"{opening(None)}{HEAD}user{TAIL}\n\n{ask}{EOT}{HEAD}assistant{TAIL}\n\n"
        ids = encode(corpus.tokenizer, text)
        tokens[b, : len(ids)], last[b] = ids, len(ids) - 1
    first = last + 1
    for step in range(70):
        key = jax.random.fold_in(jax.random.key(seed), step)
        new = _next(config, params, jnp.asarray(tokens), jnp.asarray(last), key)
        last = np.minimum(last + 1, _LENGTH - 1)
        tokens[np.arange(count), last] = new
    replies = (corpus.tokenizer.decode(row[a:]) for row, a in zip(tokens, first, strict=True))
    return [(t, r.partition(EOT)[0]) for t, r in zip(topics, replies, strict=True)]


def usable(reply: str) -> bool:
    """Whether a reply is a JSON object with a question and two or more different options."""
    try:
        fields = json.loads(reply)
    except json.JSONDecodeError:
        return False
    if not isinstance(fields, dict) or set(fields) != {"question", "options"}:
        return False
    texts = [fields["question"], *fields["options"]]
    options = texts[1:]
    return all(isinstance(t, str) and t for t in texts) and 2 <= len(set(options)) == len(options)
