"""The pod scripts without a cloud: what dry runs print, and run.sh against a fake gcloud."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "tpu").glob("*.sh"), ROOT / "tpu" / "slurm.sbatch"])
CLOUD = {"ZONE": "us-west4-a", "PROJECT": "mine", "BUCKET": "gs://my-bucket"}
GCLOUD = "gcloud compute tpus"
WHERE = "--zone us-west4-a --project mine"


def stub(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture(autouse=True)
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which git says that any checkout is at commit c0ffee."""
    stub(tmp_path / "git" / "git", "echo c0ffee")
    monkeypatch.setenv("PATH", f"{tmp_path / 'git'}:{os.environ['PATH']}")


def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    settings = ("NAME", "TOPOLOGY", "ZONE", "PROJECT", "BUCKET", "SPOT", "SECRETS", "RESULTS")
    clean = {name: value for name, value in os.environ.items() if name not in settings}
    return subprocess.run(
        ["bash", str(ROOT / "tpu" / script), *arguments],
        capture_output=True,
        text=True,
        env=clean | environment,
        timeout=60,
        check=False,
    )


def printed(done: subprocess.CompletedProcess) -> list[str]:
    """Return the commands of a dry run, unquoted, without its temporary directory and root."""
    assert done.returncode == 0, done.stderr
    lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("+ ")]
    words = (" ".join(shlex.split(line)) for line in lines)
    temporary = re.compile(r"(?<=[ =])/\S*/(?=jaxalign\.tar|\.jaxalign)")
    return [temporary.sub("", line.replace(str(ROOT), ".")) for line in words]


SETUP = [
    "git -C . archive --format=tar.gz --prefix=jaxalign/ --output=jaxalign.tar.gz c0ffee",
    f"{GCLOUD} tpu-vm scp {WHERE} --worker=all jaxalign.tar.gz jaxalign:jaxalign.tar.gz",
    f"{GCLOUD} tpu-vm scp {WHERE} --worker=all ./tpu/worker_setup.sh jaxalign:worker_setup.sh",
    f"{GCLOUD} tpu-vm ssh jaxalign {WHERE} --worker=all "
    "--command=bash ~/worker_setup.sh my-bucket c0ffee",
]
CREATE = (
    f"{GCLOUD} queued-resources create jaxalign {WHERE} --node-id jaxalign "
    "--accelerator-type v5litepod-256 --runtime-version v2-alpha-tpuv5-lite --spot"
)
FETCH = [
    "mkdir -p runs",
    "gcloud storage rsync --recursive --exclude=(.*/)?(checkpoints|training/[^/]+)/ "
    "gs://my-bucket/values runs/values",
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


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("checkpoints/200/manifest.ocdbt", True),
        ("training/shared/100/manifest.ocdbt", True),
        ("fractions-0.5/training/shared/100/manifest.ocdbt", True),
        ("training/shared.jsonl", False),
        ("seed0/adapters/joint/adapter_model.safetensors", False),
        ("logs/t1v-n-1-w-0.log", False),
        ("result.json", False),
    ],
)
def test_checkpoints_are_not_fetched(path: str, left_out: bool) -> None:
    _, copy = printed(call("fetch.sh", "--dry-run", "values", **CLOUD))
    [pattern] = re.findall(r"--exclude=(\S+)", copy)
    # gcloud takes a list, apart at commas, or at what stands between a first ^ and a second.
    assert "," not in pattern
    assert not (pattern.startswith("^") and "^" in pattern[1:])
    assert bool(re.match(pattern, path)) == left_out


def test_a_dry_run_of_run_prints_every_command() -> None:
    arguments = ["values", "experiments.soft_prompt", "--model", "~/shared/Llama 3"]
    start = (
        f"{GCLOUD} tpu-vm ssh jaxalign {WHERE} --worker=all --command=bash "
        r"~/jaxalign/tpu/worker.sh start values experiments.soft_prompt "
        r'--model "$HOME"/shared/Llama\ 3'
    )
    done = call("run.sh", "--dry-run", *arguments, **CLOUD)
    assert printed(done) == [CREATE, *SETUP, start, *FETCH]
    assert "cat\\ ~/shared/values/exit" in done.stderr  # what it would ask while waiting


def test_a_home_directory_is_that_of_the_worker(tmp_path: Path) -> None:
    """`~` expands on the worker in every spelling; no other argument is changed."""
    stub(tmp_path / "jaxalign" / "tpu" / "worker.sh", 'printf "%s\\n" "$@"')
    kept = ["", "a b", "~", "x~/y", "--note=see ~/y", "$HOME", "'\""]
    homes = ["~/shared/L 3", "--model=~/shared/L 3", "~/"]
    done = call("run.sh", "--dry-run", "values", "experiments.x", *homes, *kept, **CLOUD)
    [start] = [line for line in printed(done) if "worker.sh start" in line]
    said = subprocess.run(
        ["bash", "-c", start.partition("--command=")[2]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    ).stdout.splitlines()
    there = [word.replace("~", str(tmp_path)) for word in homes]
    assert said == ["start", "values", "experiments.x", *there, *kept]


def test_dry_runs_of_slurm_and_multi_gpu() -> None:
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
        *[
            ("create.sh", [], {"TOPOLOGY": wrong}, f"TOPOLOGY={wrong}: v4, v5e, v5p or v6e")
            for wrong in ("v9:2x2", "v5e", "v5e:", "v5e:4x", "v5e:axb", "v5e:08x8", "v5e:0x4")
        ],
        ("setup.sh", [], {"BUCKET": "my-bucket"}, "BUCKET=my-bucket: give gs://"),
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


# Answers of `describe`, in turn; the program is done at its second question after the last. Setup
# leaves the commit on the workers, unless it is `broken`, which mends itself.
FAKE = """
echo "$*" >>"$FAKE/calls"
case "$*" in
    *describe*)
        read -r answer <"$FAKE/states"
        sed -i 1d "$FAKE/states"
        [[ $answer == NONE ]] && exit 1
        echo "$answer"
        ;;
    *jaxalign/.commit*) cat "$FAKE/workers" ;;
    *"worker_setup.sh my"*) rm "$FAKE/broken" 2>/dev/null && exit 1; echo c0ffee >"$FAKE/workers" ;;
    *"cat ~/shared"*) if [[ -s $FAKE/states ]]; then echo running; else echo "$CODE"; fi ;;
esac
"""


def loop(
    folder: Path, states: list[str], code: int = 0, workers: str = "none", **changes: str
) -> tuple[subprocess.CompletedProcess, list]:
    """Run run.sh; return it and the calls it made. Workers of an ACTIVE slice print `workers`."""
    stub(folder / "bin" / "gcloud", FAKE)
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    (folder / "workers").write_text(f"{workers}\n")
    done = call(
        "run.sh",
        "values",
        "experiments.sweep",
        **CLOUD | changes,
        FAKE=str(folder),
        CODE=str(code),
        PATH=f"{folder / 'bin'}:{os.environ['PATH']}",
        POLL_SECONDS="0.01",
        RESULTS=str(folder / "runs"),
        TRIES="3",
    )
    verbs = (
        "create",
        "delete",
        ".commit",
        "worker_setup.sh my",
        "worker.sh start",
        "rsync",
        "exit ||",
    )
    calls = (folder / "calls").read_text().splitlines()
    return done, [verb for call in calls for verb in verbs if verb in call]


def test_a_preempted_slice_is_recreated_and_the_program_restarted(tmp_path: Path) -> None:
    made, lost = ["ACTIVE", "ACTIVE"], ["SUSPENDED", "SUSPENDED"]
    done, calls = loop(tmp_path, ["NONE", "PROVISIONING", *made, *lost, *made])
    assert done.returncode == 0, done.stderr
    make = ["create", "worker_setup.sh my", "worker.sh start", "exit ||"]
    assert calls == [*make, "delete", *make, "rsync"]


def test_a_program_that_fails_is_not_restarted(tmp_path: Path) -> None:
    done, calls = loop(tmp_path, ["ACTIVE", "ACTIVE"], code=3, workers="c0ffee")
    assert done.returncode == 2
    assert "ended with exit code 3" in done.stderr
    assert calls == [".commit", "worker.sh start", "exit ||", "rsync"]


@pytest.mark.parametrize(
    ("workers", "setup"),
    [
        ("c0ffee\nc0ffee", False),
        ("none", True),
        ("01d\n01d", True),  # a fix was committed since
        ("c0ffee\n01d", True),
        ("01d\nbusy values", False),  # never under a running program
    ],
)
def test_an_existing_slice_gets_this_commit(tmp_path: Path, workers: str, setup: bool) -> None:
    done, calls = loop(tmp_path, ["ACTIVE", "ACTIVE"], workers=workers)
    assert done.returncode == 0, done.stderr
    again = ["worker_setup.sh my"] * setup
    assert calls == [".commit", *again, "worker.sh start", "exit ||", "rsync"]


def test_a_setup_that_failed_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    done, calls = loop(tmp_path, ["NONE", "ACTIVE", "ACTIVE", "ACTIVE"])
    assert done.returncode == 0, done.stderr
    setup = "worker_setup.sh my"
    assert calls == ["create", setup, ".commit", setup, "worker.sh start", "exit ||", "rsync"]


def test_a_slice_busy_with_another_run_is_left_alone(tmp_path: Path) -> None:
    done, calls = loop(tmp_path, ["ACTIVE"], workers="01d\nbusy other\n01d\nbusy other")
    assert done.returncode == 2
    assert "jaxalign is busy with run other" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert calls == [".commit"]


def test_what_a_worker_reports(tmp_path: Path) -> None:
    loop(tmp_path, ["ACTIVE", "ACTIVE"])
    [look] = [
        call.partition("--command=")[2]
        for call in (tmp_path / "calls").read_text().splitlines()
        if ".commit" in call
    ]
    home = tmp_path / "home"
    stub(tmp_path / "bin" / "mountpoint", "[[ -e ~/mounted ]]")
    environment = {"HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def says() -> list[str]:
        done = subprocess.run(["bash", "-c", look], capture_output=True, text=True, env=environment)
        assert done.returncode == 0  # anything else: the worker cannot be reached
        return done.stdout.splitlines()

    (home / "jaxalign").mkdir(parents=True)
    assert says() == ["none"]
    (home / "jaxalign" / ".commit").write_text("c0ffee\n")
    assert says() == ["none"]  # what is written now would not reach the bucket
    (home / "mounted").touch()
    assert says() == ["c0ffee"]
    with (home / ".jaxalign-running").open("w") as lock:
        lock.write("values\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert says() == ["c0ffee", "busy values"]
    assert says() == ["c0ffee"]


def test_it_gives_up_when_no_slice_is_available(tmp_path: Path) -> None:
    done, calls = loop(tmp_path, ["NONE", "FAILED"] * 3)
    assert done.returncode == 2
    assert "no slice to run on after 3 failures" in done.stderr
    assert "worker.sh start" not in calls


def test_bad_input_is_reported_once_and_not_retried(tmp_path: Path) -> None:
    done, calls = loop(tmp_path, ["NONE", "NONE"], TOPOLOGY="v5e:4x")
    assert done.returncode == 2
    assert "TOPOLOGY=v5e:4x" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert calls == []


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (1, 3), (2, 1)])
def test_multi_gpu_restarts_only_after_a_crash(tmp_path: Path, code: int, starts: int) -> None:
    stub(tmp_path / "python", f'[[ $* == *--help* ]] && echo none && exit\necho "$*"; exit {code}')
    out = tmp_path / "out"
    done = call("multi_gpu.sh", str(out), "experiments.x", "--a", PYTHON=str(tmp_path / "python"))
    assert done.returncode == code
    logs = "".join(path.read_text() for path in (out / "logs").iterdir())
    assert logs == f"-m experiments.x --a --out {out}\n" * starts


def test_slurm_runs_what_it_prints(tmp_path: Path) -> None:
    stub(tmp_path / "python", "echo --resume")
    stub(tmp_path / "bin" / "srun", 'printf "%s\\n" "JAXALIGN_HOSTS=$JAXALIGN_HOSTS" srun "$@"')
    environment = {
        "PYTHON": str(tmp_path / "python"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    arguments = ("slurm.sbatch", str(tmp_path / "a run"), "experiments.x", "my file.toml")
    shown = call(*arguments, **environment, DRY_RUN="1").stdout
    ran = call(*arguments, **environment)
    assert ran.returncode == 0, ran.stderr
    assert "--open-mode=append" in ran.stdout.splitlines()
    assert shlex.split(shown.partition("   (")[0]) == ["+", *ran.stdout.splitlines()]


def test_multi_gpu_takes_paths_relative_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is this package's even if the current directory has one of the same name."""
    (tmp_path / "tpu").mkdir()
    (tmp_path / "tpu" / "__init__.py").write_text("raise SystemExit('not this one')")
    find = "import os, tpu; print(os.getcwd(), tpu.__file__)"
    stub(tmp_path / "python", f'[[ $* == *--help* ]] || {sys.executable} -c "{find}"')
    monkeypatch.chdir(tmp_path)
    done = call("multi_gpu.sh", "out", "experiments.x", PYTHON="./python")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path} {ROOT / 'tpu' / '__init__.py'}\n"
    assert [log.read_text() for log in (tmp_path / "out" / "logs").iterdir()] == [done.stdout]


@pytest.mark.parametrize("tries", ["0", "-1", "two"])
def test_multi_gpu_refuses_bad_numbers_of_tries(tmp_path: Path, tries: str) -> None:
    done = call("multi_gpu.sh", str(tmp_path / "out"), "experiments.x", TRIES=tries, PYTHON="true")
    assert done.returncode == 2
    assert done.stderr == f"error: TRIES={tries}: give 1 or more\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["multi_gpu.sh", "slurm.sbatch", "worker.sh"])
def test_a_long_help_does_not_hide_resume(tmp_path: Path, script: str) -> None:
    """Without --resume a preempted run would be refused or begin anew.

    The help goes on for more than a pipe holds, so that a reader that exits early makes it fail.
    """
    python = tmp_path / "jaxalign" / ".venv" / "bin" / "python"
    stub(python, 'if [[ $* == *--help* ]]; then printf "%s\\n%99999s" --resume; else echo "$*"; fi')
    stub(tmp_path / "bin" / "srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    out, command = str(tmp_path / "shared" / "values"), ["experiments.x", "--a"]
    done = call(
        script,
        *(["run", "values"] if script == "worker.sh" else [out]),
        *command,
        PYTHON=str(python),
        HOME=str(tmp_path),
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"-m experiments.x --a --out {out} --resume\n"


def exit_code(out: Path) -> str:
    """Wait for the content of a file, which exists a moment before it has any."""
    return (out / "exit").read_text() if (out / "exit").exists() else ""


@pytest.mark.parametrize("worker", [0, 3])
def test_a_worker_logs_and_writes_its_exit_code(tmp_path: Path, worker: int) -> None:
    """`start` returns at once; the program gets its options, its secrets and its hosts."""
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
    while time.monotonic() < until and worker == 0 and not exit_code(out):
        time.sleep(0.02)
    assert exit_code(out) == ("5\n" if worker == 0 else "")


def test_a_worker_has_one_run_at_a_time(tmp_path: Path) -> None:
    """Another run is refused at once with the name of the running one."""
    run = "[[ $* == *--help* ]] || { echo began; until [[ -e ~/go ]]; do sleep 0.02; done; }"
    stub(tmp_path / "jaxalign" / ".venv" / "bin" / "python", run)
    stub(tmp_path / "bin" / "python3", "exit 1")  # nothing is installed
    home = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def start(name: str) -> subprocess.CompletedProcess:
        return call("worker.sh", "start", name, "experiments.x", **home)

    try:
        assert start("values").returncode == 0
        other = start("other")
        assert other.returncode == 2
        assert "busy with run values" in other.stderr
        assert len(other.stderr.splitlines()) == 1
        assert start("values").returncode == 0  # run.sh called again: it goes on
        setup = call("worker_setup.sh", "my-bucket", "c0ffee", **home)
        assert setup.returncode == 2
        assert "busy with run values" in setup.stderr
    finally:
        (tmp_path / "go").touch()
    until = time.monotonic() + 30
    while time.monotonic() < until and start("other").returncode == 2:
        time.sleep(0.02)
    assert (tmp_path / ".jaxalign-running").read_text() == "other\n"
    [log] = (tmp_path / "shared" / "values" / "logs").iterdir()
    assert log.read_text() == "began\n"


@pytest.mark.parametrize("failing", ["", "uv", "gcsfuse"])
def test_a_worker_records_the_commit_only_if_setup_succeeds(tmp_path: Path, failing: str) -> None:
    """run.sh does not retry after exit code 2, which uv uses as well."""
    (tmp_path / "packed" / "jaxalign").mkdir(parents=True)
    subprocess.run(
        ["tar", "-czf", tmp_path / "jaxalign.tar.gz", "-C", tmp_path / "packed", "jaxalign"],
        check=True,
    )
    installed = tmp_path / "bin" / "installed"
    stub(installed, "echo ready")
    uv = f"mkdir -p jaxalign/.venv/bin && cp {installed} jaxalign/.venv/bin/python"
    for name, text in {"python3": "", "uv": uv, "mountpoint": "exit 1", "gcsfuse": ""}.items():
        stub(tmp_path / "bin" / name, "exit 2" if name == failing else text)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    stamp = tmp_path / "jaxalign" / ".commit"
    stub(stamp, "of an earlier setup")
    done = call("worker_setup.sh", "my-bucket", "c0ffee", HOME=str(tmp_path), PATH=path)
    assert done.returncode == (1 if failing else 0), done.stderr
    assert stamp.exists() == (not failing)
    assert failing or stamp.read_text() == "c0ffee\n"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if checker := shutil.which("shellcheck"):
        subprocess.run([checker, "-x", str(script)], check=True, cwd=ROOT)
