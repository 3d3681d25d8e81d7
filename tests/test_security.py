"""What files may make this program do: nothing but be read. And who may come in to the explorer."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz.wire import answered_by
from safetensors.torch import save_file

from tests.conftest import Tiny
from uturn import load_victim
from uturn.errors import CheckpointError, OracleError, SpecError
from uturn.explorer.doorway import MOST, Doorway
from uturn.explorer.serve import furnish
from uturn.guard.evaluate import try_guard
from uturn.retrieval.endpoint import Endpoint
from uturn.sweep import Plan, run
from uturn.verify import verify
from uturn.victims.load import require_data

ROOT = Path(__file__).parent.parent
CODE = "os:mkdir,path=canary"
"""A victim's spec that makes a folder when it is loaded, were it loaded."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    plan = Plan(victim="glyph_net", data="glyphs", attacks=("fast",), eps=(8.0,), queries=2)
    run(plan, out, progress=False)
    return out


@pytest.fixture
def hostile(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The run with other entries in its configuration; nothing may be made where we stand."""

    def changed(**entries: object) -> Path:
        for name in ("results.json", "queries.parquet", "ranklists.json"):
            (tmp_path / "run").mkdir(exist_ok=True)
            content = (finished / name).read_bytes()
            if "victim" in entries and name.endswith(".json"):
                own = json.dumps(entries["victim"]).encode()
                content = content.replace(b'"glyph_net"', own)
            elif "victim" in entries:
                table = pq.read_table(finished / name)
                place = table.column_names.index("victim")
                named = pa.array([str(entries["victim"])] * len(table))
                pq.write_table(table.set_column(place, "victim", named), tmp_path / "named")
                content = (tmp_path / "named").read_bytes()
            (tmp_path / "run" / name).write_bytes(content)
        header = json.loads((finished / "run.json").read_bytes())
        header["configuration"] |= entries
        (tmp_path / "run" / "run.json").write_text(json.dumps(header))
        return tmp_path / "run"

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield changed
    assert [*(tmp_path / "here").iterdir()] == []


def test_this_spec_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever types ``package.module:factory`` is taken at their word."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="returned a NoneType"):
        load_victim(CODE)
    assert (tmp_path / "canary").is_dir()


@pytest.mark.parametrize(
    "spec",
    [
        *(CODE, "torchscript:net.pt", "hf:a/b,download=yes", "timm:resnet18,pretrained=yes"),
        *(f"ensemble:glyph_net+[{CODE}]", "ensemble:[ensemble:[os:getcwd]+glyph_net]+glyph_net"),
    ],
)
def test_a_run_names_no_victim_that_is_code_or_a_download(hostile: Any, spec: str) -> None:
    with pytest.raises(SpecError, match="a file may not ask for that"):
        require_data(spec, "run.json")
    folder = hostile(victim=spec)
    unchecked = verify(folder, progress=False).unchecked
    assert any("a file may not ask for that" in told for told in unchecked)
    with pytest.raises(SpecError, match="may not ask"):
        try_guard(folder, progress=False)
    desk = furnish(folder.parent, runs=[folder])
    assert not desk.studios  # the run can be leafed through
    assert len(desk.books) == 1


def test_a_run_names_no_prior_that_is_code(hostile: Any) -> None:
    for attack in (f"square:prior=[{CODE}]", f"minimal:by=[square:prior=[{CODE}]]"):
        folder = hostile(attacks=[attack])
        for files_only in (True, False):
            found = verify(folder, files_only=files_only, progress=False)
            assert any("a file may not ask" in told for told in found.unchecked)


def test_a_run_names_no_database(hostile: Any) -> None:
    folder = hostile(index="milvus:http://somewhere.invalid:19530")
    assert any("a database" in told for told in verify(folder, progress=False).unchecked)
    with pytest.raises(SpecError, match="a database"):
        try_guard(folder, progress=False)


def test_who_trusts_a_run_has_its_victim_loaded(hostile: Any, tmp_path: Path) -> None:
    folder = hostile(victim=CODE)
    with pytest.raises(SpecError, match="returned a NoneType"):
        try_guard(folder, trust=True, progress=False)
    (tmp_path / "here" / "canary").rmdir()


def test_a_checkpoint_names_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    preprocessing = {"size": [32, 32]}
    for architecture in (CODE, "torchscript:x.pt", "hf:a/b,download=yes", "x.safetensors"):
        card = {"preprocessing": preprocessing, "similarity": "cosine"}
        told = json.dumps(card | {"architecture": architecture})
        save_file(dict(Tiny(0).state_dict()), tmp_path / "net.safetensors", {"uturn": told})
        with pytest.raises(SpecError, match="which is no network"):
            load_victim("net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_an_onnx_file_reads_no_other_folder(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / "secret").write_bytes(bytes(3 * 4 * 4))
    (tmp_path / "model").mkdir()
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[3, 4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("length", "48")):
        weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    takes = helper.make_tensor_value_info("x", kind, ["n", 3, 8, 8])
    gives = helper.make_tensor_value_info("y", kind, ["n", 4])
    graph = helper.make_graph(nodes, "g", [takes], [gives], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model" / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="cannot run"):
        load_victim(f"onnx:{tmp_path / 'model' / 'net.onnx'}")


def test_an_endpoint_leads_nobody_elsewhere() -> None:
    """A redirect would hand over the header that opens doors."""
    picture = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for status in (301, 302, 303, 307, 308):
        answer = f"HTTP/1.1 {status} Go\r\nLocation: http://elsewhere.invalid/\r\n\r\n".encode()
        endpoint = Endpoint(url="http://mine.invalid/", headers={"Authorization": "Bearer x"})
        with answered_by(answer) as called, pytest.raises(OracleError, match="is not followed"):
            endpoint(picture, 1)
        assert called == ["mine.invalid"]


OFFLINE = """
import json, sys
NEVER = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.")
def hook(event, arguments):
    if event.startswith(NEVER):
        print("NETWORK", event, arguments, file=sys.stderr, flush=True)
        raise RuntimeError(f"asks the network: {event} {arguments}")
sys.addaudithook(hook)
from uturn.cli import main
for words in json.loads(sys.argv[1]):
    main(words.split(), standalone_mode=False)
"""
SWEEP = "sweep --victim glyph_net --data glyphs --attack fast --eps 8 --queries 2 --out run --quiet"


@pytest.mark.parametrize(
    "commands",
    [
        (SWEEP, "report run", "verify run --files-only --quiet", "list victims"),
        pytest.param(
            (
                *(SWEEP, "verify run --quiet", "report run", "doctor --victim glyph_net --quiet"),
                "eval --victim glyph_net --data glyphs --quiet",
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["run", "victim"],
)
def test_nothing_asks_the_network_unless_it_is_told_to(
    tmp_path: Path, commands: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | {"UTURN_CACHE": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert "NETWORK" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


# The explorer's doorway


def answer(
    app: Any, method: str, path: str, headers: dict[str, str], body: list[bytes] | None = None
) -> int:
    """The status of what an ASGI application answers."""
    parts = list(body or [b""])
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if not parts:
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        **{"type": "http", "http_version": "1.1", "method": method, "path": path},
        **{"raw_path": path.encode(), "query_string": b"", "scheme": "http", "root_path": ""},
        **{"client": ("127.0.0.1", 5), "server": ("127.0.0.1", 7860)},
        "headers": [(key.lower().encode(), value.encode()) for key, value in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    return statuses[0]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body; 299 if it was cut off."""
    more, status = True, 200
    while more:
        message = await receive()
        status = 299 if message["type"] == "http.disconnect" else status
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_names_that_only_lead_here_are_refused(host: str) -> None:
    door = Doorway(echo, host)
    for named in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST"):
        assert answer(door, "GET", "/", {"Host": named}) == 200
    for named in ("evil.example", "evil.example:7860", "", "192.168.1.5:7860", "localhost.evil.x"):
        assert answer(door, "GET", "/", {"Host": named}) == 403
    assert answer(door, "GET", "/", {}) == 403


def test_a_server_on_a_network_goes_by_numbers_and_its_own_name() -> None:
    import socket

    door = Doorway(echo, "0.0.0.0")
    for named in ("192.168.1.5:7860", "127.0.0.1", f"{socket.gethostname()}:7860"):
        assert answer(door, "GET", "/", {"Host": named}) == 200
    assert answer(door, "GET", "/", {"Host": "evil.example:7860"}) == 403


def test_pages_from_elsewhere_change_nothing() -> None:
    door, own = Doorway(echo, "127.0.0.1"), {"Host": "127.0.0.1:7860"}
    assert answer(door, "POST", "/", own | {"Origin": "http://127.0.0.1:7860"}) == 200
    assert answer(door, "POST", "/", own) == 200  # no browser
    for origin in ("http://evil.example", "null", "http://127.0.0.1:8000", "http://localhost:7860"):
        assert answer(door, "POST", "/", own | {"Origin": origin}) == 403


def test_requests_that_are_too_large_are_cut_off() -> None:
    door, own = Doorway(echo, "127.0.0.1"), {"Host": "127.0.0.1"}
    assert answer(door, "POST", "/", own | {"Content-Length": str(MOST + 1)}) == 413
    assert answer(door, "POST", "/", own | {"Content-Length": "-1"}) == 413
    chunk = bytes(1 << 20)
    assert answer(door, "POST", "/", own, [chunk] * (MOST >> 20)) == 200
    assert answer(door, "POST", "/", own, [chunk] * ((MOST >> 20) + 1)) == 299


def asked(url: str, method: str, path: str, **headers: str) -> int:
    """The status that a server answers with."""
    line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        line.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        return line.getresponse().status
    finally:
        line.close()


def test_the_explorer_has_the_door_and_serves_no_files_of_the_machine(
    finished: Path, tmp_path: Path
) -> None:
    from tests.test_serve import serving  # which is skipped without Gradio

    words = (str(finished), "--victim", "glyph_net", "--data", "glyphs", "--device", "cpu")
    with serving(tmp_path, *words) as url:
        assert asked(url, "GET", "/config") == 200
        assert asked(url, "GET", "/config", Host="evil.example") == 403
        assert asked(url, "POST", "/gradio_api/queue/join", Origin="http://evil.example") == 403
        assert asked(url, "POST", "/gradio_api/upload", Content_Length=str(1 << 30)) == 413
        for path in ("/etc/passwd", str(finished / "run.json"), "../../../etc/passwd", "run.json"):
            for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/"):
                assert asked(url, "GET", f"{route}{path}") in (403, 404, 405, 422)


# Licences


@pytest.fixture(scope="module")
def licences() -> dict[str, Any]:
    pytest.importorskip("tomllib", reason="the list is written with Python 3.11 or newer")
    return runpy.run_path(str(ROOT / "docs/scripts/licences.py"))


def test_every_dependency_is_in_the_list_of_licences(licences: dict[str, Any]) -> None:
    page = (ROOT / "docs/licences.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    found = licences["extras"]()
    assert {"", "zoo", "web", "fuzz"} < found.keys()
    for extra, names in found.items():
        section = sections[f"Extra `{extra}`" if extra else "Core"]
        assert [line.split(" | ")[0][2:] for line in section.split("\n") if "| " in line][
            1:
        ] == names
        assert "not said" not in section
        assert "not installed" not in section


def test_the_core_needs_nothing_that_binds_it(licences: dict[str, Any]) -> None:
    needed = licences["asked_of_core"]()
    assert {"torch", "pillow", "markupsafe"} <= {*needed}
    for name in needed:
        assert licences["fits_core"](licences["licence"](name)), name


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        *(("MIT", True), ("MPL-2.0", True), ("MIT OR GPL-2.0-only", True), ("PSF-2.0", True)),
        *(("GPL-3.0-only", False), ("LGPL-3.0", False), ("MIT AND AGPL-3.0", False)),
        *(("GNU General Public License v3", False), ("not said", False), ("not installed", False)),
    ],
)
def test_which_licences_bind(licences: dict[str, Any], text: str, fits: bool) -> None:
    assert licences["fits_core"](text) is fits
