"""Serving the explorer: one address, loopback unless told otherwise, nothing from elsewhere.

Gradio's page would load fonts and a script from other hosts. They are taken out of it here, and
what is left is forbidden to ask anybody else.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from uturn.data.catalog import load_data
from uturn.errors import ArgumentError, UturnError
from uturn.explorer import DATA, VICTIM, draw, page, uploads
from uturn.explorer.desk import Desk
from uturn.explorer.doorway import App, Doorway, Message, Receive, Send
from uturn.explorer.runs import RunBook
from uturn.explorer.studio import Studio
from uturn.parallel import behind
from uturn.progress import say
from uturn.victims.load import require_data

WAITING = 16
"""Attacks that may wait for their turn, of all windows together."""

CONNECTIONS = 256
"""At a time; more are told that the server is busy. A window has a few."""

_ELSEWHERE = re.compile(
    rb"""<link[^>]*href=["'](?:https?:)?//[^>]*>"""
    rb"""|<script[^>]*src=["'](?:https?:)?//[^>]*>\s*</script>"""
)
_POLICY = b"; ".join(
    (
        b"default-src 'self'",
        b"script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio fills its templates so
        b"style-src 'self' 'unsafe-inline'",
        b"img-src 'self' data: blob:",
        b"font-src 'self' data:",
        b"worker-src 'self' blob:",
        b"object-src 'none'",
        b"base-uri 'self'",
        b"form-action 'self'",
        b"frame-ancestors 'none'",
    )
)


@final
class FromHere:
    """ASGI: pages without what they would load from other hosts, under a policy that forbids it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        if any(b"text/html" in value for name, value in headers if name == b"accept"):
            # A page that is compressed could not be read here.
            headers = [pair for pair in headers if pair[0] != b"accept-encoding"]
        start, body = dict[str, Any](), bytearray()

        async def rewritten(message: Message) -> None:
            if message["type"] == "http.response.start":
                if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                    start.update(message)
                    return
            elif start:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    whole = _ELSEWHERE.sub(b"", bytes(body))
                    told = [pair for pair in start["headers"] if pair[0] != b"content-length"]
                    told += [
                        (b"content-length", str(len(whole)).encode()),
                        (b"content-security-policy", _POLICY),
                    ]
                    await send({**start, "headers": told})
                    await send({"type": "http.response.body", "body": whole})
                return
            await send(message)

        await self.app({**scope, "headers": headers}, receive, rewritten)


@final
@dataclass(frozen=True, eq=False)
class Served:
    """An explorer that is ready to be served."""

    desk: Desk
    server: Any
    """Of uvicorn."""
    socket: socket.socket
    url: str

    def run(self, *, progress: bool = True, before: Callable[[], None] = lambda: None) -> None:
        """Serve until somebody stops it; the galleries are embedded meanwhile, after ``before``.

        Raises:
            UturnError: a picture or the index is wrong. Nothing is served any more then.
        """
        with behind() as pool:
            serving = pool.submit(self.server.run, sockets=[self.socket])
            try:
                before()
                for studio in self.desk.studios:
                    studio.embed(progress=progress)
                serving.result()
            except KeyboardInterrupt:
                # Windows that are still open are cut off now, which is no error.
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            finally:
                self.server.should_exit = True


def furnish(
    folder: Path,
    *,
    runs: Sequence[Path] = (),
    victim: str | None = None,
    data: str | None = None,
    beside: Sequence[str] = (),
    index: str = "exact",
    device: str = "auto",
) -> Desk:
    """A desk with run folders, and with victims whose gallery is still to be embedded.

    Where nothing else is said, victim and data are those of the first run, or else the glyphs'. A
    run whose victim or data are not there any more is only leafed through.

    Raises:
        UturnError: a run, a spec, a picture or a data set is wrong.
    """
    books = tuple(map(RunBook.open, runs))
    given = victim is not None or data is not None or bool(beside)
    named = victim is not None
    victim = victim or (books[0].setting("victim") if books else VICTIM)
    data = data or (books[0].setting("data") if books else DATA)
    try:
        if books and not named:
            require_data(victim, f"{books[0].path / 'run.json'}")
        split = load_data(data)
        studios = tuple(
            Studio.open(spec, data, split, index=index, device=device)
            for spec in dict.fromkeys((victim, *beside))
        )
    except UturnError as error:
        if given or not books:
            raise
        say(f"the run can be leafed through, its queries not attacked: {error}")
        studios = ()
    return Desk(studios, books, folder)


@contextmanager
def open_at(host: str, port: int, **furniture: Any) -> Iterator[Served]:
    """A server of what `furnish` makes of ``furniture``; port 0 is any that is free.

    Raises:
        ArgumentError: the address cannot be had. UturnError: Gradio is not installed, or as
            `furnish`.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UturnError("the explorer's page needs Gradio; install it: pip install 'uturn[web]'")
    with (
        tempfile.TemporaryDirectory(prefix="uturn-") as folder,
        _listening(host, port) as listening,
    ):
        with behind() as pool:  # both take seconds
            coming = pool.submit(_import_gradio, Path(folder))
            desk = furnish(Path(folder), **furniture)
            coming.result()
        name = f"[{host}]" if ":" in host else host
        yield Served(
            desk, _server(desk, host), listening, f"http://{name}:{listening.getsockname()[1]}"
        )


def _import_gradio(folder: Path) -> None:
    # It reads them when it is imported. Uploads and what is downloaded lie in its folder.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    importlib.import_module("gradio")


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()
        except OSError as error:
            raise ArgumentError(
                f"cannot serve at {host}, port {port} ({error}); choose another --port or --host"
            ) from error
        yield listening


def _server(desk: Desk, host: str) -> Any:
    """Uvicorn's server of the page."""
    import fastapi
    import gradio as gr
    import uvicorn

    blocks = page.build(desk)
    blocks.queue(max_size=WAITING, default_concurrency_limit=1)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(FromHere)
    app.add_middleware(Doorway, host=host)
    # The default theme asks Google for its fonts.
    theme = gr.themes.Default(
        font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme,
        head=f"<style>{draw.CSS}</style>",
        max_file_size=uploads.BYTES,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=2, limit_concurrency=CONNECTIONS
    )
    return uvicorn.Server(config)
