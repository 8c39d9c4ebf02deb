#!/usr/bin/env bash
# Quality against size and speed: ours from 3.6 to 8.3 bits a weight and every peer, benched in one run.
#   bench/curve.sh CHECKPOINT TEXT CALIBRATION        (about an hour on 2 cores; goes on where it was stopped)
set -euo pipefail
model=$1 text=$2 calibration=$3
out=${FIGURES:-out/curve}
mkdir -p "$out/peers"

# Each does nothing where its result is already.
pack() { [ -d "$out/$1-packed" ] || greenllm "${@:2}" "$model" -o "$out/$1-packed" --calibration "$calibration"; }
mixed() { pack "$1" mixed --bits "$2" --grids "$3" --samples 64 --length 256; }
tune() {
    [ -d "$out/$2" ] || greenllm tune "$out/$1" -o "$out/$2" --teacher "$model" --steps "$3" \
        --calibration "$calibration" --samples 512 --length 256
}
ship() { [ -d "$out/$2" ] || greenllm export "$out/$1" -o "$out/$2"; }

mixed m3.6 3.55 "2g32 2g64 4g32 4g64"
pack int4 quantize
mixed m5.3 5.25 "4g32 4g64 8g32 8g64"
mixed m6.3 6.25 "4g32 4g64 8g32 8g64"
pack int8 quantize --bits 8 --group 64 --head-bits 8 --head-group 64
tune m3.6-packed m3.6-tuned 60
tune m3.6-tuned m3.6-again 50
tune int4-packed int4-tuned 60
tune m6.3-packed m6.3-tuned 32
ship m3.6-again m3.6
ship int4-tuned int4-learned
ship int4-packed int4
ship m5.3-packed m5.3
ship m6.3-tuned m6.3
ship int8-packed int8
for peer in llamacpp-q8_0 llamacpp-q4_k_m llamacpp-q4_0 ort-genai-int4 openvino-int4; do
    python -m greenllm.bench.peers "$model" --out "$out/peers" --calibration "$calibration" --only "$peer"
done
python -m greenllm.bench.curve "$model" --text "$text" --out "$out/report" --effort "${EFFORT:-quick}" \
    --ours "$out"/{m3.6,int4,int4-learned,m5.3,m6.3,int8} \
    --peers "$out"/peers/{llamacpp-q8_0,llamacpp-q4_k_m,llamacpp-q4_0,ort-genai-int4,openvino-int4}
