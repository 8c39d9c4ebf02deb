#!/usr/bin/env bash
# Cut a fifth, teach it again for an hour, and make it 4 bit; beside the source, the cut alone, and the source in 4 bit.
#   bench/small.sh CHECKPOINT TEXT DATA [bench options, such as --task arc.jsonl --limit 200]
# DATA: text to learn from, as greenllm distill takes it; its first file calibrates. SMALL, MINUTES, RATE, SAMPLES: where
# to, and how distill learns.
set -euo pipefail
model=$1 text=$2 data=$3
shift 3
out=${SMALL:-out/small}
first=${data%%,*}
mkdir -p "$out"
[ -d "$out/cut" ] || greenllm prune "$model" -o "$out/cut" --ratio 0.2 \
    --calibration "${first%=*}" --samples 64 --length 256
[ -d "$out/taught" ] || greenllm distill "$out/cut" --teacher "$model" -o "$out/taught" --data "$data" \
    --minutes "${MINUTES:-58}" --rate "${RATE:-5e-4}" --rows 4 --accumulate 1 --train blocks ${SAMPLES:+--samples "$SAMPLES"}
[ -d "$out/int4" ] || greenllm compress "$model" -o "$out/int4" --recipe int4 --no-bench
[ -d "$out/taught-int4" ] || greenllm compress "$out/taught" -o "$out/taught-int4" --recipe int4 --no-bench
greenllm bench "$model" "$out/cut" "$out/taught" "$out/int4" "$out/taught-int4" \
    --text "$text" --report "$out/report" ${COUNTRY:+--country "$COUNTRY"} "$@"
