"""Small models made here, and real ones where the machine has them."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

from greenllm.older import LAST_POSITION, older

OLD = older(version("onnxruntime-genai"), *LAST_POSITION)
FUSED = 4 + OLD  # matrices of an exported block: q, k and v are one; so are gate and up, but for an old builder
SHARED = Path(os.environ.get("GREENLLM_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MODELS = Path.home() / ".cache" / "greenllm-models"

CACHE = tempfile.mkdtemp(prefix="greenllm-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

os.environ["GREENLLM_CACHE"] = CACHE  # nothing that a user's benches found, and nothing into it
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never ask a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each of two workers on two cores


@pytest.fixture(autouse=True)
def _threads():
    """What a test changed of torch's threads is not the next one's: sums in another order are other bits."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _no_earlier_benches():
    """Intervals are those of a bench alone."""
    Path(CACHE, "benches.jsonl").unlink(missing_ok=True)


def edit(file, **values):
    """Change some values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def ran(capsys, *arguments):
    """(exit code, standard output, standard error) of greenllm run."""
    from greenllm.cli import main

    with pytest.raises(SystemExit) as e:
        main(["run", *map(str, arguments)])
    said = capsys.readouterr()
    return e.value.code or 0, said.out, " ".join(said.err.split())


def make_llama(path, *, tied=True, seed=0, layers=2, vocab=128, **options):
    """A random Llama with grouped-query attention and a byte-level tokenizer; saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=vocab, num_hidden_layers=layers, max_position_embeddings=256, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, **{**shape, **options},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    make_tokenizer(path, vocab)
    return path


def first_blocks(model, out, count):
    """The first blocks of a real decoder, with its embedding, head and tokenizer."""
    from safetensors.torch import load_file, save_file

    out.mkdir()
    tensors = load_file(model / "model.safetensors")
    kept = {
        n: t for n, t in tensors.items() if ".layers." not in n or int(n.split(".layers.")[1].split(".")[0]) < count
    }
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(model / file, out / file)
    edit(out / "config.json", num_hidden_layers=count)
    return out


def damaged_copy(source, out, change):
    """A checkpoint some of whose tensors were changed, opened."""
    from safetensors.torch import load_file, save_file

    from greenllm.checkpoint import open_checkpoint

    tensors = load_file(source / "model.safetensors")
    change(tensors)
    shutil.copyfile(source / "config.json", out / "config.json")
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return open_checkpoint(out)


def start_killed(signal_name, pattern, arguments, cwd):
    """Start greenllm in ``cwd``; it signals itself just before the file ``pattern`` comes to its final name."""
    killer = Path(__file__).with_name("killed.py")
    return subprocess.Popen(
        [sys.executable, killer, signal_name, pattern, *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def make_bert(path, *, seed=0, vocab=128):
    """A random BERT encoder with the same tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=128,
    )  # fmt: skip
    BertModel(config).save_pretrained(path)
    make_tokenizer(path, vocab)
    return path


def make_tokenizer(path, vocab=128):
    """One token a byte below ``vocab`` (so ASCII), and the blank."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *alphabet][:vocab]
    tokens = tokens if "Ġ" in tokens else [*tokens[:-1], "Ġ"]
    inner = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )
    fast.save_pretrained(path)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("untied") / "untied-llama", tied=False)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("bert") / "tiny-bert")


def _real(name):
    path = MODELS / name
    script = SHARED / "models" / "get_models.py"
    if not path.exists() and not script.exists():
        pytest.skip(f"{name} is not in {MODELS}, and {script}, which makes it, is not here")
    MODELS.mkdir(parents=True, exist_ok=True)
    with FileLock(MODELS / f".{name}.lock"):  # of several workers one makes it
        if not path.exists():
            subprocess.run([sys.executable, str(script), name], check=True)
    return path


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, real weights off the 4-bit grid."""
    return _real("smollm2")


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2, real weights."""
    return _real("minilm")


@pytest.fixture(scope="session")
def data():
    """Real data sets beside the project."""
    path = SHARED / "data"
    if not path.exists():
        pytest.skip(f"no data sets at {path}")
    return path


def make_moonshine(path, *, seed=0, vocab=128):
    """A random transcriber of the Moonshine kind with the same tokenizer as the others."""
    import torch
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration

    torch.manual_seed(seed)
    config = MoonshineConfig(
        vocab_size=vocab, hidden_size=64, intermediate_size=128, encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    MoonshineForConditionalGeneration(config).save_pretrained(path)
    make_tokenizer(path, vocab)
    return path


@pytest.fixture(scope="session")
def tiny_moonshine(tmp_path_factory):
    return make_moonshine(tmp_path_factory.mktemp("moonshine") / "tiny-moonshine")


@pytest.fixture(scope="session")
def moonshine(tmp_path_factory):
    """Moonshine-tiny, real weights, with a tokenizer.json made of the table of tokens beside them."""
    path = tmp_path_factory.mktemp("real") / "moonshine-tiny"
    table = SHARED / "models" / "moonshine_tokens.json"
    if not table.exists():
        pytest.skip(f"no table of Moonshine's tokens at {table}")
    shutil.copytree(_real("moonshine-tiny"), path)
    add_moonshine_tokenizer(path, json.loads(table.read_text(encoding="utf-8")))
    return path


def add_moonshine_tokenizer(path, table):
    """Write ``tokenizer.json`` of pieces (bytes as Latin-1), which are in the order in which they are merged."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges

    vocab = {t: i for i, t in enumerate(table[:3])}
    vocab |= {f"<0x{i - 3:02X}>": i for i in range(3, 259)}
    pieces = {t.encode("latin-1").decode("utf-8", "replace"): i for i, t in enumerate(table) if i >= 259}
    vocab |= pieces
    merges = generate_merges(pieces, {t: -i for t, i in pieces.items()})
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(path / "tokenizer.json"))


WHISPER = {"<|sot|>": 128, "<|en|>": 129, "<|de|>": 130, "<|fr|>": 131, "<|transcribe|>": 132, "<|translate|>": 133,
           "<|startofprev|>": 134, "<|notimestamps|>": 135}  # fmt: skip


def make_whisper(path, *, seed=0, mels=80, seconds=2, told=None, **options):
    """A random Whisper that hears ``seconds`` at once, of the same bytes and its own special tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    shape = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "d_model": 64, "max_target_positions": 32,
             "init_std": 0.3, "vocab_size": 136}  # fmt: skip
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "decoder_start_token_id": WHISPER["<|sot|>"]}
    config = WhisperConfig(num_mel_bins=mels, max_source_positions=50 * seconds,
                           **{**shape, **options}, **special)  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **special, max_length=config.max_target_positions, no_timestamps_token_id=WHISPER["<|notimestamps|>"],
        **({"is_multilingual": False, "begin_suppress_tokens": [2]} if told is None else told),
    )  # fmt: skip
    model.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds).save_pretrained(path)
    make_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens(list(WHISPER))
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory):
    return make_whisper(tmp_path_factory.mktemp("whisper") / "tiny-whisper")
