#!/usr/bin/env bash
# A student of two teachers who know different things, beside the students of either alone; see README "Prune and distil".
#   bench/teachers.sh ENCODER FIRST SECOND
# FIRST, SECOND: of text and label, FIRST-train.jsonl and FIRST-test.jsonl. TEACHERS, SAMPLES: where to, and rows that each
# teacher learns from; a student learns from twice as many.
set -euo pipefail
encoder=$1 first=$2 second=$3
out=${TEACHERS:-out/teachers}
samples=${SAMPLES:-2000}
mkdir -p "$out"
learn=(--labels label --rows 16 --accumulate 1 --length 48 --rate 2e-4 --epochs 2)
for part in train test; do cat "$first-$part.jsonl" "$second-$part.jsonl" > "$out/both-$part.jsonl"; done
teach() { [ -d "$out/$1" ] || greenllm distill "${@:2}" -o "$out/$1" "${learn[@]}"; }
for part in first second; do
    teach "$part" "$encoder" --data "${!part}-train.jsonl" --logits 0 --task 1 --samples "$samples"
done
half=$(python -c "import json, sys; n = json.load(open(sys.argv[1]))['num_hidden_layers']; print(*range(1, n, 2), sep=',')" \
    "$encoder/config.json")
[ -d "$out/half" ] || greenllm prune "$encoder" -o "$out/half" --layers "$half"
student() { teach "$1" "$out/half" --data "$out/both-train.jsonl" --samples $((2 * samples)) "${@:2}"; }
student of-first --teacher "$out/first"
student of-second --teacher "$out/second"
student of-both --teacher "$out/first,$out/second" --choose best
for best in of-first of-second; do
    greenllm bench "$out/$best" "$out/of-both" --task "$out/both-test.jsonl" --task "$first-test.jsonl" \
        --task "$second-test.jsonl" --limit 100000 --report "$out/report-$best"
done
