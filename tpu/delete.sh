#!/usr/bin/env bash
# Gives the slice back. Results are in the bucket and stay.
#
#     ZONE=us-west4-a tpu/delete.sh [--dry-run]
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
