#!/usr/bin/env bash
# Copies a run's results and logs, not its checkpoints, from the bucket to this machine; works
# without the slice.
#
#     ZONE=us-west4-a BUCKET=gs://my-bucket tpu/fetch.sh [--dry-run] RUN
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
need_bucket
((${#ARGS[@]} == 1)) || fail "give the run's name"
run mkdir -p "$RESULTS"
# Checkpoints lie in checkpoints/, those of CultureSPA and its studies in training/GROUP/. gcloud
# matches from the start; with a ^ there it would take [^ for the end of a delimiter.
run gcloud storage rsync --recursive --exclude='(.*/)?(checkpoints|training/[^/]+)/' \
    "$BUCKET/${ARGS[0]}" "$RESULTS/${ARGS[0]}"
