#!/usr/bin/env bash
# Copies the results and logs of a run, but not its checkpoints, from the bucket to this machine.
# Works without the slice.
#
#     ZONE=us-west4-a BUCKET=gs://my-bucket tpu/fetch.sh [--dry-run] RUN
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
need_bucket
((${#ARGS[@]} == 1)) || fail "give the run's name"
run mkdir -p "$RESULTS"
# Checkpoints are in checkpoints/, those of CultureSPA and its studies in training/GROUP/. gcloud
# matches from the start of a path; after a leading ^ it would take [^ for the end of a delimiter.
run gcloud storage rsync --recursive --exclude='(.*/)?(checkpoints|training/[^/]+)/' \
    "$BUCKET/${ARGS[0]}" "$RESULTS/${ARGS[0]}"
