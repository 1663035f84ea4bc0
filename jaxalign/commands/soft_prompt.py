"""Soft prompts tuned by Differential Evolution until survey answers give a country's six scores.

    python -m experiments.soft_prompt                        # the pocket Llama
    python -m experiments.soft_prompt --model /path/to/Meta-Llama-3-8B-Instruct \\
        --countries USA CHN IND SAU --population 256 --generations 200

One soft prompt per country, against the model asked plainly (naive), in character (persona) and by
example (ICL). Method: Masoud, Ferianc, Treleaven and Rodrigues 2025 (arXiv 2503.16094).

The default run takes two minutes on two idle CPU cores with nothing compiled before, for 10,304
candidates, and ends at a loss of 0.1 (USA), 30.2 (CHN), 7.0 (IND) and 16.0 (SAU), where plain
questions have 18.6, 227.6, 145.0 and 151.7; its prompts score 0.982, 0.911, 0.960 and 0.952 on the
held-out survey. Model and survey are simulated: the numbers describe the software, not people.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.options import option_log_probs, prepare_items, valid_mass
from jaxalign.commands.reports import soft_prompt_report
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, weights_sha256
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Params, param_shardings
from jaxalign.methods.prompting import BASELINES, ask, lead_in
from jaxalign.methods.soft_prompt.checkpoint_dir import checkpoint_place
from jaxalign.methods.soft_prompt.objective import Objective
from jaxalign.methods.soft_prompt.result import Answers, make_result, show_result, write_plots
from jaxalign.methods.soft_prompt.search import (
    STEPS_AT_A_TIME,
    Control,
    build,
    choose_how,
    choose_mesh_here,
    constants,
    in_int8,
    search_space,
)
from jaxalign.methods.soft_prompt.space import (
    Space,
    country_key,
    decode,
    initial_population,
    prompt_text,
    save_peft,
    save_prompt,
)
from jaxalign.methods.soft_prompt.study import (
    Config,
    Study,
    check_comparison,
    make_layout,
    read_study,
)
from jaxalign.optim.evolve import Evolution, State
from jaxalign.runs import Run, check_run, recorded_run
from jaxalign.runs.checkpoints import Checkpoints, claim
from jaxalign.runs.console import Progress
from jaxalign.runtime.sharding import local_view
from jaxalign.stats.vsm import Scorer, make_scorer
from jaxalign.surveys.hofstede import country_name


def tune_prompts(config: Config) -> None:
    """The whole experiment; see the module's docstring."""
    out = _directory(config)
    began = check_run(out, config, config.resume)
    config = dataclasses.replace(config, checkpoints=checkpoint_place(config, out))
    study = read_study(config)
    check_comparison(config, study)
    mesh = choose_mesh_here(config, study)
    how = choose_how(config, study, mesh, began)
    print(f"model {study.folder}: {study.llama.num_hidden_layers} layers, {study.llama.dtype}")
    print(f"compiled programs are kept in {jax.config.jax_compilation_cache_dir}")
    if config.prompt.placement == "after":
        print("placement after: another method than front and system, not the same one faster")
    everywhere = load_checkpoint(study.folder, study.llama, param_shardings(study.llama, mesh))
    if config.weights == "int8":
        everywhere = in_int8(config, study, everywhere)
    params = local_view(everywhere)
    scorer = make_scorer(study.module, constants(config, study, params))
    space = search_space(config, study, params)
    program = build(config, study, everywhere, scorer, space, mesh, how)
    evolution, objective = program.evolution, program.objective
    facts = study.facts() | {"search": evolution.settings} | program.facts
    print("search: " + "  ".join(f"{name} {value}" for name, value in evolution.settings.items()))
    with Run.create(out, config, facts, config.resume) as run:
        for note in run.notes:
            print(note)
        module, held_out = ask_baselines(config, study, params)
        state, seconds = evolve(config, run, evolution, objective, space)
        best = evolution.best(state)
        z_CxZ = jnp.stack([z_Z for z_Z, _ in best])
        tuned = {"start": space.start, "tuned": decode_each(space, z_CxZ)}
        if program.control is not None:
            z_CxZ = descend(config, program.control, local_view(objective))
            tuned["gradient"] = decode_each(space, z_CxZ)
        interview = local_view(objective.interview)
        for method, prompts_CxMxD in tuned.items():
            module[method] = ask_prompts(study.llama, interview, prompts_CxMxD)
        interview = prepare_items(
            study.llama, params, make_layout(config, study.tokens, study.prompts, study.held_out)
        )
        for method, prompts_CxMxD in tuned.items():
            held_out[method] = ask_prompts(study.llama, interview, prompts_CxMxD)
        save_prompts(config, study, run, tuned["tuned"])
        finish(config, study, facts, run, scorer, module, held_out, seconds)


def _directory(config: Config) -> Path:
    if config.out is not None:
        return config.out
    if config.resume:
        raise UserError("--resume needs --out, the directory of the run to continue")
    return Path("runs") / time.strftime("soft_prompt-%Y%m%d-%H%M%S")


def ask_baselines(
    config: Config, study: Study, params: Params
) -> tuple[dict[str, Answers], dict[str, Answers]]:
    """Answers of each baseline for each country to the module and to the held-out survey."""
    lead_ins, slots = [[]], {"naive": [0] * len(config.countries)}
    for baseline in BASELINES[1:]:
        slots[baseline] = list(range(len(lead_ins), len(lead_ins) + len(config.countries)))
        lead_ins += [
            lead_in(baseline, study.prompts, country, study.survey, study.examples)
            for country in config.countries
        ]
    items = (*study.module.items, *study.held_out.items)
    log_probs, mass = ask(study.llama, params, study.tokens, study.prompts, lead_ins, items)
    cut, answers = len(study.module.items), []
    for part, asked in ((slice(None, cut), study.module), (slice(cut, None), study.held_out)):
        most = max(len(item.options) for item in asked.items)
        answers.append(
            {
                n: Answers(log_probs[rows, part, :most], mass[rows, part])
                for n, rows in slots.items()
            }
        )
    return answers[0], answers[1]


def evolve(
    config: Config, run: Run, evolution: Evolution, objective: Objective, space: Space
) -> tuple[State, float]:
    """Run or resume the search; returns the last state and the seconds it took this time."""
    place = config.checkpoints or run.out / "checkpoints"
    if run.writes:
        claim(place, recorded_run(run.out)[0])
    with Checkpoints(place) as saved:
        if run.resumed and not saved.steps:
            print(f"no checkpoint found in {saved.directory}; starting at generation 0")
        if run.resumed and saved.steps:
            done, state = saved.restore(evolution.abstract_state())
            run.rewind(done)
        else:
            done, state = 0, evolution.init(first_generation(config, space), objective)
            run.rewind(-1)
        began, start = time.monotonic(), done
        members = len(config.countries) * config.strategy.population
        with Progress(
            config.generations, start=done, units_per_step=members, quiet=config.quiet
        ) as bar:
            while done < config.generations:
                steps = min(config.save_every, config.generations - done)
                state, metrics = evolution.run(state, steps, objective)
                log_generations(run, config.countries, done, jax.device_get(metrics))
                done += steps
                saved.save(done, state)
                bar.update(done, _shown(config.countries, metrics))
    seconds = time.monotonic() - began
    return state, seconds if done > start else 0.0


def descend(config: Config, control: Control, objective: Objective) -> jax.Array:
    """The best search vectors that the gradient control finds, float32 [C, Z]."""
    descent = control.first
    where = "" if config.reading == "expected" else ", expected reading"
    bar = Progress(
        config.gradient_steps, step=f"gradient step{where}", unit="candidates",
        units_per_step=len(config.countries), quiet=config.quiet,
    )  # fmt: skip
    with bar:
        for done in range(0, config.gradient_steps, STEPS_AT_A_TIME):
            steps = min(STEPS_AT_A_TIME, config.gradient_steps - done)
            descent = jax.block_until_ready(control.advance(descent, objective, steps))
            losses = zip(config.countries, np.asarray(descent.best_fitness_C), strict=True)
            bar.update(done + steps, {country: f"{loss:.1f}" for country, loss in losses})
    return control.finish(descent, objective).best_CxZ


def decode_each(space: Space, z_CxZ: jax.Array) -> jax.Array:
    """One prompt per country, float32 [C, M, D]."""
    return jax.jit(decode)(space, z_CxZ[:, None])[:, 0]


def first_generation(config: Config, space: Space) -> jax.Array:
    """float32 [C, E, Z], each country's from its own key."""
    keys = [country_key(jax.random.key(config.seed), c) for c in config.countries]
    return jnp.stack([initial_population(space, k, config.strategy.population) for k in keys])


def log_generations(run: Run, countries: tuple[str, ...], done: int, metrics: dict) -> None:
    """One line per generation; no clock readings, so that a resumed run's file is the same."""
    for t in range(len(metrics["best"])):
        row = {
            country: {name: values[t, c] for name, values in metrics.items()}
            for c, country in enumerate(countries)
        }
        run.log({"generation": done + t + 1, **row})


def _shown(countries: tuple[str, ...], metrics: dict) -> dict[str, str]:
    best, median = np.asarray(metrics["best_so_far"][-1]), np.asarray(metrics["median"][-1])
    return {c: f"{best[i]:.1f} (median {median[i]:.1f})" for i, c in enumerate(countries)}


def ask_prompts(llama: LlamaConfig, interview, prompts_CxMxD: jax.Array) -> Answers:
    """Answers under one soft prompt per country."""
    log_probs = jax.jit(option_log_probs, static_argnums=(0, 3))(llama, interview, prompts_CxMxD, 1)
    mass = jax.jit(valid_mass, static_argnums=0)(llama, interview, prompts_CxMxD)
    return Answers(*jax.device_get((log_probs, mass)))


def save_prompts(config: Config, study: Study, run: Run, prompts_CxMxD: jax.Array) -> None:
    """The tuned prompts as safetensors and, where the placement is PEFT's, as PEFT adapters."""
    if not run.writes:
        return
    for country, prompt_MxD in zip(config.countries, np.asarray(prompts_CxMxD), strict=True):
        metadata = {
            "country": country,
            "placement": config.prompt.placement,
            "start": prompt_text(config.prompt, country_name(country)),
            "seed": config.seed,
            "model_sha256": weights_sha256(study.folder),
        }
        save_prompt(run.out / "prompts" / f"{country}.safetensors", prompt_MxD, metadata)
        if config.prompt.placement == "front":
            folder = run.out / "peft" / country
            save_peft(folder, prompt_MxD, str(study.folder), study.llama.hidden_size)


def finish(
    config: Config,
    study: Study,
    facts: dict[str, Any],
    run: Run,
    scorer: Scorer,
    module: dict[str, Answers],
    held_out: dict[str, Answers],
    seconds: float,
) -> None:
    """`result.json`, the plots, the report, and the tables on the screen."""
    # Not among the settings that a resumed run must keep, yet what the result was made with.
    facts = facts | {"gradient_steps": config.gradient_steps}
    result = make_result(
        config, facts, scorer, study.target_Cx6, study.used_6, module, study.held_out, held_out
    )
    run.write("result.json", result)
    if run.writes:
        write_plots(run.out, result)
        soft_prompt_report(result, run.out)
    show_result(result)
    first_too = config.generations + 1
    candidates = first_too * config.strategy.population * len(config.countries)
    if seconds:
        print(f"search: {seconds:.0f} s for up to {candidates:,} candidates")
    print(f"everything is in {run.out}")
