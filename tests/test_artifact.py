"""Artifacts are whole or not there, and what was changed after it was written is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest

from greenllm import artifact
from greenllm.artifact import Manifest
from greenllm.errors import GreenError


def make(path, **details):
    with artifact.writing(path) as part:
        (part / "weights").write_bytes(b"12345")
        (part / "sub").mkdir()
        (part / "sub" / "more.txt").write_text("x")
        artifact.seal(part, Manifest(kind="checkpoint", details=details))
    return path


def test_round_trip(tmp_path):
    found = artifact.open_verified(make(tmp_path / "a", tied=True))
    assert found.kind == "checkpoint"
    assert found.manifest.details == {"tied": True}
    assert set(found.manifest.files) == {"weights", "sub/more.txt"}
    assert found.bytes_on_disk == 6
    assert found.manifest.versions["greenllm"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "link"])
def test_damage_is_found_and_named(tmp_path, damage):
    path = make(tmp_path / "a") / "weights"
    if damage == "change":
        path.write_bytes(b"12346")
    elif damage == "truncate":
        path.write_bytes(b"1234")
    else:
        path.unlink()
    if damage == "link":
        path.symlink_to("/etc/hostname")
    with pytest.raises(GreenError, match="weights"):
        artifact.open_verified(tmp_path / "a")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\b"])
def test_paths_may_not_leave_the_directory(tmp_path, name):
    manifest = make(tmp_path / "a") / artifact.MANIFEST
    data = json.loads(manifest.read_text())
    data["files"][name] = data["files"]["weights"]
    manifest.write_text(json.dumps(data))
    with pytest.raises(GreenError, match="outside"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "virus"}, "kind"),
        ({"extra": 1}, "extra"),
        ({"format": 2}, "format"),
        ({"files": {"a": {"sha256": "x", "size": 1}}}, "sha256"),
    ],
)
def test_manifests_of_another_shape_are_refused(tmp_path, change, says):
    manifest = make(tmp_path / "a") / artifact.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(GreenError, match=says):
        artifact.read(tmp_path / "a")


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    (tmp_path / artifact.MANIFEST).write_text("{")
    with pytest.raises(GreenError, match="not a valid manifest"):
        artifact.read(tmp_path)


def test_an_output_that_exists_is_refused_and_kept(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(GreenError, match="exists") as e, artifact.writing(tmp_path / "a"):
        pass
    assert "--force" in e.value.fix
    artifact.open_verified(tmp_path / "a")


def test_force_replaces_only_what_greenllm_wrote(tmp_path):
    make(tmp_path / "a")
    with artifact.writing(tmp_path / "a", force=True) as part:
        artifact.seal(part, Manifest(kind="onnx"))
    assert artifact.read(tmp_path / "a").kind == "onnx"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(GreenError, match="not written by greenllm"), artifact.writing(tmp_path / "mine", force=True):
        pass
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_failure_with_force_keeps_the_old_one(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(RuntimeError), artifact.writing(tmp_path / "a", force=True) as part:
        (part / "half").write_text("x")
        raise RuntimeError
    artifact.open_verified(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_resumable_work_is_kept_and_handed_out_again(tmp_path):
    with pytest.raises(RuntimeError), artifact.writing(tmp_path / "a", resume=True) as part:
        (part / "done").write_text("x")
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with artifact.writing(tmp_path / "a", resume=True) as part:
        assert (part / "done").exists()


def _write_until_killed(path):
    with artifact.writing(path, resume=True) as part:
        (part / "half").write_text("x")
        time.sleep(60)


def test_a_kill_leaves_nothing_under_the_final_name_and_no_lock(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write_until_killed, args=(tmp_path / "a",))
    process.start()
    while not (artifact.partial_of(tmp_path / "a") / "half").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "a").exists()
    with artifact.writing(tmp_path / "a", resume=True) as part:
        assert (part / "half").exists()


def test_two_processes_do_not_write_the_same_output(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write_until_killed, args=(tmp_path / "a",))
    process.start()
    try:
        while not (artifact.partial_of(tmp_path / "a") / "half").exists():
            time.sleep(0.01)
        with pytest.raises(GreenError, match="Another greenllm"), artifact.writing(tmp_path / "a"):
            pass
    finally:
        process.kill()
        process.join()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(GreenError, match="Cannot write"), artifact.writing(tmp_path / "file" / "a"):
        pass
