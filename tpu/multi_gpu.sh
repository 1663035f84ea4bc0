#!/usr/bin/env bash
# Runs an experiment on all GPUs of this machine, starting it again when it crashes.
#
#     tpu/multi_gpu.sh [--dry-run] OUT MODULE [OPTIONS...]
#     tpu/multi_gpu.sh runs/values experiments.soft_prompt --model /models/Meta-Llama-3-8B-Instruct
#
# One process drives them all, so nothing has to be found and no address given. GPUS=0,1 takes some
# of them only; TRIES=N (default 3) is how often to start. Bad input (exit code 2) is not retried.
# OUT and other paths are relative to where this is called.
set -euo pipefail
dry_run=0
[[ ${1:-} != --dry-run ]] || { dry_run=1 && shift; }
(($# >= 2)) || { sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0" && exit 2; }
out=$1 module=$2
shift 2
tries=${TRIES:-3}
[[ $tries =~ ^[1-9][0-9]*$ ]] || { echo "error: TRIES=$tries: give 1 or more" >&2 && exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
# This package is run wherever the caller stands, even in a folder with modules of the same names.
export PYTHONSAFEPATH=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$root/.venv/bin/python}
command=("$python" -m "$module" "$@" --out "$out")
[[ -z ${GPUS:-} ]] || export CUDA_VISIBLE_DEVICES=$GPUS

if ((dry_run)); then
    printf '+%s' "${GPUS:+ CUDA_VISIBLE_DEVICES=$GPUS}"
    printf ' %q' PYTHONSAFEPATH=1 "PYTHONPATH=$PYTHONPATH" "${command[@]}" --resume
    printf '   (--resume where the module has it; up to %s times)\n' "$tries"
    exit 0
fi
# No pipe into grep -q: it leaves at the first match, and the help still being written fails.
if [[ $("$python" -m "$module" --help) == *--resume* ]]; then command+=(--resume); fi
mkdir -p "$out/logs"
for ((try = 1; try <= tries; try++)); do
    code=0
    "${command[@]}" 2>&1 | tee -a "$out/logs/$(hostname).log" || code=${PIPESTATUS[0]}
    ((code != 0 && code != 2 && code != 130)) || exit "$code"
    echo "exit code $code, try $try of $tries" >&2
done
exit "$code"
