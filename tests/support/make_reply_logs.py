"""Make the fixtures in `tests/fixtures/reply_logs` again, with the programs themselves.

They need environments of their own: `pip install inspect_ai lm_eval`. Versions 0.3.285 of the one
were used, and 0.4.13 and 0.4.5, which does not name filters, of the other. inspect has a model that
says what it is told; lm-evaluation-harness asks a server here that does the same. Events, stacks
and machine-dependent fields are left out of the logs.

    python -m tests.support.make_reply_logs inspect tests/fixtures/reply_logs
    python -m tests.support.make_reply_logs lm_eval tests/fixtures/reply_logs
"""

from __future__ import annotations

import http.server
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

QUESTIONS = ("Is the sky blue?", "Is tea good?", "Is rain wet?")
DOCS = [
    {
        "Q_id": f"Q{n}",
        "country": "USA",
        "mode": "aware",
        "question": f"{question} 1 = yes 2 = no 3 = perhaps",
    }
    for n, question in enumerate(QUESTIONS, 1)
]
REPLIES = (
    "I would say 2.",
    "<think>maybe 3</think> 1",
    "1 = yes 2 = no 3 = perhaps",
    "2",
    "",
    "It is 3!",
)
_TASK = """\
task: survey
dataset_path: json
dataset_kwargs: {data_files: {test: docs.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "1"
repeats: 2
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16, do_sample: true, temperature: 0.7}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}
  - {name: all, filter: [{function: lowercase}]}
metric_list: [{metric: exact_match}]
metadata: {version: 1}
"""


def run_inspect(out: Path) -> None:
    """Write logs of runs that end well, end in an error, go on after one, and hold reasoning."""
    from inspect_ai.model import ContentReasoning, ContentText

    reasoning = [ContentReasoning(reasoning="3 of them"), ContentText(text="2")]
    _run_inspect(out / "inspect_success.json", REPLIES, epochs=2)
    _run_inspect(out / "inspect_error.json", REPLIES[:4], epochs=2)
    _run_inspect(out / "inspect_failed_samples.json", REPLIES[:4], epochs=2, fail_on_error=False)
    _run_inspect(out / "inspect_reasoning.json", [reasoning, "1", "3"])


def _run_inspect(path: Path, replies: Any, **options: Any) -> None:
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ModelOutput,
        ModelUsage,
        get_model,
    )
    from inspect_ai.scorer import match
    from inspect_ai.solver import generate

    def output(content: Any) -> ModelOutput:
        message = ChatMessageAssistant(content=content, source="generate")
        usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # else it is counted
        choices = [ChatCompletionChoice(message=message, stop_reason="stop")]
        return ModelOutput(model="mockllm/model", choices=choices, usage=usage)

    samples = [
        Sample(
            id=doc["Q_id"],
            input=doc["question"],
            target="1",
            metadata={"country": doc["country"], "mode": doc["mode"]},
        )
        for doc in DOCS
    ]
    task = Task(name="survey", dataset=samples, solver=generate(), scorer=match())
    model = get_model("mockllm/model", custom_outputs=map(output, replies), memoize=False)
    with tempfile.TemporaryDirectory() as folder:
        options = {"log_format": "json", "display": "none", "max_samples": 1, **options}
        eval(task, model=model, log_dir=folder, **options)
        log = json.loads(next(Path(folder).glob("*.json")).read_text("utf-8"))
    kept = ("version", "status", "eval", "results", "error", "invalidated", "samples")
    log = {name: log[name] for name in kept if name in log}
    of_eval = ("eval_id", "run_id", "task", "task_id", "dataset", "model", "config")
    log["eval"] = {name: value for name, value in log["eval"].items() if name in of_eval}
    for part in (log, *log["samples"]):
        if part.get("error"):
            part["error"] = {"message": part["error"]["message"]}
        for name in ("events", "events_data", "attachments", "store", "model_usage", "role_usage"):
            part.pop(name, None)
    path.write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n", "utf-8")


def run_lm_eval(out: Path) -> None:
    """Write the samples of a task with two repeats and two filters."""
    from importlib.metadata import version

    replies = itertools.cycle(REPLIES)

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            message = {"role": "assistant", "content": next(replies)}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            body = json.dumps({"object": "chat.completion", "choices": choices}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "docs.jsonl").write_text("\n".join(map(json.dumps, DOCS)) + "\n")
        (Path(folder) / "survey.yaml").write_text(_TASK)
        command = [sys.executable, "-m", "lm_eval", "--model", "local-chat-completions"]
        command += ["--model_args", f"model=m,base_url={url},num_concurrent=1", "--tasks", "survey"]
        command += ["--include_path", ".", "--apply_chat_template", "--log_samples"]
        command += ["--output_path", "out"]
        subprocess.run(command, cwd=folder, check=True)
        (samples,) = Path(folder).rglob("samples_survey_*.jsonl")
        shutil.copy(samples, out / f"lm_eval_{version('lm_eval')}.jsonl")


if __name__ == "__main__":
    {"inspect": run_inspect, "lm_eval": run_lm_eval}[sys.argv[1]](Path(sys.argv[2]))
