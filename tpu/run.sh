#!/usr/bin/env bash
# Runs an experiment on all workers until it is done, making the slice again whenever it is lost.
#
#     ZONE=us-west4-a BUCKET=gs://my-bucket tpu/run.sh [--dry-run] RUN MODULE [OPTIONS...]
#     ... tpu/run.sh values experiments.soft_prompt --model '~/shared/Meta-Llama-3-8B-Instruct'
#
# The module gets --out ~/shared/RUN, in the bucket, and --resume where it has that option, so that
# it continues where the lost slice stopped. Every worker's log is in the bucket too; all of it
# comes back to $RESULTS/RUN. Interrupting this script leaves the slice running: call it again.
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
need_bucket
((${#ARGS[@]} >= 2)) || fail "give the run's name and a module, such as values experiments.sweep"
name=${ARGS[0]}
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "run $name: letters, digits, . _ - only"
printf -v command ' %q' "${ARGS[@]}"
# A leading ~ is the worker's home, not this machine's, and was quoted on its way here.
command=${command//\\~\//\~/}
here=$(dirname "$0")
export DRY_RUN

# A slice with the package on it, whatever was there before. Bad input (exit code 2) ends it all.
make_slice() {
    case $(state) in
        ACTIVE) ((DRY_RUN)) || return 0 ;;
        NONE) ;;
        *) "$here/delete.sh" ;;
    esac
    "$here/create.sh" && "$here/setup.sh"
}

# The program's exit code, "running", or nothing where the first worker does not answer.
exit_code() {
    ask 0 gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 \
        --command="cat ~/shared/$name/exit || echo running" || true
}

failures=0
while :; do
    code=0
    make_slice && on_worker all "bash ~/jaxalign/tpu/worker.sh start$command" || code=$?
    if ((code)); then
        ((code != 2 && ++failures < TRIES)) || fail "no slice to run on after $failures failures"
        sleep "$POLL_SECONDS"
        continue
    fi
    failures=0
    while [[ $(state) == ACTIVE ]]; do
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
