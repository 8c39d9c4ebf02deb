"""Perplexity and fidelity against direct computations; texts and windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import make_tokenizer

from greenllm.bench import fidelity, perplexity, texts
from greenllm.errors import GreenError

torch = pytest.importorskip("torch")


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(150, 97)) * 5).astype(np.float32)
    return a, (a + rng.normal(size=a.shape)).astype(np.float32), rng.integers(0, 97, 150).tolist()


def test_score_is_torch_cross_entropy_and_kl(logits):
    source, model, targets = logits
    kept = np.empty_like(source)
    base = perplexity.score(source, targets, keep=kept)
    found = perplexity.score(model, targets, kept)
    s, m, t = torch.from_numpy(source), torch.from_numpy(model), torch.tensor(targets)
    assert base.nll == pytest.approx(torch.nn.functional.cross_entropy(s, t).item(), rel=1e-5)
    assert found.nll == pytest.approx(torch.nn.functional.cross_entropy(m, t).item(), rel=1e-5)
    kl = torch.nn.functional.kl_div(m.log_softmax(-1), s.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found.kl == pytest.approx(kl.item(), rel=1e-4)
    assert found.top1 == pytest.approx((s.argmax(-1) == m.argmax(-1)).float().mean().item())


def test_a_model_equals_itself(logits):
    source, _, targets = logits
    kept = np.empty_like(source)
    perplexity.score(source, targets, keep=kept)
    same = perplexity.score(source, targets, kept)
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.top1 == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_told(logits, bad):
    source, _, targets = logits
    source[77, 3] = bad
    with pytest.raises(GreenError, match="NaN or infinity"):
        perplexity.score(source, targets)


def test_another_vocabulary_is_told(logits):
    source, model, targets = logits
    with pytest.raises(GreenError, match="another vocabulary"):
        perplexity.score(model[:, :90], [0] * len(targets), source)
    with pytest.raises(GreenError, match="beyond its 97"):
        perplexity.score(source, [97] * len(targets))


def test_torch_runner_gives_the_models_own_perplexity_and_greedy_answer(llama):
    from transformers import AutoModelForCausalLM

    from greenllm.bench.runners import torch as runner

    threads = torch.get_num_threads()
    found = runner.load(str(llama), 1)
    torch.set_num_threads(threads)
    assert torch.is_grad_enabled()  # a runner in this process leaves others their gradients
    tokens = list(range(3, 60))
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
        ids = torch.tensor([tokens])
        loss = model(ids, labels=ids).loss.item()
        answer = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None)[0, 57:]
    assert perplexity.score(found.logits(tokens)[:-1], tokens[1:]).nll == pytest.approx(loss, rel=1e-5)
    mine = [found.prefill(tokens, 6)]
    while len(mine) < 6:
        mine.append(found.step(mine[-1]))
    assert mine == answer.tolist()


def test_windows_do_not_overlap_and_know_their_bytes(tmp_path):
    make_tokenizer(tmp_path)
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    cut = texts.Tokens(tmp_path).windows(text, 64, 5)
    assert [len(t) for t in cut.tokens] == [64] * 5
    assert (cut.start, cut.total, cut.text_bytes) == (1, 1000, [63] * 5)
    assert len({tuple(t[:2]) for t in cut.tokens}) > 1
    whole = texts.Tokens(tmp_path).windows(text, 64, 10**6)
    assert sum(map(len, whole.tokens)) == 1000 // 64 * 64


def test_text_shorter_than_a_window(tmp_path):
    make_tokenizer(tmp_path)
    with pytest.raises(GreenError, match="5 tokens, a window 64"):
        texts.Tokens(tmp_path).windows("short", 64, 5)


def test_bits_per_byte_of_a_uniform_model():
    scores = perplexity.Scores([63, 63], [perplexity.Score(math.log(128), 63)] * 2)
    assert scores.measurements()["bits_per_byte"].value == pytest.approx(7)
    assert scores.measurements()["perplexity"].value == pytest.approx(128)


def test_built_in_text_is_there():
    assert len(texts.read(None).text) > 300_000
    assert len(texts.sentences(texts.read(None).text, 64)) == 64


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"  \n ", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"body": 1}\n', "line 2"),
        ("a.jsonl", b"not json\n", "line 1"),
    ],
)
def test_bad_texts(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GreenError, match=says):
        texts.read(tmp_path / name)
    with pytest.raises(GreenError, match="no such text file"):
        texts.read(tmp_path / "none.txt")


def test_embedding_fidelity_ignores_length():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 16)).astype(np.float32)
    found = fidelity.answer_measurements(fidelity.embeddings(a, a * 3), "sentences")
    assert found["cosine"].value == pytest.approx(1, abs=1e-6)
    assert found["neighbour"].value == 100


def test_spearman_of_a_perfect_order():
    angles = np.linspace(0.1, 1.5, 30)
    left = np.tile([1.0, 0.0], (30, 1)).astype(np.float32)
    right = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert fidelity.spearman(left, right, (-angles).tolist()).value == pytest.approx(1)


def test_pairs_are_read_and_bad_rows_are_numbered(tmp_path):
    good = "sentence1,sentence2,score\n" + 'a cat,"a dog, too",2.5\n' * 12
    (tmp_path / "a.csv").write_text(good)
    left, right, scores = fidelity.read_pairs(tmp_path / "a.csv")
    assert (left[0], right[0], scores[0], len(left)) == ("a cat", "a dog, too", 2.5, 12)
    (tmp_path / "b.csv").write_text("a,b,1\na,b\n")
    with pytest.raises(GreenError, match="row 2"):
        fidelity.read_pairs(tmp_path / "b.csv")
    (tmp_path / "c.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": 1}\n')
    with pytest.raises(GreenError, match="1 pairs"):
        fidelity.read_pairs(tmp_path / "c.jsonl")
