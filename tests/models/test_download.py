import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mde.errors import MdeError
from mde.models import build_model
from mde.models.checkpoints import load_official
from mde.models.download import PUBLISHED, OfficialFile

NAME = "midas_v21_small_256.pt"


class Mirror(BaseHTTPRequestHandler):
    """Serves the fixture's file, whole or spoiled as the address says, and counts the requests."""

    good: bytes = b""
    requests: int = 0

    def do_GET(self) -> None:
        Mirror.requests += 1
        kind = self.path.split("/")[1]
        if kind == "404":
            self.send_error(404)
            return
        page = b"<html>sign in first</html>"
        body = {"good": self.good, "cut": self.good, "html": page, "large_html": page * 3_000_000}[kind]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client may refuse the rest
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(official_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Mirror.good, Mirror.requests = official_file.read_bytes(), 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "cache"))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_official_weights_are_downloaded_once(
    mirror: str, official_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDE_WEIGHTS_URL", f"{mirror}/good")
    for _ in range(2):
        model = build_model("midas_small", weights="midas", reference=True)
    assert Mirror.requests == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [NAME]
    expected = load_official(official_file).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.options == {"encoder": "lite3", "reference": True, "border": "zeros"}


def test_what_the_official_file_cannot_be_is_said_before_it_is_downloaded(
    mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDE_WEIGHTS_URL", f"{mirror}/good")
    with pytest.raises(MdeError, match=r"model\.encoder=lite0: weights=midas holds encoder=lite3"):
        build_model("midas_small", weights="midas", encoder="lite0")
    with pytest.raises(MdeError, match=r"model\.blocks=6: weights=midas holds blocks=12"):
        build_model("dpt_hybrid", weights="midas", blocks=6)
    with pytest.raises(MdeError, match=r"model\.blocks=6: weights=imagenet has 24"):
        build_model("dpt_large", weights="imagenet", blocks=6)
    assert Mirror.requests == 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("404", "answers 404"),
        ("cut", "broke off"),
        ("html", "are not the weights"),
        ("large_html", "a web page or another text.*removed from the cache"),
    ],
)
def test_a_bad_file_is_an_error_and_is_not_kept(
    kind: str, words: str, mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MDE_WEIGHTS_URL", f"{mirror}/{kind}")
    with pytest.raises(MdeError, match=rf"{words}.*weights=imagenet.*weights=PATH.*weights=none") as error:
        build_model("midas_small", weights="midas")
    assert "\n" not in str(error.value)
    assert list(tmp_path.glob("cache/*")) == []
    assert list(tmp_path.glob("cache/.*")) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://name.invalid/weights", "no address"])
def test_without_network_the_error_names_the_choices(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDE_CACHE", str(tmp_path))
    monkeypatch.setenv("MDE_WEIGHTS_URL", url)
    with pytest.raises(MdeError, match=r"not reached.*weights=imagenet.*weights=PATH.*weights=none"):
        build_model("midas_small", weights="midas")


def test_a_cache_folder_that_cannot_be_written_is_an_error(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("MDE_WEIGHTS_URL", f"{mirror}/good")
    with pytest.raises(MdeError, match="not written"):
        build_model("midas_small", weights="midas")


def test_a_transformers_file_is_checked_by_the_hash_in_its_name(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name: published.sha256 for name, published in PUBLISHED.items()} == {
        "midas_small": "",
        "dpt_hybrid": "501f0c75",
        "dpt_large": "2f21e586",
    }
    # The mirror's file, of MiDaS small's size, in the transformer's place.
    monkeypatch.setenv("MDE_WEIGHTS_URL", f"{mirror}/good")
    monkeypatch.setitem(PUBLISHED, "dpt_hybrid", OfficialFile(PUBLISHED["dpt_hybrid"].url, (60, 120)))
    with pytest.raises(MdeError, match=r"SHA-256 does not start with 501f0c75.*weights=PATH.*dpt_hybrid-midas"):
        build_model("dpt_hybrid", weights="midas")
    right = hashlib.sha256(Mirror.good).hexdigest()[:8]
    monkeypatch.setitem(PUBLISHED, "dpt_hybrid", OfficialFile(f"{mirror}/good/dpt-{right}.pt", (60, 120)))
    with pytest.raises(MdeError, match=r"holds midas_small, not dpt_hybrid \(removed from the cache"):
        build_model("dpt_hybrid", weights="midas")
    assert list(tmp_path.glob("cache/*")) == []


def test_another_size_is_not_the_weights(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDE_WEIGHTS_URL", f"{mirror}/good")
    with pytest.raises(MdeError, match="are not the weights, which have 1360 to 1400 MB"):
        build_model("dpt_large", weights="midas")
