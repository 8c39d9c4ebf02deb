#!/usr/bin/env bash
# Quality against size and speed: ours from 2.7 to 8.3 bits a weight and every peer, benched in one run.
#   bench/curve.sh CHECKPOINT TEXT CALIBRATION        (about two hours on 2 cores; goes on where it was stopped)
set -euo pipefail
model=$1 text=$2 calibration=$3
out=${FIGURES:-out/curve}
mkdir -p "$out/peers"

# pack NAME COMMAND…    tune NAME STEPS    ship NAME CHECKPOINT: each does nothing where its result is already
pack() { [ -d "$out/$1-packed" ] || greenllm "${@:2}" "$model" -o "$out/$1-packed" --calibration "$calibration"; }
tune() {
    [ -d "$out/$1-tuned" ] || greenllm tune "$out/$1-packed" -o "$out/$1-tuned" --teacher "$model" --steps "$2" \
        --calibration "$calibration" --samples 512 --length 256
}
ship() { [ -d "$out/$1" ] || greenllm export "$out/$2" -o "$out/$1"; }
mixed() { pack "$1" mixed --bits "$2" --grids "$3" --samples 64 --length 256; }

mixed m2.7 2.65 "2g32 2g64 4g64"
mixed m3.6 3.55 "2g32 2g64 4g32 4g64"
pack int4 quantize
mixed m5.3 5.25 "4g32 4g64 8g32 8g64"
mixed m6.3 6.25 "4g32 4g64 8g32 8g64"
pack int8 quantize --bits 8 --group 64 --head-bits 8 --head-group 64
tune m2.7 80
tune m3.6 60
tune int4 60
tune m5.3 40
for name in m2.7 m3.6 int4 m5.3; do ship "$name" "$name-tuned"; done
ship int4-untuned int4-packed
ship m6.3 m6.3-packed
ship int8 int8-packed
python -m greenllm.bench.peers "$model" --out "$out/peers" --calibration "$calibration"
python -m greenllm.bench.curve "$model" --text "$text" --out "$out/report" --effort "${EFFORT:-quick}" \
    --ours "$out"/{m2.7,m3.6,int4,int4-untuned,m5.3,m6.3,int8} \
    --peers "$out"/peers/{llamacpp-q8_0,llamacpp-q4_k_m,llamacpp-q4_0,ort-genai-int4,olive-gptq-int4,openvino-int4}
