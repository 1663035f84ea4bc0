"""In bfloat16 too, the search, the final scoring and `ask` give a prompt one and the same loss.

The pocket model has the weights of a trained model: with random weights, differences would neither
grow from layer to layer nor reach the answers as they do in use.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.answering.options import embed_tokens, option_log_probs, prepare_items
from jaxalign.lm.model import load_model
from jaxalign.methods.ask import Exact, ask
from jaxalign.methods.soft_prompt import Settings, SoftPromptConfig
from jaxalign.methods.soft_prompt.answers import ask_tuned
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.runtime.sharding import make_mesh

COUNTRIES = ("USA", "CHN", "BRA")
LENGTH = 6


@pytest.mark.long
@pytest.mark.parametrize("placement", ["front", "system"])
def test_bfloat16_losses_do_not_depend_on_the_program(placement, devices):
    prompt = SoftPromptConfig(length=LENGTH, placement=placement)
    settings = Settings(dtype="bfloat16", countries=COUNTRIES, prompt=prompt, test_presentations=())
    problem = read_problem(settings)
    lm = load_model(problem.model, mesh=make_mesh(devices[:1]))
    tokens = np.random.default_rng(0).integers(300, 1500, (len(COUNTRIES), LENGTH))
    prompts_PxMxD = embed_tokens(lm.config, lm.params, tokens)
    spread = 0.5 * jnp.sqrt(jnp.mean(prompts_PxMxD**2))
    prompts_PxMxD += spread * jax.random.normal(jax.random.key(0), prompts_PxMxD.shape)

    items = prepare_items(lm.config, lm.params, problem.layout)
    search = jax.jit(option_log_probs, static_argnums=(0, 3))
    found = {f"chunk {n}": search(lm.config, items, prompts_PxMxD, n) for n in (1, 2)}
    (tuned, _), _ = ask_tuned(problem, lm, {"tuned": prompts_PxMxD})
    found["final scoring"] = tuned.log_probs("tuned")[0]  # of the only seed
    prompts = [
        SoftPrompt(np.asarray(prompt_MxD), placement, group=group)
        for prompt_MxD, group in zip(prompts_PxMxD, COUNTRIES, strict=True)
    ]
    for block_tokens in (256, 2048):
        answers = ask(lm, problem.tuned_survey, prompts, reading=Exact(block_tokens=block_tokens))
        found[f"ask in blocks of {block_tokens}"] = answers.log_probs

    objective, entries = problem.objective(), jnp.arange(len(COUNTRIES))
    losses = {name: objective.loss(jnp.asarray(x), entries) for name, x in found.items()}
    for name in found:
        np.testing.assert_allclose(found[name], found["chunk 1"], atol=1e-4, err_msg=name)
        np.testing.assert_allclose(losses[name], losses["chunk 1"], atol=0.01, err_msg=name)
