#!/usr/bin/env bash
# Train the built-in pair's adapter: three stages, from few facts to many, and one with writes on.
#
#     bash examples/builtin_pair/train_adapter.sh BASE DATA OUT
#
# BASE is the base model's folder, DATA what make_data.py wrote, OUT gets a folder a stage. The last
# replies of a conversation stay visible and are learned, all after one write pass of the history.
set -euo pipefail
base=$1 data=$2 out=$3

stage() { # NAME DATA REPLIES_ASKED ITERS BATCH SCHEDULE LEARNING_RATE SEED MORE...
  local name=$1 from=$2 asked=$3 iters=$4 batch=$5 schedule=$6 rate=$7 seed=$8
  shift 8
  python -m deltamem_mlx train --model "$base" --data "$data/$from" --adapter-path "$out/$name" \
    --assistant-loss-mode visible_assistant_turns --episode-recent-messages $((2 * asked - 1)) \
    --iters "$iters" --batch-size "$batch" --learning-rate "$rate" --lr-schedule "$schedule" \
    --warmup 0.1 --write-sparsity 0 --state-only-prob 0 --steps-per-eval 100 --seed "$seed" "$@"
}

stage stage1 stage1 3 125 32 constant 3e-3 1 --rank 16 --alpha 32 --num-state-heads 2 \
  --delta-heads q,o --target-layers 1,2,3 --adapter-settings '{"state_update_mode": "no_lambda"}'
stage stage2 stage2 5 200 16 constant 3e-3 1 --resume-adapter-file "$out/stage1"
stage stage3 stage3 6 800 16 cosine 3e-3 1 --resume-adapter-file "$out/stage2"
# As a chat does: write while answering.
stage stage4 stage3 6 300 16 cosine 1.5e-3 2 --resume-adapter-file "$out/stage3" --write-visible
