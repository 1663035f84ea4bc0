"""Other people's evaluation tools on our models: the figures are those of transformers.

Tasks and data are local. Without the tools (`pip install jaxalign[eval]`) these tests are left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.commands.evals.guard import HarnessTest
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter, LoraConfig, abstract_adapter
from jaxalign.lm.model import LM, load_model, open_model
from jaxalign.lm.source import POCKET_FOLDER
from jaxalign.methods.conditions import WithAdapter
from jaxalign.methods.soft_prompt.prompt import SoftPrompt

ROWS = [
    ("How important is family in your life?", ["very important", "not important"], 0),
    ("How happy are you?", ["very happy", "rather happy", "not happy"], 1),
    ("Do you trust most people?", ["yes", "no", "it depends"], 2),
    ("How often do you meet friends?", ["daily", "weekly", "never"], 0),
]
TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices}} {{question}} {{choices}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "local_reply": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tasks, an adapter and a soft prompt."""
    path = tmp_path_factory.mktemp("evals")
    rows = [dict(zip(("question", "choices", "answer"), row, strict=True)) for row in ROWS]
    (path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (path / "tasks").mkdir()
    data = {"data_files": {"test": str(path / "rows.jsonl")}, "cache_dir": str(path / "cache")}
    for name, task in TASKS.items():
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        # JSON is YAML.
        (path / "tasks" / f"{name}.yaml").write_text(json.dumps(whole | task))
    files, random = open_model(), np.random.RandomState(0)
    lora = LoraConfig(4, 8.0)
    leaves, tree = jax.tree.flatten(abstract_adapter(files.config, lora))
    weights = [jax.numpy.asarray(random.uniform(-0.1, 0.1, x.shape), x.dtype) for x in leaves]
    base = str(POCKET_FOLDER)
    Adapter(tree.unflatten(weights), lora, files.config, base).save_peft(path / "adapter")
    rows_MxD = random.normal(0, 0.05, (6, files.config.hidden_size)).astype(np.float32)
    prompt = SoftPrompt(rows_MxD, model=base)
    prompt.save(path / "prompt.safetensors")
    prompt.save_peft(path / "prompt")
    SoftPrompt(rows_MxD, "after").save(path / "after.safetensors")
    return path


def samples(results: dict) -> dict[str, list]:
    """What the model said to every request, by task."""
    return {
        name: [sample["filtered_resps"] for sample in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in results["samples"].items()
    }


def assert_alike(ours: dict[str, list], theirs: dict[str, list]) -> None:
    assert ours["local_reply"] == theirs["local_reply"]
    for task in ("local_choice", "local_text"):
        for mine, yours in zip(ours[task], theirs[task], strict=True):
            np.testing.assert_allclose(numbers(mine), numbers(yours), rtol=1e-5)


def numbers(responses: list) -> list[float]:
    """Log-probabilities, and whether each answer is the likeliest; in files they are texts."""
    flat = np.array(responses, str).ravel()
    return [{"False": 0.0, "True": 1.0}[x] if x in ("False", "True") else float(x) for x in flat]


@pytest.mark.long
@pytest.mark.reference
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({}, None), ({"adapter": "adapter"}, "adapter"), ({"prompt": "prompt.safetensors"}, "prompt")],
    ids=["model", "adapter", "soft prompt"],
)
def test_the_harness_finds_what_it_finds_in_transformers(
    folder: Path, tmp_path: Path, monkeypatch, ours: dict, theirs: str | None
) -> None:
    """Log-likelihoods, long texts in windows and replies, by the harness's own command line."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from jaxalign.commands.evals.lm_eval import main

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    names = ",".join(f"{key}={folder / value}" for key, value in ours.items())
    arguments = {"model": str(POCKET_FOLDER), "max_length": "48"}
    given = ",".join([*(f"{key}={value}" for key, value in arguments.items()), *names.split(",")])
    command = ["run", "--model", "jaxalign", "--model_args", given.rstrip(","), "--log_samples"]
    command += ["--tasks", *TASKS, "--include_path", str(folder / "tasks")]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *command, "--output_path", str(tmp_path)])
    main()
    found = {}
    for name in TASKS:
        [path] = tmp_path.rglob(f"samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in path.read_text().splitlines()]
    peft = {} if theirs is None else {"peft": str(folder / theirs)}
    expected = lm_eval.simple_evaluate(
        "hf",
        {"pretrained": str(POCKET_FOLDER), "dtype": "float32", "max_length": 48, **peft},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder / "tasks")),
        device="cpu",
    )
    assert_alike(samples({"samples": found}), samples(expected))
    if "prompt" not in ours:  # the guard of CultureSPA asks models and adapters
        measured = HarnessTest(["local_choice"], folder / "tasks").measure(adapted(folder, ours))
        assert measured.accuracy == {
            "local_choice": expected["results"]["local_choice"]["acc,none"]
        }
        assert measured.questions == len(ROWS)
        assert measured.chance == pytest.approx(np.mean([1 / len(row[1]) for row in ROWS]))
    [path] = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["config"]["model_sha256"] == open_model().sha256
    for task in TASKS:
        for metric, value in expected["results"][task].items():
            if isinstance(value, float):
                assert results["results"][task][metric] == pytest.approx(value, rel=1e-4)


def adapted(folder: Path, ours: dict) -> LM:
    """The pocket model, with the adapter beside its weights if there is one."""
    lm = load_model(open_model())
    return Adapter.load(folder / ours["adapter"], lm).attach(lm) if "adapter" in ours else lm


@pytest.mark.long
@pytest.mark.reference
def test_tasks_that_the_guard_cannot_use_are_refused_before_a_run(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    for tasks, tasks_folder, message in (
        (["no_such_task"], None, "`guard_tasks` no_such_task: unknown"),
        (["local_text"], folder / "tasks", "`guard_tasks` local_text: has no accuracy"),
        (["local_choice"], folder / "none", "`guard_task_folder` .*none: no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            HarnessTest(tasks, tasks_folder)


def test_the_guard_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxalign.commands.evals.guard.TemplateLM", object)
    with pytest.raises(UserError, match="lm-evaluation-harness is not installed"):
        HarnessTest(["hellaswag"])


def test_a_prompt_inside_a_conversation_is_refused(folder: Path) -> None:
    from jaxalign.commands.evals.subject import open_subject

    with pytest.raises(UserError, match=r"after.safetensors: .*'after'.*stands in front"):
        open_subject(prompt=str(folder / "after.safetensors"), only_front=True)


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"weights": "int4"}])
def test_settings_from_a_command_line_are_checked(changes: dict) -> None:
    from jaxalign.commands.evals.subject import open_subject

    with pytest.raises(UserError, match=f"`{next(iter(changes))}`.*choose from"):
        open_subject(**changes)


@pytest.mark.long
@pytest.mark.reference
@pytest.mark.parametrize(
    "arguments", [{}, {"adapter": "adapter"}, {"prompt": "after.safetensors"}], ids=str
)
def test_inspect_is_told_what_generate_says(folder: Path, tmp_path: Path, arguments: dict) -> None:
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes

    import jaxalign as ja
    from jaxalign.commands.evals import inspect_ai as provider  # noqa: F401  registers itself

    arguments = {key: str(folder / value) for key, value in arguments.items()}
    task = inspect_ai.Task([Sample(row[0], target=row[1][0]) for row in ROWS], scorer=includes())
    [log] = inspect_ai.eval(
        task,
        model="jaxalign/pocket",
        model_args=arguments,
        max_tokens=8,
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    lm, condition = ja.pocket_model(), ja.Plain()
    if "prompt" in arguments:
        condition = SoftPrompt.load(arguments["prompt"])
    if "adapter" in arguments:
        condition = WithAdapter(Adapter.load(arguments["adapter"], lm), condition)
    said = [
        ja.generate(lm, row[0], condition=condition, max_new_tokens=8).replace("<|eot_id|>", "")
        for row in ROWS
    ]
    assert [sample.output.completion for sample in log.samples] == said
