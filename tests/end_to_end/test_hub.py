"""From the Hugging Face hub to training files: the real client over HTTP, the server a stand-in.

The hub itself is not asked, for a test must not depend on it. The stand-in speaks what the client
asks of a data set: its revision, its tree, and its files, large ones behind a redirect.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest

from examples.ophthareason.loading import read_records
from tests.data_examples.samples import encoded, picture, raw

REPO = "lxirich/MM-Retinal-Reason"
COMMIT = "6" * 40
FILES = {
    "README.md": b"# MM-Retinal-Reason",
    "images/eye.png": picture("green"),
    "images/large eye.jpg": picture("blue", kind="JPEG"),
    "single_choice_test_data_CFP.json": json.dumps(
        [raw(image=["images/eye.png"]), raw(image=["images/large eye.jpg"])]
    ).encode(),
    "complex/complex_reason.json": json.dumps(
        [raw("What is it?", "Glaucoma", image=[encoded("red")], pmcid="PMC1")]
    ).encode(),
    "weights.bin": b"not wanted",
}
LARGE = "images/large eye.jpg"


class Hub(BaseHTTPRequestHandler):
    """One data set with one commit, under the names ``main`` and its hash."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        api, files = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/"
        if path.startswith("/lfs/"):
            self._send(FILES[path.removeprefix("/lfs/")])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            tree = [
                {"type": "file", "oid": _etag(data), "size": len(data), "path": name}
                for name, data in FILES.items()
            ]
            self._send(json.dumps(tree).encode())
        elif path.startswith(files + COMMIT):
            self._file(path.removeprefix(f"{files}{COMMIT}/"))
        else:
            self._send(b"{}", {"X-Error-Code": "RevisionNotFound"}, status=404)

    def _file(self, name: str) -> None:
        data = FILES[name]
        held = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(data)}"'}
        if name == LARGE:
            port = self.headers["Host"].partition(":")[2]  # another host: the hub's file store
            held |= {
                "X-Linked-ETag": held["ETag"],
                "X-Linked-Size": str(len(data)),
                "Location": f"http://localhost:{port}/lfs/{name.replace(' ', '%20')}",
            }
            self._send(b"", held, status=302)
        else:
            self._send(data, held)

    def _send(
        self, data: bytes, headers: dict[str, str] | None = None, *, status: int = 200
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_of_the_hub_is_downloaded_read_and_kept(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }

    def convert(source: str, out: Path) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "examples.ophthareason.data", "convert", source, str(out)]
        root = Path(__file__).parents[2]
        return subprocess.run(
            program, cwd=root, env=environment, capture_output=True, text=True, check=False
        )

    done = convert(f"hub:{REPO}", tmp_path / "a.jsonl")
    assert done.returncode == 0, done.stderr
    items = {item.id: item for item in read_records(tmp_path / "a.jsonl")}
    assert {id: item.images for id, item in items.items()} == {
        "complex/complex_reason#0": (picture("red"),),
        "single_choice_test_data_CFP#0": (FILES["images/eye.png"],),
        "single_choice_test_data_CFP#1": (FILES[LARGE],),
    }
    assert items["complex/complex_reason#0"].source == "PubMed Central"
    got = [one for one in Hub.asked if one.startswith("GET /datasets/")]
    assert any("eye.png" in one for one in got)
    assert not any("weights.bin" in one for one in got)  # only what records need
    # A pinned commit is in the cache now: nothing is downloaded again.
    Hub.asked.clear()
    again = convert(f"hub:{REPO}@{COMMIT}", tmp_path / "b.jsonl")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert not [one for one in Hub.asked if one.startswith("GET /datasets/")]
    missing = convert(f"hub:{REPO}@v9", tmp_path / "c.jsonl")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert "error" in missing.stderr
    assert not (tmp_path / "c.jsonl").exists()
