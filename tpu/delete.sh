#!/usr/bin/env bash
# Deletes the slice. Results are in the bucket and stay there.
#
#     ZONE=us-west4-a tpu/delete.sh [--dry-run]
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
