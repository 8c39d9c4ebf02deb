#!/usr/bin/env bash
# A student of two teachers who know different texts, beside the students of either alone.
#   bench/teachers.sh MODEL ITS_DATA OTHER_DATA TEXT
# One teacher is MODEL, which knows texts such as ITS_DATA; the other is MODEL taught OTHER_DATA, which unlearns some of them.
# The students are MODEL without a fifth of its weights, and learn from both data. TEXT: of both kinds, and in neither data.
# TEACHERS, STEPS, RATE: where to, and how much is learned.
set -euo pipefail
model=$1 own=$2 other=$3 text=$4
out=${TEACHERS:-out/teachers}
mkdir -p "$out"
learn=(--rows 8 --accumulate 1 --length 128 --steps "${STEPS:-105}" --rate "${RATE:-3e-4}")
[ -d "$out/other" ] || greenllm distill "$model" -o "$out/other" --data "$other" --logits 0 --task 1 "${learn[@]}"
[ -d "$out/cut" ] || greenllm prune "$model" -o "$out/cut" --method depth --ratio 0.2 --calibration "$own" --samples 16
student() {
    [ -d "$out/$1" ] || greenllm distill "$out/cut" -o "$out/$1" --data "$own,$other" --teacher "$2" "${@:3}" "${learn[@]}"
}
student of-model "$model"
student of-other "$out/other"
student of-both "$model,$out/other" --choose best
greenllm bench "$out/of-both" "$out/of-model" "$out/of-other" --text "$text" --report "$out/report" \
    ${COUNTRY:+--country "$COUNTRY"}
