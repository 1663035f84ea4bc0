"""The pod scripts without a cloud: what a dry run prints, and the loop against a made-up gcloud."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "tpu").glob("*.sh"), ROOT / "tpu" / "slurm.sbatch"])
CLOUD = {"ZONE": "us-west4-a", "PROJECT": "mine", "BUCKET": "gs://my-bucket"}
GCLOUD = "gcloud compute tpus"
WHERE = "--zone us-west4-a --project mine"


def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    settings = ("NAME", "TOPOLOGY", "ZONE", "PROJECT", "BUCKET", "SPOT", "SECRETS", "RESULTS")
    clean = {name: value for name, value in os.environ.items() if name not in settings}
    return subprocess.run(
        ["bash", str(ROOT / "tpu" / script), *arguments],
        capture_output=True, text=True, env=clean | environment, timeout=60, check=False,
    )  # fmt: skip


def printed(done: subprocess.CompletedProcess) -> list[str]:
    """The commands of a dry run, unquoted, with its temporary directory and root left out."""
    assert done.returncode == 0, done.stderr
    lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("+ ")]
    words = (" ".join(shlex.split(line)) for line in lines)
    temporary = re.compile(r"(?<=[ =])/\S*/(?=jaxalign\.tar|\.jaxalign)")
    return [temporary.sub("", line.replace(str(ROOT), ".")) for line in words]


SETUP = [
    "git -C . archive --format=tar.gz --prefix=jaxalign/ --output=jaxalign.tar.gz HEAD",
    f"{GCLOUD} tpu-vm scp {WHERE} --worker=all jaxalign.tar.gz jaxalign:jaxalign.tar.gz",
    f"{GCLOUD} tpu-vm scp {WHERE} --worker=all ./tpu/worker_setup.sh jaxalign:worker_setup.sh",
    f"{GCLOUD} tpu-vm ssh jaxalign {WHERE} --worker=all --command=bash ~/worker_setup.sh my-bucket",
]
CREATE = (
    f"{GCLOUD} queued-resources create jaxalign {WHERE} --node-id jaxalign "
    "--accelerator-type v5litepod-256 --runtime-version v2-alpha-tpuv5-lite --spot"
)
FETCH = [
    "mkdir -p runs",
    "gcloud storage rsync --recursive --exclude=^checkpoints/ gs://my-bucket/values runs/values",
]


def test_create() -> None:
    assert printed(call("create.sh", "--dry-run", **CLOUD)) == [CREATE]
    cube = printed(call("create.sh", "--dry-run", **CLOUD, TOPOLOGY="v5p:4x4x8", SPOT="0"))
    assert cube == [
        f"{GCLOUD} queued-resources create jaxalign {WHERE} --node-id jaxalign "
        "--accelerator-type v5p-256 --runtime-version v2-alpha-tpuv5"  # 128 chips of two cores
    ]


def test_setup_and_delete() -> None:
    assert printed(call("setup.sh", "--dry-run", **CLOUD)) == SETUP
    assert printed(call("delete.sh", "--dry-run", **CLOUD)) == [
        f"{GCLOUD} queued-resources delete jaxalign {WHERE} --force --quiet"
    ]
    assert printed(call("fetch.sh", "--dry-run", "values", **CLOUD)) == FETCH


def test_run_prints_everything_it_would_do() -> None:
    arguments = ["values", "experiments.soft_prompt", "--model", "~/shared/Llama 3"]
    start = (
        f"{GCLOUD} tpu-vm ssh jaxalign {WHERE} --worker=all --command=bash "
        r"~/jaxalign/tpu/worker.sh start values experiments.soft_prompt --model ~/shared/Llama\ 3"
    )
    done = call("run.sh", "--dry-run", *arguments, **CLOUD)
    assert printed(done) == [CREATE, *SETUP, start, *FETCH]
    assert "cat\\ ~/shared/values/exit" in done.stderr  # what it would ask while waiting


def test_recipes_without_a_cloud() -> None:
    gpus = call(
        "multi_gpu.sh", "--dry-run", "runs/x", "experiments.sweep", "my file.toml", GPUS="0,1"
    )
    assert "+ CUDA_VISIBLE_DEVICES=0,1" in gpus.stdout
    assert r"-m experiments.sweep my\ file.toml --out runs/x --resume" in gpus.stdout
    slurm = call("slurm.sbatch", "runs/x", "experiments.sweep", "f.toml", DRY_RUN="1")
    assert "JAXALIGN_HOSTS=auto srun" in slurm.stdout
    assert "-m experiments.sweep f.toml --out runs/x --resume" in slurm.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "changes", "words"),
    [
        ("create.sh", [], {"ZONE": ""}, "ZONE is not set"),
        ("create.sh", [], {"TOPOLOGY": "v9:2x2"}, "TOPOLOGY=v9:2x2"),
        ("setup.sh", [], {"BUCKET": "my-bucket"}, "BUCKET=my-bucket is not like gs://"),
        ("setup.sh", [], {"SECRETS": "/no/such/file"}, "no such file"),
        ("run.sh", ["values"], {}, "give the run's name and a module"),
        ("run.sh", ["../values", "experiments.sweep"], {}, "run ../values"),
        ("fetch.sh", [], {}, "give the run's name"),
    ],
)
def test_bad_input(script: str, arguments: list[str], changes: dict, words: str) -> None:
    done = call(script, "--dry-run", *arguments, **CLOUD | changes)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_secrets_go_as_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("HF_TOKEN=hf_do_not_print\n")
    secrets.chmod(0o644)
    refused = call("setup.sh", "--dry-run", **CLOUD, SECRETS=str(secrets))
    assert refused.returncode == 2
    assert "chmod 600" in refused.stderr
    secrets.chmod(0o600)
    done = call("setup.sh", "--dry-run", **CLOUD, SECRETS=str(secrets))
    assert "hf_do_not_print" not in done.stdout + done.stderr
    assert printed(done) == [
        *SETUP[:3],
        f"{GCLOUD} tpu-vm scp {WHERE} --worker=all .jaxalign-secrets jaxalign:.jaxalign-secrets",
        f"{GCLOUD} tpu-vm ssh jaxalign {WHERE} --worker=all "
        "--command=chmod 600 ~/.jaxalign-secrets",
        SETUP[3],
    ]


def stub(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


# Answers of `describe`, in turn; the program is done at its second question after the last.
FAKE = """
echo "$*" >>"$FAKE/calls"
case "$*" in
    *describe*)
        read -r answer <"$FAKE/states"
        sed -i 1d "$FAKE/states"
        [[ $answer == NONE ]] && exit 1
        echo "$answer"
        ;;
    *"cat ~/shared"*) if [[ -s $FAKE/states ]]; then echo running; else echo "$CODE"; fi ;;
esac
"""


def loop(folder: Path, states: list[str], code: int) -> tuple[subprocess.CompletedProcess, list]:
    stub(folder / "bin" / "gcloud", FAKE)
    stub(folder / "bin" / "git", "")
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    done = call(
        "run.sh", "values", "experiments.sweep", **CLOUD, FAKE=str(folder), CODE=str(code),
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}", POLL_SECONDS="0.01",
        RESULTS=str(folder / "runs"), TRIES="3",
    )  # fmt: skip
    verbs = ("create", "delete", "worker_setup.sh my", "worker.sh start", "rsync", "exit ||")
    calls = (folder / "calls").read_text().splitlines()
    return done, [verb for call in calls for verb in verbs if verb in call]


def test_a_slice_taken_away_is_made_again_and_the_program_started_again(tmp_path: Path) -> None:
    made, lost = ["ACTIVE", "ACTIVE"], ["SUSPENDED", "SUSPENDED"]
    done, calls = loop(tmp_path, ["NONE", "PROVISIONING", *made, *lost, *made], code=0)
    assert done.returncode == 0, done.stderr
    make = ["create", "worker_setup.sh my", "worker.sh start", "exit ||"]
    assert calls == [*make, "delete", *make, "rsync"]


def test_a_program_that_fails_is_not_started_again(tmp_path: Path) -> None:
    done, calls = loop(tmp_path, ["ACTIVE", "ACTIVE"], code=3)
    assert done.returncode == 2
    assert "ended with exit code 3" in done.stderr
    assert calls == ["worker.sh start", "exit ||", "rsync"]


def test_no_slice_to_be_had(tmp_path: Path) -> None:
    done, calls = loop(tmp_path, ["NONE", "FAILED"] * 3, code=0)
    assert done.returncode == 2
    assert "no slice to run on after 3 failures" in done.stderr
    assert "worker.sh start" not in calls


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (1, 3), (2, 1)])
def test_gpu_recipe_starts_again_after_a_crash_only(tmp_path: Path, code: int, starts: int) -> None:
    stub(tmp_path / "python", f'[[ $* == *--help* ]] && echo none && exit\necho "$*"; exit {code}')
    out = tmp_path / "out"
    done = call("multi_gpu.sh", str(out), "experiments.x", "--a", PYTHON=str(tmp_path / "python"))
    assert done.returncode == code
    logs = "".join(path.read_text() for path in (out / "logs").iterdir())
    assert logs == f"-m experiments.x --a --out {out}\n" * starts


@pytest.mark.parametrize("script", ["multi_gpu.sh", "slurm.sbatch", "worker.sh"])
def test_a_long_help_does_not_hide_resume(tmp_path: Path, script: str) -> None:
    """Without --resume a preempted run is refused or begins anew. More than a pipe holds follows
    the word, so that a reader who leaves early is noticed."""
    python = tmp_path / "jaxalign" / ".venv" / "bin" / "python"
    stub(python, 'if [[ $* == *--help* ]]; then printf "%s\\n%99999s" --resume; else echo "$*"; fi')
    stub(tmp_path / "bin" / "srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    out, command = str(tmp_path / "shared" / "values"), ["experiments.x", "--a"]
    done = call(
        script, *(["run", "values"] if script == "worker.sh" else [out]), *command,
        PYTHON=str(python), HOME=str(tmp_path),
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"-m experiments.x --a --out {out} --resume\n"


@pytest.mark.parametrize("worker", [0, 3])
def test_worker_logs_and_says_how_it_ended(tmp_path: Path, worker: int) -> None:
    """`start` returns at once; the program has its options, its secrets and its hosts."""
    if shutil.which("flock") is None or shutil.which("setsid") is None:
        pytest.fail("worker.sh needs flock and setsid (util-linux)")
    python = tmp_path / "jaxalign" / ".venv" / "bin" / "python"
    stub(
        python,
        '[[ $* == *--help* ]] && echo --resume || { echo "$*" "$JAXALIGN_HOSTS $A"; exit 5; }',
    )
    stub(tmp_path / "bin" / "hostname", f"echo t1v-n-1-w-{worker}")
    (tmp_path / ".jaxalign-secrets").write_text("A=secret\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = call(
        "worker.sh", "start", "values", "experiments.sweep", "a b", HOME=str(tmp_path), PATH=path
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "shared" / "values"
    log = out / "logs" / f"t1v-n-1-w-{worker}.log"
    until = time.monotonic() + 30
    while time.monotonic() < until and not (log.exists() and "auto" in log.read_text()):
        time.sleep(0.02)
    assert log.read_text() == f"-m experiments.sweep a b --out {out} --resume auto secret\n"
    while time.monotonic() < until and worker == 0 and not (out / "exit").exists():
        time.sleep(0.02)
    assert (out / "exit").exists() == (worker == 0)
    assert worker != 0 or (out / "exit").read_text() == "5\n"


def test_a_worker_has_one_run_at_a_time(tmp_path: Path) -> None:
    """Another run is told at once who is there, not left to wait for what never begins."""
    python = tmp_path / "jaxalign" / ".venv" / "bin" / "python"
    stub(python, '[[ $* == *--help* ]] || { echo began; until [[ -e ~/go ]]; do sleep 0.02; done; }')

    def start(name: str) -> subprocess.CompletedProcess:
        return call("worker.sh", "start", name, "experiments.x", HOME=str(tmp_path))

    try:
        assert start("values").returncode == 0
        other = start("other")
        assert other.returncode == 2
        assert "busy with run values" in other.stderr
        assert len(other.stderr.splitlines()) == 1
        assert start("values").returncode == 0  # run.sh called again: it goes on
    finally:
        (tmp_path / "go").touch()
    until = time.monotonic() + 30
    while time.monotonic() < until and start("other").returncode == 2:
        time.sleep(0.02)
    assert (tmp_path / ".jaxalign-running").read_text() == "other\n"
    [log] = (tmp_path / "shared" / "values" / "logs").iterdir()
    assert log.read_text() == "began\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-x", str(script)], check=True, cwd=ROOT)
