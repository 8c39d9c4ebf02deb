#!/usr/bin/env bash
# Cut a fifth (half of it words that the text does not need, half of it heads and channels), teach it again for an hour, and
# make it 4 bit; beside the source, the cut alone, and the source in 4 bit.
#   bench/small.sh CHECKPOINT TEXT DATA [bench options, such as --task arc.jsonl --limit 200]
# DATA: files to learn from, as greenllm distill takes them; the first calibrates. SMALL, MINUTES, RATE, SAMPLES: where to,
# and how distill learns.
set -euo pipefail
model=$1 text=$2 data=$3
shift 3
out=${SMALL:-out/small}
first=${data%%,*}
mkdir -p "$out"
half=0.1056 # of the whole, and then of what is left
[ -d "$out/words" ] || greenllm prune "$model" -o "$out/words" --method vocabulary --ratio $half \
    --corpus "$(sed 's/=[^,]*//g' <<< "$data")"
[ -d "$out/cut" ] || greenllm prune "$out/words" -o "$out/cut" --method width --ratio $half \
    --calibration "${first%=*}" --samples 64 --length 256
[ -d "$out/taught" ] || greenllm distill "$out/cut" --teacher "$model" -o "$out/taught" --data "$data" \
    --minutes "${MINUTES:-58}" --rate "${RATE:-5e-4}" --rows 4 --accumulate 1 --train blocks --task 1 \
    ${SAMPLES:+--samples "$SAMPLES"}
[ -d "$out/int4" ] || greenllm compress "$model" -o "$out/int4" --recipe int4 --no-bench
[ -d "$out/taught-int4" ] || greenllm compress "$out/taught" -o "$out/taught-int4" --recipe int4 --no-bench
greenllm bench "$model" "$out/cut" "$out/taught" "$out/int4" "$out/taught-int4" \
    --text "$text" --report "$out/report" ${COUNTRY:+--country "$COUNTRY"} "$@"
