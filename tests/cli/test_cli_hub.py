"""Whether the hub answers is found out shortly, whatever the network does."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from adapterx.cli import hub


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in (*hub.OFFLINE, *("http_proxy", "https_proxy", "all_proxy", "no_proxy")):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hub.reachable.cache_clear()
    yield
    monkeypatch.undo()
    hub.reachable.cache_clear()


@pytest.fixture
def server():
    class Proxy(BaseHTTPRequestHandler):
        status = 200

        def do_HEAD(self):
            self.send_response(self.status)
            self.end_headers()

        def do_CONNECT(self):
            self.send_error(self.status)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Proxy, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_that_answers(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server[1])
    assert hub.reachable()


def test_a_hub_behind_a_proxy(server, monkeypatch):
    proxy, address = server
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert hub.reachable()
    for status in (407, 502):
        proxy.status = status
        hub.reachable.cache_clear()
        assert not hub.reachable()


def test_a_proxy_that_lets_nobody_through(server, monkeypatch):
    proxy, address = server
    proxy.status = 403
    monkeypatch.setenv("https_proxy", address)
    assert not hub.reachable()


def test_nobody_asks_who_wants_no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", None)
    assert not hub.reachable()


@pytest.mark.parametrize("endpoint", ["https://hub.invalid", "http://127.0.0.1:1", "https://[", "nonsense"])
def test_a_hub_that_is_not_there(endpoint, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    start = time.perf_counter()
    assert not hub.reachable()
    assert time.perf_counter() - start < 2


def test_a_network_that_swallows_everything(monkeypatch):
    ended = threading.Event()

    def swallow(*_, **__):
        ended.wait(20)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallow)
    monkeypatch.setattr(hub, "PATIENCE", 0.05)
    start = time.perf_counter()
    assert not hub.reachable()
    assert time.perf_counter() - start < 1
    ended.set()


def test_what_may_be_in_the_cache(tmp_path, monkeypatch):
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not hub.may_be_cached("imdb")
    (tmp_path / "datasets" / "owner___my_reviews").mkdir(parents=True)
    (tmp_path / "hub" / "datasets--stanfordnlp--imdb").mkdir(parents=True)
    for name in ("owner/MyReviews", "imdb", "stanfordnlp/imdb"):
        assert hub.may_be_cached(name)
    assert not hub.may_be_cached("owner/reviews2")


def test_a_dataset_of_the_cache_is_read_without_the_hub(tmp_path, monkeypatch):
    """What was loaded once must load again where nothing can be reached."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import constants

    from adapterx.cli.data.examples import load_examples

    classes = datasets.ClassLabel(names=["n", "p"])
    features = datasets.Features({"text": datasets.Value("string"), "label": classes})
    table = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "c"))
    (made,) = (tmp_path / "c" / "parquet").glob("*/*/*/")
    cached = tmp_path / "datasets" / "owner___reviews" / "default" / "0.0.0" / "abc"
    cached.mkdir(parents=True)
    for path in made.iterdir():
        (cached / path.name.replace("parquet-", "reviews-")).write_bytes(path.read_bytes())
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for module in (datasets.config, constants):  # they read the environment when they were imported
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    assert load_examples("owner/reviews").labels == ["p", "n"]
