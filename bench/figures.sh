#!/usr/bin/env bash
# The figures of the README: source, our int4 and int8, and the ORT-GenAI builder's own int4, in one run.
#   bench/figures.sh CHECKPOINT TEXT
set -euo pipefail
model=$1 text=$2
out=${FIGURES:-out/figures}
mkdir -p "$out"
[ -d "$out/int4" ] || greenllm compress "$model" -o "$out/int4" --recipe int4 --no-bench
[ -d "$out/int8" ] || greenllm compress "$model" -o "$out/int8" --recipe int8 --no-bench
python -m greenllm.bench.peers "$model" --out "$out" --only ort-genai-int4
greenllm bench "$model" "$out/int4" "$out/int8" "$out/ort-genai-int4" \
    --text "$text" --effort "${EFFORT:-quick}" --report "$out/report" ${COUNTRY:+--country "$COUNTRY"}
