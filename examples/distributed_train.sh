#!/bin/sh
# Train on several processes: each has its part of every batch, the result is that of one.
#
#   sh distributed_train.sh 2 MODEL DATA ADAPTER [more flags of deltamem-mlx train]
#
# On several Macs, write a hosts file with mlx.distributed_config, have the model and the data under
# the same paths on each, and set HOSTS: HOSTS=hosts.json sh distributed_train.sh 4 MODEL DATA ADAPTER
set -eu
processes=$1 model=$2 data=$3 adapter=$4
shift 4
if [ -n "${HOSTS:-}" ]; then where="--hostfile $HOSTS"; else where="-n $processes"; fi
# --batch-size counts episodes over all processes, so it has to be a multiple of them.
# shellcheck disable=SC2086
exec mlx.launch $where -- "${PYTHON:-python}" -m deltamem_mlx train --model "$model" --data "$data" \
	--adapter-path "$adapter" --batch-size $((4 * processes)) "$@"
