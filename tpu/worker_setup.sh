#!/usr/bin/env bash
# Runs on every worker, sent by setup.sh: unpacks and installs the package, mounts the bucket.
#
#     bash worker_setup.sh BUCKET-WITHOUT-gs:// COMMIT
set -euo pipefail
# tar and uv may exit with 2 as well, which run.sh takes for bad input and does not retry.
trap 'exit 1' ERR
bucket=$1 commit=$2
cd ~
if ! flock --nonblock .jaxalign-running true; then
    echo "error: $(hostname) is busy with run $(<.jaxalign-running); its code is not replaced" >&2
    exit 2
fi

# The Python of the images is older than 3.11; uv installs a newer one.
python3 -m pip install --quiet --user uv
export PATH=$HOME/.local/bin:$PATH
rm -rf jaxalign.old
[[ ! -d jaxalign ]] || mv jaxalign jaxalign.old
tar -xzf jaxalign.tar.gz
uv venv --quiet --python 3.11 jaxalign/.venv
uv pip install --quiet --python jaxalign/.venv/bin/python -e 'jaxalign[tpu]'

if ! command -v gcsfuse >/dev/null; then
    release=gcsfuse-$(lsb_release -c -s)
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $release main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -y -qq gcsfuse
fi
mkdir -p shared
mountpoint -q shared || gcsfuse --implicit-dirs --rename-dir-limit 100000 "$bucket" shared
jaxalign/.venv/bin/python -c 'import jaxalign, jax; print("ready: jax", jax.__version__)'
echo "$commit" >jaxalign/.commit # last: setup is complete, and run.sh need not repeat it
