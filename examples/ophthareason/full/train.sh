#!/usr/bin/env bash
# The three stages on one node of 8 GPUs. Arguments reach stage 3 as overrides.
set -euo pipefail
cd "$(dirname "$0")/../../.."
full=examples/ophthareason/full
gpus=${GPUS:-8}
recipe=${RECIPE:-stage3_qwen}

[ -f runs/full/stage1/config.json ] ||
  torchrun --nproc-per-node "$gpus" -m examples.ophthareason.full.finetune $full/stage1_alignment.yaml
[ -f runs/full/stage2/config.json ] ||
  torchrun --nproc-per-node "$gpus" -m examples.ophthareason.full.finetune $full/stage2_reasoning.yaml
python -m examples.ophthareason.full.dry_run "$recipe" "$@"
python -m uadt.integrations.verl --config-path "$PWD/$full" --config-name "$recipe" "$@"
