"""A bundle: runs alone, tests itself, and refuses whatever was done to it."""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import OLD, start_killed

from greenllm import artifact
from greenllm.answer import stream
from greenllm.bench.runners import loader
from greenllm.errors import GreenError
from greenllm.export import archive, export
from greenllm.export.bundle import bundle, check
from greenllm.export.device import environment, run

ALONE = """
import runpy, sys
for name in ("greenllm", "torch", "transformers", "pydantic", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A machine on which nothing has passed its self-test yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def exported(llama, tmp_path_factory):
    return export(llama, tmp_path_factory.mktemp("exported") / "genai")


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
    return bundle(exported, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def alone(path, *arguments):
    """run.py with nothing but the runtimes to import."""
    command = [sys.executable, "-I", "-c", ALONE, path / "run.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def relist(path):
    """Have the manifest name what lies there now, as an attacker would."""
    artifact.relist(path, artifact.read(path).manifest)


def test_a_bundle_is_an_artifact_that_answers_alone_as_it_does_here(made):
    found, needs = check(made)
    assert (found.kind, needs.isa, needs.target) == ("genai", platform.machine(), "cpu")
    artifact.open_verified(made)
    said = alone(made, "hello", "--max-tokens", "8", "--raw")
    assert said.returncode == 0, said.stderr
    assert "self-test: 3 of 3" in said.stderr  # before the first answer
    assert said.stdout.rstrip("\n") == "".join(stream(made, "hello", max_tokens=8, raw=True)).rstrip("\n")
    again = alone(made, "hello", "--max-tokens", "8", "--raw")
    assert (again.stdout, again.stderr) == (said.stdout, "")


def test_an_encoder_embeds_as_the_bench_does(bert, tmp_path):
    made = bundle(export(bert, tmp_path / "onnx"), tmp_path / "bundle")
    said = alone(made, "hello", "good bye")
    assert said.returncode == 0, said.stderr
    runner = loader("onnxruntime").load(str(made), 1)
    texts = [run.load(made, "onnx").encode(t) for t in ("hello", "good bye")]
    want = [runner.encode([t])[0] for t in texts]
    np.testing.assert_allclose([json.loads(x) for x in said.stdout.splitlines()], want, atol=2e-6)


def test_plain_onnx_decodes_as_genai_does(llama, made, tmp_path):
    plain = bundle(export(llama, tmp_path / "onnx", to="onnx"), tmp_path / "bundle")
    one, other = (run.load(p, k).record("hello", 12) for p, k in ((plain, "onnx"), (made, "genai")))
    assert one["answer"] == other["answer"]
    np.testing.assert_allclose(one["log_probabilities"], other["log_probabilities"], atol=1e-3)
    assert check(plain)[1].python == "3.10"


def test_the_same_model_gives_the_same_bytes(exported, made, tmp_path):
    again = bundle(exported, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in made.iterdir()}
    for folder in "01":
        (tmp_path / folder).mkdir()
    first, second = (bundle(again, tmp_path / f"{i}" / "tiny.tar.gz") for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    with archive.opened(first) as path:
        assert check(path)[0].manifest == artifact.read(made).manifest
    (tmp_path / "plain").mkdir()
    assert bundle(made, tmp_path / "plain" / "tiny", archive=True).name == "tiny.tar.gz"
    with pytest.raises(GreenError, match="exists"):
        bundle(made, first)


def test_a_kill_while_an_archive_is_made_leaves_nothing_once_it_is_made(exported, tmp_path):
    out = tmp_path / "here" / "tiny.tar.gz"
    out.parent.mkdir()
    killed = start_killed(
        "SIGKILL", ".tiny.tar.gz.partial/tiny", ["bundle", str(exported.path), "-o", str(out)], tmp_path
    )
    assert (killed.wait(), out.exists()) == (-signal.SIGKILL, False)
    assert list(out.parent.iterdir())
    bundle(exported, out)
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def flip(path):
    weights = path / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)


def name_outside(path):
    manifest = json.loads((path / "greenllm.json").read_text())
    manifest["files"]["../outside"] = manifest["files"]["run.py"]
    (path / "greenllm.json").write_text(json.dumps(manifest))


def link_directory(path):
    (path / "more").symlink_to("/etc")


def link_file(path):
    (path / "run.py").rename(path.parent / "run.py")
    (path / "run.py").symlink_to(path.parent / "run.py")


HOSTILE = {
    "model.onnx.data": flip,
    "../outside": name_outside,
    "tokenizer.json": lambda p: (p / "tokenizer.json").unlink(),
    "extra.py": lambda p: (p / "extra.py").write_text("print('no')"),
    "more": link_directory,
    "run.py": link_file,
    "pipe": lambda p: os.mkfifo(p / "pipe"),
    "greenllm.json": lambda p: (p / "greenllm.json").write_text("{"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_was_done_to_it_is_named_and_nothing_is_loaded(copy, name):
    HOSTILE[name](copy)
    with pytest.raises(run.Refused, match=name):
        run.check(copy)
    with pytest.raises(GreenError, match=name):
        check(copy)
    if name != "run.py":  # which then lies elsewhere
        said = alone(copy, "hello")
        assert (said.returncode, said.stdout) == (1, "")
        assert name in said.stderr
        assert "Traceback" not in said.stderr


def test_code_and_packages_of_others_are_refused(copy):
    (copy / "run.py").write_text("print('mine')")
    relist(copy)
    with pytest.raises(GreenError, match="not the one of this greenllm"):
        check(copy)
    bundle(copy, copy.parent / "again")  # the way out that it names
    check(copy.parent / "again")
    shutil.copyfile(run.__file__, copy / "run.py")
    with (copy / "requirements.txt").open("a") as f:
        f.write("--extra-index-url https://example.org\n")
    relist(copy)
    with pytest.raises(GreenError, match="extra-index-url"):
        check(copy)


def test_another_model_under_the_same_golden_answers_fails_its_self_test(untied_llama, copy, tmp_path):
    other = export(untied_llama, tmp_path / "other")
    for file in other.path.glob("model.onnx*"):
        shutil.copyfile(file, copy / file.name)
    relist(copy)
    said = alone(copy, "hello")
    assert (said.returncode, said.stdout) == (1, "")
    assert "Self-test 1 of 3 failed" in said.stderr


def test_a_tokenizer_that_splits_otherwise_fails_its_self_test(copy):
    golden = json.loads((copy / "selftest.json").read_text())
    golden["cases"][1]["prompt"][0] += 1
    (copy / "selftest.json").write_text(json.dumps(golden))
    relist(copy)
    assert "splits it otherwise" in alone(copy, "--self-test").stderr


def test_what_cannot_be_bundled(llama, exported, tmp_path):
    with pytest.raises(GreenError, match="not a greenllm artifact"):
        bundle(llama, tmp_path / "no")
    with pytest.raises(GreenError, match="no such target"):
        bundle(exported, tmp_path / "no", target="toaster")
    damaged = shutil.copytree(exported.path, tmp_path / "damaged")
    flip(damaged)
    with pytest.raises(GreenError, match="model.onnx.data"):
        bundle(damaged, tmp_path / "no")
    assert not list(tmp_path.glob("*no*"))


@pytest.mark.skipif(OLD, reason="this onnxruntime-genai makes no other graphs")
def test_a_graph_that_the_targets_runtime_does_not_run_is_refused(exported, tmp_path):
    (tmp_path / "old.yaml").write_text('description: old\nformats: {text-generation: genai}\ngenai: "0.11"\n')
    with pytest.raises(GreenError, match=r"old has 0\.11"):
        bundle(exported, tmp_path / "no", target=str(tmp_path / "old.yaml"))


def entry(name, **fields):
    found = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(found, key, value)
    return found


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry("x/../../etc/passwd")], "outside"),
        ([entry("/etc/passwd")], "outside"),
        ([entry("x/run.py", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "x/run.py"),
        ([entry("x/run.py", type=tarfile.LNKTYPE, linkname="x/other")], "x/run.py"),
        ([entry("x/a"), entry("y/a")], "twice"),
        ([entry("x/huge", size=1 << 50)], "free"),
        ([entry("a")], "below one directory"),
    ],
)
def test_archives_are_opened_without_trust(tmp_path, entries, says):
    file = tmp_path / "x.tar"
    with tarfile.open(file, "w") as tar:
        for one in entries:
            tar.addfile(one, io.BytesIO(b"") if one.size < 1 << 20 else None)
    with pytest.raises(GreenError, match=says), archive.opened(file):
        pass
    (tmp_path / "half.tar.gz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(GreenError, match="no archive"), archive.opened(tmp_path / "half.tar.gz"):
        pass


@pytest.mark.parametrize("kind", ["genai", "onnx"])
def test_its_requirements_exist_for_aarch64(made, bert, tmp_path, kind):
    if kind == "onnx":
        made = bundle(export(bert, tmp_path / "onnx"), tmp_path / "bundle")
    lines = (made / "requirements.txt").read_text().splitlines()
    for python in ["3.11"] if kind == "genai" and not OLD else ["3.10", "3.12"]:
        # pip evaluates markers for the Python that runs it, whatever --python-version says
        pins = [f"{name}=={number}" for name, number in environment.wanted(lines, python).items()]
        command = [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps",
            "--target", tmp_path, "--only-binary=:all:", "--python-version", python,
            "--platform", "manylinux_2_28_aarch64", "--platform", "manylinux_2_17_aarch64", *pins,
        ]  # fmt: skip
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if "Failed to establish" in found.stderr or "ConnectTimeout" in found.stderr:
            pytest.skip("no package index can be reached")
        assert found.returncode == 0, found.stderr
        assert "onnxruntime" in found.stdout
