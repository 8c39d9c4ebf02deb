here=$(cd "$(dirname "$0")" && pwd)
tools=${EDGELLM:-$HOME/TensorRT-Edge-LLM-$VERSION}
prompts=${1:-$here/prompts.json}
answers=${2:-$here/answers.json}

[ -d "$here/engine" ] || {
    echo "run.sh: there is no engine yet. Run ./build.sh first." >&2
    exit 1
}
EDGELLM_PLUGIN_PATH=$tools/build/libNvInfer_edgellm_plugin.so
export EDGELLM_PLUGIN_PATH
"$tools/build/examples/llm/llm_inference" --engineDir "$here/engine" --inputFile "$prompts" --outputFile "$answers" \
    --warmup 1 --dumpProfile --profileOutputFile "$here/profile.json"
cat "$answers"
