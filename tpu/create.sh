#!/usr/bin/env bash
# Requests a slice (as a queued resource) and waits until it is active.
#
#     ZONE=us-west4-a TOPOLOGY=v5e:16x16 tpu/create.sh [--dry-run]
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"

[[ $TOPOLOGY =~ ^v(4|5e|5p|6e):[1-9][0-9]*(x[1-9][0-9]*)+$ ]] ||
    fail "TOPOLOGY=$TOPOLOGY: v4, v5e, v5p or v6e and a shape, such as v5e:16x16"
chip=${TOPOLOGY%%:*}
shape=${TOPOLOGY#*:}
chips=$((${shape//x/*}))
case $chip in # Google counts v4 and v5p in cores, two per chip
    v4) type=v4-$((2 * chips)) image=tpu-ubuntu2204-base ;;
    v5e) type=v5litepod-$chips image=v2-alpha-tpuv5-lite ;;
    v5p) type=v5p-$((2 * chips)) image=v2-alpha-tpuv5 ;;
    v6e) type=v6e-$chips image=v2-alpha-tpuv6e ;;
esac

options=(--node-id "$NAME" --accelerator-type "$type" --runtime-version "$image")
((SPOT)) && options+=(--spot)
run gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" "${options[@]}"

while :; do
    now=$(state ACTIVE)
    echo "$NAME: $now"
    case $now in
        ACTIVE) exit 0 ;;
        FAILED | SUSPENDED | SUSPENDING | NONE)
            echo "error: the slice is $now; tpu/delete.sh, then again" >&2
            exit 1
            ;;
    esac
    sleep "$POLL_SECONDS"
done
