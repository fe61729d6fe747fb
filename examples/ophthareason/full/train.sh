#!/usr/bin/env bash
# The three stages on one node of 8 GPUs. Arguments reach stage 3 as overrides. SFT and RL are the bin folders of the two
# environments of docs/reproduce.md.
set -euo pipefail
cd "$(dirname "$0")/../../.."
full=examples/ophthareason/full
gpus=${GPUS:-8}
recipe=${RECIPE:-stage3_qwen}
sft=${SFT:?the bin folder of the environment with TRL}
rl=${RL:?the bin folder of the environment with verl}

case $recipe in
  stage3_intern) base=OpenGVLab/InternVL3-2B-hf; suffix=_intern ;;
  *) base=Qwen/Qwen2.5-VL-3B-Instruct; suffix= ;;
esac
stage1=runs/full/stage1$suffix
stage2=runs/full/stage2$suffix
finetune=("$sft"/torchrun --nproc-per-node "$gpus" -m examples.ophthareason.full.finetune)

[ -f "$stage1/config.json" ] ||
  "${finetune[@]}" $full/stage1_alignment.yaml model=$base training.output_dir="$stage1"
[ -f "$stage2/config.json" ] ||
  "${finetune[@]}" $full/stage2_reasoning.yaml model="$stage1" training.output_dir="$stage2"
"$rl"/python -m examples.ophthareason.full.dry_run "$recipe" "$@"
"$rl"/python -m uadt.integrations.verl --config-path "$PWD/$full" --config-name "$recipe" "$@"
