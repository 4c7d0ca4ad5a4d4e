#!/usr/bin/env bash
# Train the built-in pair's adapter: three stages, from few facts to many.
#
#     bash examples/builtin_pair/train_adapter.sh BASE DATA OUT
#
# BASE is the base model's folder, DATA what make_data.py wrote, OUT gets a folder a stage. The last
# replies of a conversation stay visible and are learned, all after one write pass of the history.
set -euo pipefail
base=$1 data=$2 out=$3

stage() { # NAME REPLIES_ASKED ITERS BATCH SCHEDULE MORE...
  local name=$1 asked=$2 iters=$3 batch=$4 schedule=$5
  shift 5
  python -m deltamem_mlx train --model "$base" --data "$data/$name" --adapter-path "$out/$name" \
    --assistant-loss-mode visible_assistant_turns --episode-recent-messages $((2 * asked - 1)) \
    --iters "$iters" --batch-size "$batch" --learning-rate 3e-3 --lr-schedule "$schedule" \
    --warmup 0.1 --write-sparsity 0 --state-only-prob 0 --steps-per-eval 100 --seed 1 "$@"
}

stage stage1 3 125 32 constant --rank 16 --alpha 32 --num-state-heads 2 --delta-heads q,o \
  --target-layers 1,2,3 --adapter-settings '{"state_update_mode": "no_lambda"}'
stage stage2 5 200 16 constant --resume-adapter-file "$out/stage1"
stage stage3 6 800 16 cosine --resume-adapter-file "$out/stage2"
