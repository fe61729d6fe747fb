#!/usr/bin/env bash
# Stage 3 on a Ray cluster: RL=/path/to/bin RAY_ADDRESS=http://HEAD:8265 NODES=4 ./submit.sh [overrides …]
# RL is the bin folder of the environment with verl, at the same path on every node.
# The nodes need this repository, the data and the stage-2 model at the same paths (a shared file system).
set -euo pipefail
cd "$(dirname "$0")/../../.."
: "${RAY_ADDRESS:?the address of the cluster, http://HEAD:8265}"
rl=${RL:?the bin folder of the environment with verl}
recipe=${RECIPE:-stage3_qwen}
"$rl"/ray job submit --address "$RAY_ADDRESS" --no-wait -- \
  bash -c "cd '$PWD' && '$rl/python' -m uadt.integrations.verl --config-path '$PWD/examples/ophthareason/full' \
    --config-name '$recipe' trainer.nnodes=${NODES:-1} $*"
