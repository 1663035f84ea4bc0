"""What is exported for vLLM means the same there: the client's embeddings, and what it sends."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import runpy
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.answering.conversations import split_at_soft_prompt
from jaxalign.cli import run_command
from jaxalign.commands.export import export_to_vllm
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.model import open_model
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.pocket import MODEL_FOLDER, pocket_model
from jaxalign.runs.run import FORMAT

QUESTION = "Is family important to you?"
RNG = np.random.default_rng(0)
PROMPT_MxD = RNG.normal(0, 0.05, (4, 128)).astype(np.float32)


def make_run(folder: Path, placements: dict[str, str]) -> Path:
    """Write what `read_tuned_run` looks for."""
    folder.mkdir()
    fields = {"format": FORMAT, "settings": {"model": str(MODEL_FOLDER)}, "facts": {}}
    (folder / "config.json").write_text(json.dumps(fields))
    for name, placement in placements.items():
        SoftPrompt(PROMPT_MxD, placement).save(folder / "prompts" / f"{name}.safetensors")
    return folder


@pytest.mark.reference
def test_the_client_asks_what_was_tuned(tmp_path):
    """Logits of its embeddings in transformers, and the request that a server gets."""
    import torch
    import transformers

    placements = {"CHN": "front", "SAU": "system", "USA": "after"}
    run = make_run(tmp_path / "run", placements)
    run_command("export", [str(run), "--to", "vllm", "--out", str(tmp_path / "out")])
    client = runpy.run_path(str(tmp_path / "out" / "client.py"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)
    lm = pocket_model()
    for name, placement in placements.items():
        found = client["embed"](QUESTION, name, tokenizer, theirs.get_input_embeddings())
        messages = [{"role": "user", "content": QUESTION}]
        before, after = split_at_soft_prompt(lm.tokenizer, messages, placement)
        table = np.asarray(lm.params["embed"])
        ours = np.concatenate([table[before], PROMPT_MxD, table[after]])
        with torch.no_grad():
            logits = [theirs(inputs_embeds=x[None]).logits for x in (found, torch.tensor(ours))]
        np.testing.assert_array_equal(found.numpy(), ours)
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)

    received = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"text": "Yes."}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert client["ask"](found, f"http://127.0.0.1:{server.server_port}") == "Yes."
        server.shutdown()
    sent = torch.load(io.BytesIO(base64.b64decode(received[0]["prompt_embeds"])), weights_only=True)
    torch.testing.assert_close(sent, found, rtol=0, atol=0)
    assert received[0]["model"] == str(MODEL_FOLDER)


@pytest.mark.reference
def test_the_lines_of_a_prompts_readme_work_as_it_says(tmp_path, monkeypatch, capsys):
    """Both write the same; PEFT's `generate` with its cache, which it warns of, does not."""
    prompt = SoftPrompt(PROMPT_MxD * 20, model=str(MODEL_FOLDER))
    prompt.save_peft(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    exec(blocks[0], names)
    uncached = capsys.readouterr().out
    exec(blocks[1], names)
    assert capsys.readouterr().out == uncached
    assert uncached.strip()
    exec(blocks[0].replace(", use_cache=False", ""), {})
    assert capsys.readouterr().out != uncached


def test_adapters_go_along_with_the_line_that_serves_them(tmp_path):
    run, files = make_run(tmp_path / "run", {}), open_model()
    lora = LoraConfig(rank=12)
    for name in ("joint", "USA"):
        weights = init_adapter(files.config, lora, jax.random.key(0))
        Adapter(weights, lora, files.config, "pocket").save_peft(run / "adapters" / name)
    text = export_to_vllm(run, tmp_path / "out").read_text("utf-8")
    assert "--max-lora-rank 16 --lora-modules USA=adapters/USA joint=adapters/joint\n" in text
    assert Adapter.load(tmp_path / "out" / "adapters" / "USA", files).config.rank == 12
    assert "LoRA adapter of rank 12" in (run / "adapters" / "USA" / "README.md").read_text("utf-8")


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    run, out = make_run(tmp_path / "run", {}), tmp_path / "out"
    with pytest.raises(UserError, match=r"neither soft prompts nor adapters$"):
        export_to_vllm(run, out)
    with pytest.raises(UserError, match="not the directory of a run"):
        export_to_vllm(tmp_path, out)
    with pytest.raises(UserError, match="exists already"):
        export_to_vllm(run, tmp_path)
    shutil.copy(run / "config.json", tmp_path / "config.json")
    (run / "prompts").mkdir()
    (run / "prompts" / "USA.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"USA\.safetensors: truncated"):
        export_to_vllm(run, out)
    assert not out.exists()
