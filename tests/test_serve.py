"""run, chat and serve: one engine, on an artifact and on a bundle alike; what is asked wrongly is told."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading

import numpy as np
import openai
import pytest
import uvicorn

from greenllm.answer import Answer, hold, stream
from greenllm.errors import GreenError
from greenllm.export import export
from greenllm.export.bundle import bundle
from greenllm.generate import Settings, chunks, load
from greenllm.serve import listen, open_model, read_key
from greenllm.serve.app import make_app
from greenllm.serve.guard import Guard

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def exported(llama, tmp_path_factory):
    made = export(llama, tmp_path_factory.mktemp("exported") / "tiny")
    (made.path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    from greenllm import artifact

    return artifact.relist(made.path, made.manifest)


@pytest.fixture(scope="module")
def archive(exported, tmp_path_factory):
    return bundle(exported, tmp_path_factory.mktemp("bundle") / "tiny.tar.gz")


@contextlib.contextmanager
def serving(model, *, key=None, waiting=4):
    """The application that ``serve`` runs, on a free port."""
    listener = listen("127.0.0.1", 0)
    app = Guard(make_app(open_model(model, 1), waiting), key=key, hosts={"127.0.0.1"})
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def port(exported):
    with serving(exported.path) as found:
        yield found


@pytest.fixture(scope="module")
def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


def ask(port, body, path="/v1/completions", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    reply = connection.getresponse()
    found = json.loads(reply.read())
    connection.close()
    return reply.status, found


def command(*arguments, text=None):
    return subprocess.run(
        [sys.executable, "-m", "greenllm.cli", *arguments], input=text, capture_output=True, text=True, check=False
    )


def test_run_and_chat_say_the_same_of_an_artifact_and_of_an_archive(exported, archive):
    want = "".join(stream(exported.path, "hello", max_tokens=8))
    for model in (exported.path, archive):
        said = command("run", str(model), "hello", "--max-tokens", "8", "--threads", "1")
        assert (said.returncode, said.stdout) == (0, want + "\n"), said.stderr
    said = command("chat", str(archive), "--max-tokens", "8", "--threads", "1", text="hello\n/what\n/reset\nhello\n")
    assert (said.returncode, said.stdout) == (0, 2 * (want + "\n")), said.stderr
    assert "Forgotten." in said.stderr


def test_an_archive_that_is_none(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"nonsense")
    said = command("run", str(tmp_path / "x.tar.gz"), "hello")
    assert (said.returncode, "Traceback" in said.stderr) == (1, False)
    assert "no archive that can be read" in said.stderr


def test_chat_streams_what_it_says_whole(client, exported):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    options = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**options)
    parts = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == whole.choices[0].message.content
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert parts[-1].usage.prompt_tokens_details.cached_tokens > 0  # and yet the same words
    plain = client.completions.create(model="tiny", prompt="hello", max_tokens=8, temperature=0)
    assert plain.choices[0].text == "".join(stream(exported.path, "hello", max_tokens=8, raw=True))
    assert [m.id for m in client.models.list()] == ["tiny"]


def test_a_seed_repeats_what_was_sampled(client):
    said = [
        client.completions.create(model="tiny", prompt="hello", max_tokens=16, temperature=2, seed=seed)
        for seed in (1, 1, 2)
    ]
    one, again, other = [s.choices[0].text for s in said]
    assert one == again != other


def test_an_encoder_is_served_as_embeddings_of_length_one(bert, tmp_path):
    made = export(bert, tmp_path / "enc")
    with serving(made.path) as at:
        asked = openai.OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key="none", max_retries=0)
        both = [e.embedding for e in asked.embeddings.create(model="enc", input=["hello", "there"]).data]
        alone = asked.embeddings.create(model="enc", input="there").data[0].embedding
        with pytest.raises(openai.BadRequestError, match="writes no text"):
            asked.completions.create(model="enc", prompt="hello")
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)
    assert both[1] == alone != both[0]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "Invalid JSON"),
        ({"model": "tiny", "prompt": ""}, 400, "prompt"),
        ({"model": "tiny", "prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"model": "tiny", "prompt": "a", "n": 2}, 400, "n is not supported"),
        ({"model": "tiny", "prompt": "a", "secret": 1}, 400, "secret is not supported"),
        ({"model": "tiny", "prompt": [10**6]}, 400, "no token 1000000"),
        ({"model": "tiny", "prompt": "a" * 300}, 400, "context of 256"),
        ({"model": "other", "prompt": "a"}, 404, "no model 'other'"),
        (b" " * (5 << 20), 413, "larger than 4 MB"),
    ],
)
def test_what_is_asked_wrongly_is_named(port, body, status, says):
    got, said = ask(port, body)
    assert got == status
    assert says in said["error"]["message"]


def test_pages_on_the_web_and_strangers_are_refused(port, exported):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    assert ask(port, body, **{"Content-Type": "text/plain"})[0] == 415
    assert ask(port, body, Host="evil.example")[0] == 421
    with serving(exported.path, key=b"s3cret") as at:
        assert ask(at, body)[0] == 401
        assert ask(at, body, Authorization="Bearer s3cret")[0] == 200


def test_a_full_queue_says_so_and_a_client_that_leaves_frees_its_place(exported):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 200, "stream": True, "stop": []}
    with serving(exported.path, waiting=0) as at:
        connection = http.client.HTTPConnection("127.0.0.1", at)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        connection.getresponse().read(10)
        connection.close()
        for _ in range(1000):  # the place is free after the piece that is being made
            status, _ = ask(at, body | {"stream": False, "max_tokens": 1})
            if status == 200:
                break
            assert status == 503
    assert status == 200


def test_what_cannot_be_served(llama, tmp_path):
    with pytest.raises(GreenError, match="is a checkpoint"):
        open_model(llama, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(GreenError, match="Cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])
    (tmp_path / "key").write_text("two words", encoding="utf-8")
    with pytest.raises(GreenError, match="holds no key"):
        read_key(tmp_path / "key")


def test_a_kept_cache_does_not_change_an_answer(exported):
    kept, fresh = load(exported.path, threads=1, keep=True), load(exported.path, threads=1)
    first = list(range(5, 45))
    for ids in (first, [*first, 7, 9], [*first[:30], 8, 6]):
        answers = [Answer(m, ids, Settings(6)) for m in (kept, fresh)]
        assert len({"".join(a) for a in answers}) == 1
    assert kept.reused == 30
    assert fresh.reused == 0


def test_a_stop_string_is_never_shown_in_part():
    assert hold("one END two", ["END"]) == ("one ", "", True)
    assert hold("one EN", ["END", "NO"]) == ("one ", "EN", False)
    assert hold("one", ["END"]) == ("one", "", False)
    assert [len(c) for c in chunks(range(257))] == [128, 127, 2]
