# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts: settings, --dry-run, and running commands on the workers.
#
# Settings come from the environment:
#   NAME      of the slice                             (default jaxalign)
#   TOPOLOGY  chips, as tpu.plan takes them            (default v5e:16x16)
#   ZONE      their zone                               (required)
#   PROJECT   Google Cloud project                     (default: gcloud's own)
#   BUCKET    gs://bucket for results and checkpoints  (required to set up and run)
#   SPOT      1: cheaper, may be preempted; 0: not     (default 1)
#   SECRETS   file of NAME=value lines, mode 600, that programs find in their environment
#   TRIES     failures in a row after which run.sh gives up on a slice   (default 20)
#   RESULTS   local directory for fetched results      (default runs)

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

# Handles --dry-run and --help at the front of the arguments; the rest goes to ARGS.
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
        fail "BUCKET=${BUCKET:-}: give gs://my-bucket, where results outlive a lost slice"
}

# Prints a command in a form that can be typed, and runs it unless this is a dry run.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    ((DRY_RUN)) || "$@"
}

on_worker() { # WORKER COMMAND
    run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

# Prints the output of a command. In a dry run prints the command, and a made-up answer.
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

# Prints the state of the slice: ACTIVE, PROVISIONING, WAITING_FOR_RESOURCES, SUSPENDED, FAILED ...,
# or NONE if there is no slice.
state() { # MADE-UP-ANSWER
    ask "$1" gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" \
        --format='value(state.state)' || echo NONE
}
