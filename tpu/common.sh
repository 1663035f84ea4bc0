# shellcheck shell=bash disable=SC2034
# Read by the other scripts: settings, --dry-run, and how a command reaches the workers.
#
# Settings come from the environment:
#   NAME      of the slice                             (default jaxalign)
#   TOPOLOGY  chips, as tpu.plan takes them            (default v5e:16x16)
#   ZONE      where they are                           (needed)
#   PROJECT   Google Cloud project                     (default: gcloud's own)
#   BUCKET    gs://bucket for results and checkpoints  (needed to set up and run)
#   SPOT      1: cheaper, may be taken away; 0: not    (default 1)
#   SECRETS   file of NAME=value lines, mode 600, that programs find in their environment
#   TRIES     failures in a row to make the slice that run.sh puts up with   (default 20)
#   RESULTS   local directory for what comes back      (default runs)

set -euo pipefail

NAME=${NAME:-jaxalign}
TOPOLOGY=${TOPOLOGY:-v5e:16x16}
SPOT=${SPOT:-1}
RESULTS=${RESULTS:-runs}
DRY_RUN=${DRY_RUN:-0}
POLL_SECONDS=${POLL_SECONDS:-60}
TRIES=${TRIES:-20}
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "error: $*" >&2
    exit 2
}

# Takes --dry-run and --help off the front of the arguments; the rest is in ARGS.
read_options() {
    ARGS=()
    while (($#)); do
        case $1 in
            --dry-run) DRY_RUN=1 ;;
            --help | -h)
                sed -n '/^#!/d; /^# shellcheck/d; /^#/!q; s/^# \{0,1\}//p' "$0"
                sed -n '/^# Settings/,/^$/s/^# \{0,1\}//p' "$ROOT/tpu/common.sh"
                exit 0
                ;;
            *) break ;;
        esac
        shift
    done
    ARGS=("$@")
    [[ -n ${ZONE:-} ]] || fail "ZONE is not set; for instance ZONE=us-west4-a"
    PLACE=(--zone "$ZONE")
    [[ -z ${PROJECT:-} ]] || PLACE+=(--project "$PROJECT")
}

need_bucket() {
    [[ ${BUCKET:-} =~ ^gs://[a-z0-9][a-z0-9._-]*$ ]] ||
        fail "BUCKET=${BUCKET:-} is not like gs://my-bucket; what a lost slice leaves is kept there"
}

# Prints a command as it could be typed, and runs it unless this is a dry run.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    ((DRY_RUN)) || "$@"
}

on_worker() { # WORKER COMMAND
    run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

# What a command answers. In a dry run it is printed and the answer is made up.
ask() { # MADE-UP-ANSWER COMMAND...
    local made_up=$1
    shift
    if ((DRY_RUN)); then
        run "$@" >&2
        echo "$made_up"
    else
        "$@" 2>/dev/null
    fi
}

# ACTIVE, PROVISIONING, WAITING_FOR_RESOURCES, SUSPENDED, FAILED ...; NONE where there is no slice.
state() { # MADE-UP-ANSWER
    ask "$1" gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" \
        --format='value(state.state)' || echo NONE
}
