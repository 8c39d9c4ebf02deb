#!/usr/bin/env bash
# What bits cost in bias and refusals: the source, and 8, 4 and 3 bits of it, asked the same public sets.
#   bench/bias.sh CHECKPOINT DATA [bench options, such as --limit 400]
# DATA: directory with CrowS-Pairs, BBQ and XSTest as they are published.
set -euo pipefail
model=$1 data=$2
shift 2
out=${BIAS:-out/bias}
mkdir -p "$out"
greenllm recipes int4 | sed 's/ bits: 4, group/ bits: 3, group/; s/4-bit/3-bit/' > "$out/int3.yaml"
grep -q ' bits: 3, group' "$out/int3.yaml"
for recipe in int8 int4 "$out/int3.yaml"; do
    name=$(basename "$recipe" .yaml)
    [ -d "$out/$name" ] || greenllm compress "$model" -o "$out/$name" --recipe "$recipe" --no-bench
done
greenllm bench "$model" "$out/int8" "$out/int4" "$out/int3" --suite fairness --suite safety --data "$data" \
    --report "$out/report" ${COUNTRY:+--country "$COUNTRY"} "$@"
