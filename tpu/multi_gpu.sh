#!/usr/bin/env bash
# Runs an experiment on all GPUs of this machine and restarts it when it crashes.
#
#     tpu/multi_gpu.sh [--dry-run] OUT MODULE [OPTIONS...]
#     tpu/multi_gpu.sh runs/values experiments.soft_prompt --model /models/Meta-Llama-3-8B-Instruct
#
# One process drives all GPUs, so no address is needed. GPUS=0,1 uses only some of them; TRIES=N
# (default 3) is how often the program is started. Bad input (exit code 2) is not retried. OUT and
# other paths are relative to the directory this script is called from.
set -euo pipefail
dry_run=0
[[ ${1:-} != --dry-run ]] || { dry_run=1 && shift; }
(($# >= 2)) || { sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0" && exit 2; }
out=$1 module=$2
shift 2
tries=${TRIES:-3}
[[ $tries =~ ^[1-9][0-9]*$ ]] || { echo "error: TRIES=$tries: give 1 or more" >&2 && exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
# Use this package even if the current directory has modules of the same names.
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
# Not piped into grep -q, which exits at the first match and makes the writer of the help fail.
if [[ $("$python" -m "$module" --help) == *--resume* ]]; then command+=(--resume); fi
mkdir -p "$out/logs"
for ((try = 1; try <= tries; try++)); do
    code=0
    "${command[@]}" 2>&1 | tee -a "$out/logs/$(hostname).log" || code=${PIPESTATUS[0]}
    ((code != 0 && code != 2 && code != 130)) || exit "$code"
    echo "exit code $code, try $try of $tries" >&2
done
exit "$code"
