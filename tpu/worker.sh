#!/usr/bin/env bash
# Runs on every worker, called by run.sh: starts an experiment that outlives the connection.
#
#     worker.sh start RUN MODULE [OPTIONS...]    once per worker; does nothing if RUN is running
#                                              there, and fails if another run is
#     worker.sh run   RUN MODULE [OPTIONS...]    what `start` starts
set -euo pipefail
action=$1 name=$2 module=$3
shift 3
out=$HOME/shared/$name
log=$out/logs/$(hostname).log
python=$HOME/jaxalign/.venv/bin/python
lock=$HOME/.jaxalign-running

# The first worker reports for all: if another fails, it fails too.
first() { [[ $(hostname) == *-w-0 ]]; }

if [[ $action == start ]]; then
    # Opened to append, to keep the name of the run that holds it. The program started below
    # inherits the open file, and with it the lock.
    exec 9>>"$lock"
    if ! flock --nonblock 9; then
        holder=$(cat "$lock")
        [[ $holder != "$name" ]] || exit 0
        echo "error: $(hostname) is busy with run $holder; wait for it, or set another NAME" >&2
        exit 2
    fi
    echo "$name" >"$lock"
    mkdir -p "$out/logs"
    ! first || rm -f "$out/exit"
    setsid nohup "$0" run "$name" "$module" "$@" </dev/null >>"$log" 2>&1 &
    exit 0
fi

cd "$HOME/jaxalign"
if [[ -f $HOME/.jaxalign-secrets ]]; then
    set -a
    # shellcheck source=/dev/null
    source "$HOME/.jaxalign-secrets"
    set +a
fi
options=(--out "$out")
# Not piped into grep -q, which exits at the first match and makes the writer of the help fail.
if [[ $("$python" -m "$module" --help) == *--resume* ]]; then options+=(--resume); fi
export JAXALIGN_HOSTS=auto # JAX finds the other workers of the slice
code=0
"$python" -m "$module" "$@" "${options[@]}" || code=$?
! first || echo "$code" >"$out/exit"
exit "$code"
