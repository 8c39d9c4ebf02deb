"""What only a machine with an NVIDIA GPU can show (see bench/gpu.md); elsewhere it is refused."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
import pytest
import torch
from conftest import make_llama

import greenllm
from greenllm.bench import models
from greenllm.bench.energy import nvml
from greenllm.bench.runners import Where, cuda, loader
from greenllm.errors import GreenError

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="no NVIDIA GPU is here")
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("gpu") / "llama")


@pytest.mark.parametrize(
    ("words", "where"),
    [("gpu", Where(gpu=True)), ("gpu-fp16", Where(True, "fp16")), ("gpu-bf16-compiled", Where(True, "bf16", True))],
)
def test_words(words, where, llama):
    found = models.find(f"{words}:{llama}")
    assert (found.where, found.runner, found.name) == (where, "torch", f"llama ({words})")


@pytest.mark.parametrize("words", ["gpu-int8", "gpu-fp16-bf16", "gpu-", "gpu-compiled-compiled", "gpux"])
def test_other_words(words, llama):
    with pytest.raises(GreenError):
        models.find(f"{words}:{llama}")


def test_a_graph_keeps_its_types(llama, tmp_path):
    made = greenllm.export(llama, tmp_path / "onnx", to="onnx")
    assert models.find(f"gpu:{made.path}").where == Where(gpu=True)
    with pytest.raises(GreenError, match="types of its own"):
        models.find(f"gpu-fp16:{made.path}")


def test_the_same_model_twice_keeps_its_baseline(llama):
    here, there = str(llama), f"gpu-fp16:{llama}"
    assert [t.where.gpu for t in models.find_all([here, there], there)] == [True, False]


@pytest.mark.skipif(GPU, reason="a GPU is here")
@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_the_cpu_does_not_stand_for_a_gpu(engine, llama, tmp_path):
    path = llama if engine == "torch" else greenllm.export(llama, tmp_path / "onnx", to="onnx").path
    with pytest.raises(GreenError, match="no NVIDIA GPU|CUDAExecutionProvider"):
        loader(engine).load(str(path), 1, where=Where(gpu=True))


@needs_gpu
@pytest.mark.parametrize("where", [Where(gpu=True), Where(gpu=True, compiled=True)])
def test_torch_there_says_what_it_says_here(where, llama):
    here, there = loader("torch").load(str(llama), 1), loader("torch").load(str(llama), 1, where=where)
    assert there.info.gpu
    assert list(there.stream(PROMPT, 12)) == list(here.stream(PROMPT, 12))
    assert list(there.stream(PROMPT[:7], 12)) == list(here.stream(PROMPT[:7], 12))
    np.testing.assert_allclose(there.logits(PROMPT), here.logits(PROMPT), atol=2e-3)


@needs_gpu
@pytest.mark.parametrize(("dtype", "off"), [("fp16", 0.02), ("bf16", 0.15)])
def test_torch_there_in_half_precision(dtype, off, llama):
    here = loader("torch").load(str(llama), 1).logits(PROMPT)
    there = loader("torch").load(str(llama), 1, where=Where(True, dtype)).logits(PROMPT)
    assert np.abs(there - here).max() < off * np.abs(here).max()


@needs_gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="onnxruntime is the CPU's")
def test_onnxruntime_there_says_what_it_says_here(llama, tmp_path):
    path = str(greenllm.export(llama, tmp_path / "onnx", to="onnx").path)
    here, there = loader("onnxruntime").load(path, 1), loader("onnxruntime").load(path, 1, where=Where(gpu=True))
    assert there.info.gpu
    assert list(there.stream(PROMPT, 12)) == list(here.stream(PROMPT, 12))
    np.testing.assert_allclose(there.logits(PROMPT), here.logits(PROMPT), atol=2e-2)  # TF32


@needs_gpu
def test_the_card_is_asked(llama):
    kept = loader("torch").load(str(llama), 1, where=Where(gpu=True))
    assert cuda.held() > 0
    assert cuda.copy_bandwidth() > 1e11
    kept.close()


@needs_gpu
def test_the_counter_of_energy_counts():
    meter, a = nvml.Nvml(), torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()

    def watts(work):
        begin, first = time.perf_counter(), meter.joules()
        while time.perf_counter() - begin < 2:
            work()
        return (meter.joules() - first) / (time.perf_counter() - begin)

    def multiply():
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()

    idle, busy = watts(lambda: time.sleep(0.1)), watts(multiply)
    assert 0 < idle < busy < 2000
    meter.close()
