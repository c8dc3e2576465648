#!/usr/bin/env bash
# What an accelerator does, as one command that ends in 8 minutes:
#
#   PYTHON=.venv/bin/python bash benchmarks/accelerator.sh OUT
#
# Each part writes OUT/<part>.json, with the device's name, and OUT/<part>.log. One
# that fails or takes too long is named at the end, and the others go on. What runs
# is `python` unless PYTHON says otherwise.
set -uo pipefail
mkdir -p "${1:?expected a folder for the results, found none}"
out=$(cd "$1" && pwd)
python=$(command -v "${PYTHON:-python}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "$0")/.."
failed=""

# part NAME SECONDS MODULE [FLAG ...]
part() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  # A program that waits for its driver may not end when it is asked to.
  if timeout -k 5 "$limit" "$python" -m "$@" "--json_out=$out/$name.json" \
    > "$out/$name.log" 2>&1; then
    echo "$name: $((SECONDS - start)) s"
  else
    echo "$name: ended after $((SECONDS - start)) of $limit s, see $out/$name.log"
    failed+=" $name"
  fi
}

# The reference workload, the sweep over critics, batches, seeds and precisions.
part learner_reference 75 benchmarks.learner --workload=reference
part learner_sweep 140 benchmarks.learner --workload=sweep
part rivals 75 benchmarks.rivals
part kernels 65 benchmarks.kernels --sizes=32768,1048576
part world 55 benchmarks.world --sessions=1024,32768 --candidates=50
part memory_paper 35 benchmarks.progressive_memory --preset=paper
if [ -n "$failed" ]; then
  echo "not whole:$failed"
  exit 1
fi
