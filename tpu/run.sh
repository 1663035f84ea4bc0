#!/usr/bin/env bash
# Runs an experiment on all workers until it is done, and recreates the slice whenever it is lost.
#
#     ZONE=us-west4-a BUCKET=gs://my-bucket tpu/run.sh [--dry-run] RUN MODULE [OPTIONS...]
#     ... tpu/run.sh values experiments.soft_prompt --model '~/shared/Meta-Llama-3-8B-Instruct'
#
# The module gets --out ~/shared/RUN, in the bucket, and --resume if it has that option, so that it
# continues where the lost slice stopped. Every worker's log is in the bucket too; everything but the
# checkpoints is fetched to $RESULTS/RUN. Interrupting this script leaves the slice running: call it
# again. An existing slice is set up again if another commit is on it, unless RUN is running there; if
# another run is, this one is refused.
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
need_bucket
((${#ARGS[@]} >= 2)) || fail "give the run's name and a module, such as values experiments.sweep"
name=${ARGS[0]}
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "run $name: letters, digits, . _ - only"
# ~/ at the start of a word, or after --option=, means the home directory of the worker. It was quoted
# for this shell, and a shell would expand only the first of the two.
command=
tilde='^(--[A-Za-z0-9._-]+=)?~/(.*)$'
for word in "${ARGS[@]}"; do
    if [[ $word =~ $tilde ]]; then
        printf -v word "%s\"\$HOME\"/%q" "${BASH_REMATCH[@]:1}"
    else
        printf -v word %q "$word"
    fi
    command+=" $word"
done
here=$(dirname "$0")
export DRY_RUN

# Makes a slice with this commit on it, whatever was there before. A dry run assumes nothing was.
make_slice() {
    case $(state NONE) in
        ACTIVE) renew ;;
        NONE) "$here/create.sh" && "$here/setup.sh" ;;
        *) "$here/delete.sh" && "$here/create.sh" && "$here/setup.sh" ;;
    esac
}

# Sets up an existing slice, unless every worker has this commit and the bucket, which a restart
# unmounts. Each worker also reports which run is busy on it: code is not replaced under a program.
renew() {
    local look found busy
    look="mountpoint -q ~/shared && cat ~/jaxalign/.commit || echo none; "
    look+="flock --nonblock ~/.jaxalign-running true || echo busy \$(cat ~/.jaxalign-running)"
    found=$(gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=all --command="$look" |
        sort -u) || return
    busy=$(sed -n 's/^busy //p' <<<"$found")
    if [[ $busy == "$name" ]]; then
        echo "run $name goes on, with the code that it was started with"
    elif [[ -n $busy ]]; then
        fail "$NAME is busy with run ${busy//$'\n'/, }; wait for it, or set another NAME"
    elif [[ $found != "$(git -C "$ROOT" rev-parse HEAD)" ]]; then
        "$here/setup.sh"
    fi
}

# Prints the exit code of the program, "running", or nothing if the first worker does not answer.
exit_code() {
    ask 0 gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 \
        --command="cat ~/shared/$name/exit || echo running" || true
}

failures=0
while :; do
    code=0
    make_slice && on_worker all "bash ~/jaxalign/tpu/worker.sh start$command" || code=$?
    if ((code)); then
        ((code != 2)) || exit 2 # bad input, which has been explained already
        ((++failures < TRIES)) || fail "no slice to run on after $failures failures"
        sleep "$POLL_SECONDS"
        continue
    fi
    failures=0
    while [[ $(state ACTIVE) == ACTIVE ]]; do
        code=$(exit_code)
        if [[ $code =~ ^[0-9]+$ ]]; then
            "$here/fetch.sh" "$name"
            ((code == 0)) || fail "the program ended with exit code $code; see $RESULTS/$name/logs"
            exit 0
        fi
        sleep "$POLL_SECONDS"
    done
    echo "$NAME was taken away; making it again"
done
