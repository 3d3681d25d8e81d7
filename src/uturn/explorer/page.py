"""The explorer's page: Gradio's widgets around `desk`. Gradio is imported when a page is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uturn.attacks.presets import PRESETS
from uturn.explorer.climb import OFFERED
from uturn.explorer.desk import Desk, Session

_SWEEP, _KEPT = 600, 3600
"""Seconds between two looks for uploads that are old, and after which they are."""

ORDERS = {"easiest to turn first": "easiest", "hardest to turn first": "hardest"}


def build(desk: Desk) -> Any:
    """The page as Gradio Blocks."""
    import gradio as gr

    swept = (_SWEEP, _KEPT)
    with gr.Blocks(title="uturn explorer", analytics_enabled=False, delete_cache=swept) as blocks:
        gr.Markdown(
            "# uturn explorer\nHow far can an image retrieval system be turned round by a change "
            "to the query that nobody sees?"
        )
        session = gr.State(None, delete_callback=desk.leave)
        if desk.studios and desk.books:
            with gr.Tab("Attack a query"):
                opened = _attack(gr, desk, session)
            with gr.Tab("Leaf through a run"):
                _runs(gr, desk)
        elif desk.studios:
            opened = _attack(gr, desk, session)
        else:
            opened = None
            _runs(gr, desk)
        if opened is not None:
            victim, query, view = opened

            def enter(victim: str, name: str) -> tuple[Session, str]:
                entered = desk.enter()
                return entered, desk.ask(entered, victim, name)

            blocks.load(enter, [victim, query], [session, view], api_visibility="private")
    return blocks


def _attack(gr: Any, desk: Desk, session: Any) -> tuple[Any, Any, Any]:
    """The tab on which one query is attacked; what a new window must fill."""
    names, specs = desk.names(), [studio.spec for studio in desk.studios]
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            query = gr.Dropdown(
                names,
                value=names[0],
                label="Query",
                info="Choose one, or type the name of any other.",
                allow_custom_value=True,
                elem_id="query",
            )
            with gr.Row():
                another = gr.Button("Another", size="sm", min_width=90, elem_id="another")
                upload = gr.UploadButton(
                    "Upload a picture", size="sm", min_width=90, elem_id="upload"
                )
            victim = gr.Radio(
                specs,
                value=specs[0],
                label="Victim that is attacked",
                visible=len(specs) > 1,
                elem_id="victim",
            )
            attack = gr.Dropdown(
                list(OFFERED), value="odfa", label="Attack", info=_summary("odfa"), elem_id="attack"
            )
            eps = gr.Slider(
                1, 32, value=8, step=1, label="ε", info="Levels of 255 a value may change by."
            )
            with gr.Accordion("Steps and scales", open=False):
                steps = gr.Number(
                    value=None, label="Steps", info="Empty: the attack's own.", precision=0
                )
                scales = gr.Textbox(
                    value="1",
                    label="Scales",
                    info="Of the picture, attacked one by one, such as 1, 0.7071, 0.5.",
                    max_length=60,
                )
            with gr.Row():
                go = gr.Button("Attack", variant="primary", min_width=90, elem_id="go")
                cancel = gr.Button("Cancel", variant="stop", min_width=90, elem_id="cancel")
            with gr.Row():
                adversarial = _download(gr, "Adversarial PNG", "adversarial")
                clean = _download(gr, "Clean PNG", "clean")
                card = _download(gr, "Picture to share", "card")
        with gr.Column(scale=3, min_width=300):
            view = gr.HTML(elem_id="view")
            survived = gr.HTML(elem_id="survived")
            command = gr.HTML(elem_id="command")
    ends = [survived, command, adversarial, clean, card]

    def nothing() -> tuple[Any, ...]:
        return "", "", *(gr.DownloadButton(value=None, interactive=False) for _ in range(3))

    def present(session: Session | None) -> Session:
        if session is None:  # the server has begun anew, or the page has not quite
            raise gr.Error("load this page again, and try once more", print_exception=False)
        return session

    def ask(session: Session | None, victim: str, name: str) -> tuple[Any, ...]:
        return desk.ask(present(session), victim, name), *nothing()

    def again(session: Session | None, victim: str) -> tuple[Any, ...]:
        return desk.ask(present(session), victim, None), *nothing()

    def other(session: Session | None, victim: str) -> tuple[Any, ...]:
        name = desk.another(present(session))
        return name, desk.ask(present(session), victim, name), *nothing()

    def uploaded(session: Session | None, victim: str, file: str) -> tuple[Any, ...]:
        return desk.upload(present(session), victim, Path(file)), *nothing()

    def run(
        session: Session | None,
        victim: str,
        name: str,
        eps: float,
        steps: float | None,
        scales: str,
    ) -> Iterator[tuple[Any, ...]]:
        for shown in desk.attack(present(session), victim, name, eps, steps, scales):
            files = [
                gr.DownloadButton(value=file and str(file), interactive=file is not None)
                for file in (shown.adversarial, shown.clean, shown.card)
            ]
            yield shown.view, shown.survived, shown.command, *files

    def stop(session: Session | None) -> None:
        present(session).stop.set()

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    query.input(ask, [session, victim, query], [view, *ends], **quiet)
    victim.input(again, [session, victim], [view, *ends], **quiet)
    another.click(other, [session, victim], [query, view, *ends], **quiet)
    upload.upload(uploaded, [session, victim, upload], [view, *ends], **quiet)
    attack.change(lambda name: gr.Dropdown(info=_summary(name)), attack, attack, **quiet)
    go.click(
        run,
        [session, victim, attack, eps, steps, scales],
        [view, *ends],
        concurrency_limit=1,
        trigger_mode="once",
        **quiet,
    )
    cancel.click(stop, session, None, queue=False, **quiet)
    return victim, query, view


def _download(gr: Any, label: str, name: str) -> Any:
    return gr.DownloadButton(label, size="sm", min_width=90, interactive=False, elem_id=name)


def _summary(name: str) -> str:
    return (inspect.getdoc(PRESETS[name]) or "").partition("\n")[0]


def _runs(gr: Any, desk: Desk) -> None:
    """The tab on which run folders are leafed through."""
    runs = [str(book.path) for book in desk.books]
    first = desk.books[0]
    attacks = desk.attacks_of(runs[0])
    run = gr.Dropdown(runs, value=runs[0], label="Run folder", visible=len(runs) > 1, elem_id="run")
    curves = gr.HTML(desk.overview(runs[0]), elem_id="curves")
    with gr.Row():
        attack = gr.Dropdown(attacks, value=attacks[0], label="Attack", elem_id="run-attack")
        eps = gr.Dropdown(
            list(first.budgets), value=first.budgets[-1], label="ε", elem_id="run-eps"
        )
        order = gr.Dropdown(
            list(ORDERS), value=next(iter(ORDERS)), label="Order", elem_id="run-order"
        )
        identity = gr.Textbox("", label="Identity", info="Empty: all.", max_length=20)
        camera = gr.Textbox("", label="Camera", info="Empty: all.", max_length=20)
    listed, names = desk.leaf(runs[0], attacks[0], first.budgets[-1], "easiest", "", "")
    table = gr.HTML(listed, elem_id="falls")
    query = gr.Dropdown(names, value=None, label="Show a query", elem_id="run-query")
    shown = gr.HTML(elem_id="fallen")

    def leaf(
        run: str, attack: str, eps: float, order: str, identity: str, camera: str
    ) -> tuple[Any, ...]:
        by: Any = ORDERS[order]
        listed, names = desk.leaf(run, attack, eps, by, identity, camera)
        return listed, gr.Dropdown(names, value=None), ""

    def turn_to(run: str) -> tuple[Any, ...]:
        book, attacks = desk.book(run), desk.attacks_of(run)
        listed, names = desk.leaf(run, attacks[0], book.budgets[-1], "easiest", "", "")
        return (
            desk.overview(run),
            gr.Dropdown(attacks, value=attacks[0]),
            gr.Dropdown(list(book.budgets), value=book.budgets[-1]),
            listed,
            gr.Dropdown(names, value=None),
            "",
        )

    def show(run: str, query: str | None, attack: str, eps: float) -> str:
        return desk.fallen(run, query, attack, eps) if query else ""

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    chosen = [run, attack, eps, order, identity, camera]
    for widget in (attack, eps, order):
        widget.input(leaf, chosen, [table, query, shown], **quiet)
    for widget in (identity, camera):
        widget.submit(leaf, chosen, [table, query, shown], **quiet)
        widget.blur(leaf, chosen, [table, query, shown], **quiet)
    run.input(turn_to, run, [curves, attack, eps, table, query, shown], **quiet)
    query.input(show, [run, query, attack, eps], shown, **quiet)
