#!/usr/bin/env bash
# Installs Python 3.11 and this package (as committed) on every worker, and mounts the bucket.
#
#     ZONE=us-west4-a BUCKET=gs://my-bucket tpu/setup.sh [--dry-run]
#
# shellcheck source=tpu/common.sh
source "$(dirname "$0")/common.sh"
read_options "$@"
need_bucket

if [[ -n ${SECRETS:-} ]]; then
    [[ -f $SECRETS ]] || fail "SECRETS=$SECRETS: no such file"
    mode=$(stat -c %a "$SECRETS" 2>/dev/null || stat -f %Lp "$SECRETS")
    [[ $mode == 600 || $mode == 400 ]] || fail "SECRETS=$SECRETS has mode $mode; chmod 600 it"
fi

commit=$(git -C "$ROOT" rev-parse HEAD) || exit 2 # git has printed the reason
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=$work/jaxalign.tar.gz
run git -C "$ROOT" archive --format=tar.gz --prefix=jaxalign/ --output="$archive" "$commit"
to=(gcloud compute tpus tpu-vm scp "${PLACE[@]}" --worker=all)
run "${to[@]}" "$archive" "$NAME:jaxalign.tar.gz"
run "${to[@]}" "$ROOT/tpu/worker_setup.sh" "$NAME:worker_setup.sh"
if [[ -n ${SECRETS:-} ]]; then
    # A file of mode 600 keeps its mode; nothing secret is ever an argument.
    (umask 077 && cp "$SECRETS" "$work/.jaxalign-secrets")
    run "${to[@]}" "$work/.jaxalign-secrets" "$NAME:.jaxalign-secrets"
    on_worker all 'chmod 600 ~/.jaxalign-secrets'
fi
on_worker all "bash ~/worker_setup.sh ${BUCKET#gs://} $commit"
