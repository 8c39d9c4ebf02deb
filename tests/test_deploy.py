"""Deploy to a real sshd on the loopback: whatever is cut, killed or changed, the last good version stays in place."""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sshd import Sshd

from greenllm import artifact
from greenllm.bench.report import merge
from greenllm.errors import GreenError
from greenllm.export import device as on_device
from greenllm.export import export
from greenllm.export.bundle import Needs, bundle
from greenllm.export.deploy import deploy, fit
from greenllm.export.deploy.ssh import Device, Where, explain
from greenllm.export.device import environment
from greenllm.progress import Silent

# SYNTHETIC: what a Jetson's nvpmodel says and does, in a file; "-m 2" asks for a reboot as some modes do.
NVPMODEL = """#!/bin/sh
case "$1" in
-q) echo "NV Power Mode: SYNTHETIC"; cat {state} ;;
-m) echo "$2" >> {log}
    if [ "$2" = 2 ]; then echo "Reboot required. DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:"; exit 0; fi
    echo "$2" > {state} ;;
esac
"""
CONF = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
CHUNKS = 4 << 20  # bytes of a file that takes several chunks to copy


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """A device that is there for all tests."""
    root = tmp_path_factory.mktemp("device")
    tools = root / "tools"
    tools.mkdir()
    (tools / "nvpmodel").write_text(NVPMODEL.format(state=root / "mode", log=root / "modes"))
    (tools / "nvpmodel").chmod(0o755)
    (root / "nvpmodel.conf").write_text(CONF)
    (root / "mode").write_text("1\n")
    # what the bench's environment has is what this one has; how long it measures is not the point here
    (tools / "python-brief").write_text(
        f'#!/bin/sh\nif [ "$3" = bench ]; then\n'
        f'exec {sys.executable} {Path(__file__).with_name("brief.py")} "$4" "$6"\nfi\nexec {sys.executable} "$@"\n'
    )
    (tools / "python-brief").chmod(0o755)
    path = Path(__file__).resolve().parents[1]
    server = Sshd(root / "sshd", tools, NVPMODEL_CONF=root / "nvpmodel.conf", PYTHONPATH=path)
    yield server
    server.stop()


@pytest.fixture
def device(sshd, monkeypatch):
    """The same, as if new."""
    for path in sshd.home.iterdir():
        shutil.rmtree(path)
    sshd.know("host")
    (sshd.root.parent / "mode").write_text("1\n")
    (sshd.root.parent / "modes").write_text("")
    return sshd


@pytest.fixture(scope="module")
def exported(llama, tmp_path_factory):
    made = export(llama, tmp_path_factory.mktemp("exported") / "genai")
    (made.path / "more.bin").write_bytes(os.urandom(CHUNKS))
    return artifact.relist(made.path, made.manifest)


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
    return bundle(exported, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def newer(made, tmp_path_factory):
    """Another version of the same model."""
    return another(made, tmp_path_factory.mktemp("newer") / "tiny", "b")


def another(made, path, word):
    shutil.copytree(made, path)
    (path / "more.bin").write_bytes(word.encode() * CHUNKS)
    artifact.relist(path, artifact.read(path).manifest)
    return path


def where(device, **options):
    return Where(device.host, config=device.config, **options)


def send(device, path, **options):
    return deploy(path, where(device), **{"python": sys.executable, **options})


def answers(device):
    """What the device's current version says."""
    command = [device.home / "greenllm" / "tiny" / "current" / "run", "hello", "--raw", "--max-tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def is_current(device, path):
    """Whether the device's current version is this bundle, whole."""
    current = device.home / "greenllm" / "tiny" / "current" / "bundle"
    return (current / "greenllm.json").read_bytes() == (path / "greenllm.json").read_bytes() and not subprocess.run(
        [sys.executable, current / "run.py", "--check"], capture_output=True, check=False
    ).returncode


def wait_until_nothing_runs(device):
    while device.sessions() or device.running(str(device.home)):
        time.sleep(0.05)


class Doing(Silent):
    """Progress that does something at the beginning of a stage, or once some of it is done."""

    def __init__(self, stage, do, after=0):
        self.wanted, self.do, self.left, self.now = stage, do, after, ""

    def stage(self, name, total):
        del total
        self.now = name
        if name.startswith(self.wanted) and not self.left:
            self.do()

    def advance(self, amount=1):
        if self.now.startswith(self.wanted) and self.left:
            self.left = max(0, self.left - amount)
            if not self.left:
                self.do()


def test_a_new_version_takes_the_place_of_the_old_one_which_stays(device, made, newer, tmp_path):
    done = send(device, made)
    assert answers(device)
    assert done.command == str(device.home / "greenllm/tiny/current/run")
    versions = device.home / "greenllm/tiny/versions"
    send(device, newer)
    assert is_current(device, newer)
    assert len(list(versions.iterdir())) == 2
    third = another(made, tmp_path / "tiny", "c")
    send(device, third)
    assert is_current(device, third)
    assert len(list(versions.iterdir())) == 2
    send(device, newer)  # back again: nothing is copied
    assert is_current(device, newer)
    assert not (device.home / "greenllm/tiny/incoming").exists()


def test_an_archive_is_deployed_as_its_directory_is(device, made, tmp_path):
    file = bundle(made, tmp_path / "tiny.tar")
    send(device, file)
    assert is_current(device, made)


@pytest.mark.parametrize(
    ("how", "stage", "after"),
    [("link", "copying", 1 << 20), ("link", "self-test", 0), ("kill", "copying", 1 << 20), ("kill", "verifying", 0),
     ("kill", "self-test", 1)],
)  # fmt: skip
def test_cut_anywhere_the_old_version_stays_and_the_next_try_ends_well(device, made, newer, how, stage, after):
    send(device, made)
    if how == "link":
        try:
            send(device, newer, progress=Doing(stage, device.cut, after))
        except GreenError as e:
            assert "was lost" in e.what  # noqa: PT017 - after the switch there may be nothing left to lose
    else:
        code = (
            f"import os, sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
            "from test_deploy import Doing, Where, deploy; from pathlib import Path\n"
            f"deploy({str(newer)!r}, Where({device.host!r}, config=Path({str(device.config)!r})),\n"
            f"  python={sys.executable!r}, progress=Doing({stage!r}, lambda: os.kill(os.getpid(), 9), {after}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_nothing_runs(device)
    assert is_current(device, made) or (after == 1 and is_current(device, newer))
    send(device, newer)
    assert is_current(device, newer)


def test_what_was_copied_is_not_copied_again_but_what_is_damaged_is(device, made):
    with pytest.raises(GreenError):
        send(device, made, progress=Doing("copying", device.cut, after=2 << 20))
    wait_until_nothing_runs(device)
    (incoming,) = (device.home / "greenllm/tiny/incoming").glob("*/bundle")
    there = sum(p.stat().st_size for p in incoming.iterdir())
    assert there > 1 << 19
    copied = []
    progress = Silent()
    progress.stage = lambda *stage: copied.append(stage[1]) if stage[0] == "copying" else None
    send(device, made, progress=progress)
    total = sum(p.stat().st_size for p in made.iterdir())
    assert copied == [total - there]


def test_bytes_that_changed_on_the_way_are_copied_again(device, made):
    with pytest.raises(GreenError):
        send(device, made, progress=Doing("verifying", device.cut))
    wait_until_nothing_runs(device)
    (incoming,) = (device.home / "greenllm/tiny/incoming").glob("*/bundle")
    with (incoming / "more.bin").open("r+b") as f:
        f.write(b"damage")
    (incoming / "left-over").write_text("of something else")
    notes = []
    progress = Silent()
    progress.note = notes.append
    send(device, made, progress=progress)
    assert is_current(device, made)
    with pytest.raises(GreenError):
        send(device, made, progress=Doing("self-test", device.cut))


def test_a_failed_self_test_leaves_the_old_version(device, made, tmp_path):
    send(device, made)
    bad = shutil.copytree(made, tmp_path / "tiny")
    golden = json.loads((bad / "selftest.json").read_text())
    golden["cases"][0]["log_probabilities"][0] -= 1.0
    (bad / "selftest.json").write_text(json.dumps(golden))
    artifact.relist(bad, artifact.read(bad).manifest)
    with pytest.raises(GreenError, match="self-test failed on the device.*off by"):
        send(device, bad)
    assert is_current(device, made)


def test_a_version_that_was_changed_on_the_device_is_not_run_and_is_made_whole(device, made):
    send(device, made)
    weights = device.home / "greenllm/tiny/current/bundle/model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(subprocess.CalledProcessError):
        answers(device)
    send(device, made)
    assert is_current(device, made)


@pytest.mark.parametrize(
    ("keys", "says", "way_out"),
    [
        (["other"], "not the known one", "ssh-keygen -R '\\[127.0.0.1\\]:|ssh-keygen -R 127"),
        ([], "not known here", "fingerprint"),
    ],
)
def test_a_host_key_that_changed_or_is_unknown_ends_it(device, made, keys, says, way_out):
    device.know(*keys)
    before = (device.root / "known_hosts").read_bytes()
    with pytest.raises(GreenError, match=says) as e:
        send(device, made)
    with pytest.raises(AssertionError) if not e.value.fix else pytest.raises(GreenError, match=way_out):
        raise e.value
    assert (device.root / "known_hosts").read_bytes() == before  # nothing was accepted
    assert not any(device.home.iterdir())


def test_a_device_that_is_not_there_or_does_not_let_us_in(device, made):
    with pytest.raises(GreenError, match="cannot be reached.*refused"):
        deploy(made, where(device, port=1))
    keys = device.root / "authorized_keys"
    keys.write_text((device.root / "other.pub").read_text())
    with pytest.raises(GreenError, match="does not let us in"):
        send(device, made)
    shutil.copy(device.root / "user.pub", keys)
    with pytest.raises(GreenError, match="cannot be reached"):
        deploy(made, Where("nobody@no-such-host.invalid", config=device.config))
    for hostile in ("-oProxyCommand=touch /tmp/no", "a b", "user@host;id", ""):
        with pytest.raises(GreenError, match="is no user@host"):
            deploy(made, Where(hostile))
    with pytest.raises(GreenError, match="no Python called 'python9'"):
        send(device, made, python="python9")
    with pytest.raises(GreenError, match="has no python9"):
        deploy(made, where(device, interpreter="python9"))


def test_a_bundle_for_another_processor_or_one_that_was_changed_is_not_copied(device, exported, made, tmp_path):
    other = "aarch64" if platform.machine() == "x86_64" else "x86-64"
    path = bundle(exported, tmp_path / "tiny", target=other)
    with pytest.raises(GreenError, match=f"The device is {platform.machine()}; this bundle is for"):
        send(device, path)
    changed = shutil.copytree(made, tmp_path / "changed")
    (changed / "more.bin").write_bytes(b"x" * CHUNKS)
    with pytest.raises(GreenError, match="more.bin"):
        send(device, changed)
    assert not any(device.home.iterdir())


def test_a_disk_that_is_too_small(device, made, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], check=False).returncode  # noqa: S607
    if mounted:
        pytest.skip("no right to mount a small disk")
    try:
        with pytest.raises(
            GreenError, match=r"The device has 17 MB of disk free; needed are 25 MB \(copy 5 \+ to spare"
        ):
            send(device, made, directory=str(small / "here"))
        assert not list(small.glob("here/tiny/versions"))
    finally:
        subprocess.run(["umount", small], check=True)  # noqa: S607


NEEDS = Needs(target="t", isa="aarch64", python="3.11", weight_bytes=10**9, cache_bytes=10**5, context=2048)
FACTS = {"machine": "aarch64", "python": "3.11.2", "memory": 4e9, "memory_free": 3e9, "disk_free": 9e9, "board": "",
         "system": "Linux"}  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({}, ""),
        ({"machine": "armv7l"}, "is armv7l"),
        ({"python": "3.10.12"}, "Python is 3.10.12"),
        (
            {"memory_free": 1.5e9},
            "1,500 MB of 4,000 MB of memory free; needed are 1,915 MB .*a KV cache of 2,048 tokens 205",
        ),
        (
            {"disk_free": 1.1e9},
            r"1,100 MB of disk free; needed are 1,320 MB \(copy 1,000 \+ to spare 20 \+ environment",
        ),
    ],
)
def test_whether_it_fits_is_told_by_arithmetic(facts, says):
    if not says:
        assert "3,000 MB" in fit.check(NEEDS, FACTS)
        fit.check_disk(FACTS, copy=10**9, environment=True)
        return
    with pytest.raises(GreenError, match=says):
        fit.check(NEEDS, FACTS | facts)
        fit.check_disk(FACTS | facts, copy=10**9, environment=True)


def test_the_bench_there_is_joined_to_the_one_here(device, made, tmp_path):
    done = send(device, made, python="python-brief", bench=True)
    assert not done.failed
    from greenllm.export.deploy.results import join

    join(done.results, None, tmp_path / "local")
    joined = join(done.results, tmp_path / "local", tmp_path / "both")
    assert [r.name for r in joined.rows] == ["tiny on 127.0.0.1", "tiny on 127.0.0.1 (run 2)"]
    assert joined.rows[1].measurements["decode"].value > 0
    assert merge.read(tmp_path / "both").rows == joined.rows
    assert merge.read(tmp_path / "both" / "device-1.json").settings["power_mode"] == "as it was"


def test_power_modes_are_swept_and_put_back(device, made):
    """SYNTHETIC: no Jetson is here; its nvpmodel is a script."""
    done = send(device, made, python="python-brief", power_modes=True)
    assert [r.settings["power_mode"] for r in done.results] == ["15W", "7W"]
    assert done.failed
    assert "MAXN_SUPER" in done.failed[0]
    assert "Reboot required" in done.failed[0]
    assert (device.root.parent / "modes").read_text().split() == ["0", "1", "2"]
    assert (device.root.parent / "mode").read_text() == "1\n"
    assert not (device.home / "greenllm/power-mode").exists()


def test_power_modes_are_put_back_when_the_link_is_cut(device, made):
    """SYNTHETIC, as above: the cut comes when the first mode is set and something is measured."""
    state = device.root.parent / "mode"
    code = (
        "import sys; from pathlib import Path; from greenllm.export.deploy import deploy\n"
        "from greenllm.export.deploy.ssh import Where\n"
        f"deploy({str(made)!r}, Where({device.host!r}, config=Path({str(device.config)!r})), python={sys.executable!r},"
        " power_modes=True)"
    )
    for number in (signal.SIGKILL, signal.SIGINT):
        client = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while state.read_text() != "0\n":
            assert client.poll() is None
        while not device.running("bench.child"):
            assert client.poll() is None
        client.send_signal(number)
        client.wait()
        wait_until_nothing_runs(device)
        assert state.read_text() == "1\n"
        assert not (device.home / "greenllm/power-mode").exists()


def test_a_power_mode_that_an_ended_agent_left_is_put_back_at_the_next_try(device, made):
    """SYNTHETIC, as above."""
    (device.home / "greenllm").mkdir()
    (device.home / "greenllm/power-mode").write_text("0")
    send(device, made)
    assert (device.root.parent / "mode").read_text() == "0\n"
    assert not (device.home / "greenllm/power-mode").exists()


def test_two_deploys_do_not_meet(device, made):
    with Device(where(device), lambda _: None) as first:
        first.call("look", base="greenllm", python=sys.executable)
        first.call("begin", name="tiny", key="0" * 64, sizes={})
        second = subprocess.Popen([sys.executable, "-c", (
            "from pathlib import Path; from greenllm.export.deploy import deploy\n"
            "from greenllm.export.deploy.ssh import Where\n"
            f"deploy({str(made)!r}, Where({device.host!r}, config=Path({str(device.config)!r})), "
            f"python={sys.executable!r})"
        )])  # fmt: skip
        while len(device.sessions()) < 2:
            assert second.poll() is None
        assert not (device.home / "greenllm/tiny/versions").exists()
    assert second.wait() == 0  # it has waited for the first to hang up
    assert is_current(device, made)


def test_an_environment_is_made_from_wheels_without_a_network(device, made, tmp_path):
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, "-r", made / "requirements.txt"]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", empty], check=True)
    done = send(device, made, python=str(empty / "bin/python"), wheels=wheels)
    assert answers(device)
    (made_there,) = (device.home / "greenllm/environments").iterdir()
    packages = {p.name.partition("-")[0] for p in made_there.glob("lib/*/site-packages/*.dist-info")}
    assert packages <= {"numpy", "onnxruntime", "onnxruntime_genai", "pip", "setuptools"}  # and nothing else
    assert done.facts["executable"] == str(empty / "bin/python")
    assert not (device.home / "greenllm/wheels").exists()
    (wheels / "none").mkdir()
    with pytest.raises(GreenError, match="holds no wheels"):
        send(device, made, python=str(empty / "bin/python"), wheels=wheels / "none", directory="else")


def test_which_pins_count_for_which_python():
    lines = ["numpy==2", 'x==3; python_version >= "3.11"', 'x==1; python_version < "3.11"', "any"]
    assert environment.wanted(lines, "3.11.7") == {"numpy": "2", "x": "3", "any": ""}
    assert environment.wanted(lines, "3.10.1") == {"numpy": "2", "x": "1", "any": ""}


def test_code_for_the_device_is_old_python_and_needs_nothing():
    for file in Path(on_device.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        allowed = {"greenllm"} if file.name not in ("run.py", "__init__.py") else set()
        runtimes = {"numpy", "onnxruntime", "onnxruntime_genai", "tokenizers"} if file.name == "run.py" else set()
        assert names <= set(sys.stdlib_module_names) | allowed | runtimes, file


def test_what_ssh_says_is_explained():
    asked = Where("pi@board", 2222, Path("key"))
    assert "ssh -p 2222 -i key pi@board" in explain("Host key verification failed.", 255, asked).fix
    assert "ssh-keygen -R '[board]:2222'" in explain("@ REMOTE HOST IDENTIFICATION HAS CHANGED! @", 255, asked).fix
    assert "Python 3" in explain("sh: 1: exec: python3: not found", 127, asked).fix
    assert "goes on where it stopped" in explain("client_loop: send disconnect: Broken pipe", 255, asked).fix
