#!/bin/bash
# One run on a Cloud TPU slice, from your own machine, until it ends: bash train_tpu.sh FLAG ...
# Creates a spot slice if there is none, installs on all hosts, trains, and begins again with the
# same flags whenever the slice or the run was preempted. Keep it in a tmux.
: "${TPU:?the name of the slice}" "${ZONE:?its zone}" "${TYPE:?its accelerator type, v5litepod-16}"
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # the runtime that goes with TYPE
SOURCE=${SOURCE:?a git URL of batchgrow that the hosts can clone}
PAUSE=${PAUSE:-60} # seconds between two looks

on_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

state() {
  gcloud compute tpus queued-resources describe "$TPU" --zone="$ZONE" --format="value(state.state)" \
    2>/dev/null
}

wait_for_slice() {
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in
      SUSPENDED | FAILED)
        gcloud compute tpus queued-resources delete "$TPU" --zone="$ZONE" --force --quiet
        ;;
      "")
        gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --zone="$ZONE" \
          --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
        ;;
    esac
    sleep "$PAUSE"
  done
}

# The hosts' own Python may be older than batchgrow wants; uv brings one.
install="rm -f batchgrow/status; test -d batchgrow || git clone -q $SOURCE batchgrow; cd batchgrow &&
  { test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&
  ~/.local/bin/uv venv -q --allow-existing --python 3.11 .venv &&
  ~/.local/bin/uv pip install -q -e '.[tpu,gs]'"
train="cd batchgrow
  .venv/bin/python -m experiments.train --distributed$(printf ' %q' "$@"); echo \$? > status"

while true; do
  wait_for_slice
  on_hosts all "$install" && on_hosts all "$train"
  # What the run said, not what ssh made of several hosts; none if a host is gone.
  status=$(on_hosts 0 "cat batchgrow/status" 2>/dev/null)
  case $status in
    0 | 2 | 3 | 76 | 130) exit "$status" ;;
  esac
  sleep "$PAUSE" # 75: preempted; 1, 134 or nothing: a host died. Begin again
done
