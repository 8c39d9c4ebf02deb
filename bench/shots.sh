#!/usr/bin/env bash
# Accuracy against shots: reviews, multiple choice (from a start too), spoken digits; about three hours of one core.
#   bench/shots.sh CHECKPOINT TRANSCRIBER DATA
# DATA: directory with SST-2, BBQ and the Free Spoken Digit Dataset as they are published.
set -euo pipefail
model=$1 transcriber=$2 data=$3
out=${SHOTS:-out/shots}
mkdir -p "$out"
[ -d "$out/whole" ] || greenllm compress "$model" -o "$out/whole" --recipe int4 --no-bench
int4=$out/int4
ln -sfn whole/checkpoint "$int4"
python -m greenllm.bench.fewsets "$data" "$out/sets"
few() { python -m greenllm.bench.fewshot "${@:3}" --task "$out/sets/$1-few.jsonl" --test "$out/sets/$1-test.jsonl" --out "$out/$2"; }
few sst2 sst2 "$int4" "$model" --limit 300 --shots 4 16
mapfile -t others < <(find "$data" -name Age.jsonl -o -name Nationality.jsonl | sort)
[ -d "$out/start" ] || greenllm meta-train "$int4" "${others[@]}" -o "$out/start" --shots 128 --rounds 16
few religion religion "$int4" --limit 150 --shots 4 --no-prompt --meta "$out/start"
few digits digits "$transcriber" --limit 150 --shots 4 16
cat "$out"/*/fewshot.md
