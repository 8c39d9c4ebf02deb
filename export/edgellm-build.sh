here=$(cd "$(dirname "$0")" && pwd)
tools=${EDGELLM:-$HOME/TensorRT-Edge-LLM-$VERSION}  # a built checkout of that version may be named

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

[ "$(uname -m)" = aarch64 ] || fail "this is $(uname -m). Run it on the $TARGET: an engine runs where it was built."
[ ! -e "$here/engine" ] || fail "$here/engine is there. Delete it to build it anew."
available=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
[ "$available" -ge "$MEMORY" ] ||
    fail "$available MB of memory are free; the model needs about $MEMORY. Stop the desktop: sudo systemctl isolate multi-user.target"

if [ ! -x "$tools/build/examples/llm/llm_build" ]; then
    PATH=/usr/local/cuda/bin:$PATH
    for needed in git cmake make nvcc; do
        command -v "$needed" >/dev/null || fail "$needed is missing: sudo apt install git cmake build-essential nvidia-jetpack"
    done
    nvcc --version | grep -q "release $CUDA" ||
        fail "JetPack $JETPACK has CUDA $CUDA; here is $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')."
    if [ ! -d "$tools" ]; then
        rm -rf "$tools.part"
        git clone --branch "v$VERSION" --depth 1 --recurse-submodules --shallow-submodules \
            https://github.com/NVIDIA/TensorRT-Edge-LLM.git "$tools.part"
        mv "$tools.part" "$tools"
    fi
    # ALL: by default the kernels of INT4 are left out, which is noticed at the first token only
    cmake -S "$tools" -B "$tools/build" -DCMAKE_BUILD_TYPE=Release -DTRT_PACKAGE_DIR=/usr \
        -DCMAKE_TOOLCHAIN_FILE="$tools/cmake/aarch64_linux_toolchain.cmake" -DEMBEDDED_TARGET="$BOARD" \
        -DCUDA_CTK_VERSION="$CUDA" -DENABLE_CUTE_DSL=ALL
    cmake --build "$tools/build" --parallel "$(nproc)"
fi

EDGELLM_PLUGIN_PATH=$tools/build/libNvInfer_edgellm_plugin.so
export EDGELLM_PLUGIN_PATH
rm -rf "$here/engine.part"
"$tools/build/examples/llm/llm_build" --onnxDir "$here/llm" --engineDir "$here/engine.part" \
    --maxBatchSize 1 --maxInputLen "$INPUT" --maxKVCacheCapacity "$CACHE"
mv "$here/engine.part" "$here/engine"
echo "$here/engine is built. Next: ./run.sh"
