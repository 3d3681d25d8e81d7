"""Documentation cannot drift: its code runs, its command lines parse, its doctests hold."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import uturn
from uturn.attacks import (
    blackbox,
    minimal,
    objectives,
    relevance,
    search,
    steps,
    surrogates,
    threats,
    universal,
    views,
    walks,
)
from uturn.attacks.loop import Attack
from uturn.cli import main
from uturn.reproduce.experiments import EXPERIMENTS
from uturn.reproduce.place import GIVEN, names_in
from uturn.victims import checkpoints, zoo

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/attacks.md",
    "docs/attacks/uturn.md",
    "docs/paper_mode.md",
    "docs/market1501.md",
    "docs/protocols.md",
    "docs/indexes.md",
    "docs/scale.md",
    "docs/gallery_side.md",
    "docs/victims.md",
    "docs/doctor.md",
    "docs/training.md",
    "docs/defence.md",
    "docs/guard.md",
    "docs/reproduce.md",
    "docs/transfer.md",
    "docs/black_box.md",
    "docs/natural_images.md",
    "docs/report.md",
    "docs/durability.md",
    "docs/index.md",
    "docs/concepts.md",
    "docs/faq.md",
    "docs/explorer.md",
    "docs/threat_model.md",
    "docs/security.md",
    "docs/licences.md",
    "SECURITY.md",
    "docs/speed.md",
    "docs/engines.md",
    "docs/pipeline.md",
    "docs/commands.md",
    "docs/api.md",
)

THREE_LINES = ("timm:", "torchreid:", "hf:", "uturn.Victim(")
"""README blocks that need a package or a folder: run in test_adapters.py."""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("README.md", "python"):
        if not any(mark in block for mark in THREE_LINES):
            exec(block, names)
    assert "OppositeDirection" in capsys.readouterr().out
    change = names["adversarial"].int() - names["images"].int()  # type: ignore[attr-defined]
    assert 0 < int(change.abs().max()) <= 8


def test_the_example_preset_is_short_and_attacks(glyph_victim: uturn.Victim) -> None:
    block = blocks("CONTRIBUTING.md", "python")[0]
    names: dict[str, object] = {}
    exec(block, names)
    lines = block[block.index("def ") :].strip().splitlines()
    assert len(lines) <= 9
    attack = names["odfa_flip"](eps=4)  # type: ignore[operator]
    assert isinstance(attack, Attack)
    found = attack(glyph_victim, torch.full((1, 3, 32, 32), 90, dtype=torch.uint8))
    assert 0 < int(found.delta.abs().max()) <= 4
    assert found.gradients == 20


def test_command_lines_parse() -> None:
    """Every `uturn …` in the pages is a command whose options exist."""
    assert isinstance(main, click.Group)
    seen = 0
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if not line.startswith("$") or "uturn " not in line:
                    continue
                words = shlex.split(line.split("uturn ", 1)[1], comments=True)
                command = main.commands[words[0]]
                command.make_context(words[0], words[1:], resilient_parsing=False)
                seen += 1
    assert seen


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`make (\w+)`|\$ make (\w+)", (ROOT / page).read_text()):
            assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def test_make_weights_trains_the_shipped_network_beside_the_shipped_file() -> None:
    assert isinstance(main, click.Group)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = makefile.split("\nweights:")[1].split("\n\n")[0]
    training, moving = re.findall(r"\t(.*)", recipe)
    words = shlex.split(training.split("uturn train ", 1)[1])
    given = main.commands["train"].make_context("train", words).params
    source, target = moving.split()[1:]
    shipped = zoo.ZOO[given["arch"]]
    assert shipped.weights == ROOT / target
    assert str(given["out"]) == source != target
    card = checkpoints.read_card(ROOT / target)
    assert card is not None
    assert card.preprocessing == shipped.preprocessing


NAMES = {
    "market1501": "Market-1501",
    "cifar10": "CIFAR-10",
    "grocery": "Grocery Store",
    "cub200": "CUB-200-2011",
    "food256": "Food-256",
    "osnet_weights": "torchreid's OSNet weights",
    "mobilenet_weights": "MobileNetV2's ImageNet weights",
}
"""What docs/reproduce.md calls the needs of preset cpu."""


def test_the_needs_of_every_experiment_are_in_its_row() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for name, experiment in EXPERIMENTS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        told = row.split("|")[3].strip()
        needs = names_in(experiment.presets["cpu"]) - GIVEN
        assert set(told.split(", ")) == ({NAMES[need] for need in needs} or {"nothing"}), name


def test_every_command_is_in_the_readme() -> None:
    assert isinstance(main, click.Group)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in main.commands:
        assert f"`uturn {name}`" in readme


def test_every_attack_and_piece_is_in_the_catalogue() -> None:
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    for name in uturn.attacks.PRESETS:
        assert f"| `{name}` |" in page
    rooms = (objectives, threats, steps, views, surrogates, search, minimal, universal)
    for room in (*rooms, blackbox, relevance, walks):
        for name, piece in vars(room).items():
            mine = getattr(piece, "__module__", "") == room.__name__ and isinstance(piece, type)
            internal = name in ("Info", "When", "Chain") or getattr(piece, "_is_protocol", False)
            if mine and not internal and not name.startswith("_"):
                assert f"`{name}`" in page, name


def test_the_catalogue_counts_gradients_right() -> None:
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    for name, preset in uturn.attacks.PRESETS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        claimed = row.split("|")[5].strip()
        spent = 0 if name in ("universal", "prgf") else preset(eps=8).gradients
        claims = {"T": 10, "⌈log₂(ε + 1)⌉ × 20": 80}
        assert spent == claims.get(claimed) or str(spent) == claimed, name


def test_the_catalogues_code_runs(glyph_victim: uturn.Victim) -> None:
    names: dict[str, object] = {}
    exec(blocks("docs/attacks.md", "python")[0], names)
    images = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    built = [piece for piece in names.values() if isinstance(piece, Attack)]
    assert len(built) == 6
    for attack in built:
        found = dataclasses.replace(attack, steps=2)(glyph_victim, images)
        assert bool(found.delta.any())


def test_every_block_of_the_guides_runs() -> None:
    """Each on its own, as somebody who copies one finds it."""
    for page in ("index", "concepts", "faq", "api", "black_box", "guard"):
        found = blocks(f"docs/{page}.md", "python")
        assert found, page
        for block in found:
            exec(block, {})


def test_the_gradient_is_zero_where_the_page_says_so() -> None:
    block = next(code for code in blocks("docs/concepts.md", "python") if "climb" in code)
    names: dict[str, Any] = {}
    exec(block, names)
    assert 0 <= names["length"][0] < 1e-4 * names["length"][1]


def test_the_figure_of_the_zero_gradient_is_measured(glyph_victim: uturn.Victim) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "scripts" / "zero_gradient.py"))
    query = uturn.load_data("glyphs").query
    found = script["measure"](glyph_victim, glyph_victim.grid(query.read(i) for i in range(24)))
    at, line = script["AWAY"].index, script["LINE"].index
    assert bool((found.cosine[line(0.0)] >= 1 - 1e-12).all())
    assert bool((found.cosine.max(0).values <= 1 + 1e-12).all())
    assert bool((found.unit[at(0.0)] < 1e-4 * found.unit[at(1.0)]).all())
    assert bool((found.raw[at(0.0)] > 0.1 * found.raw[at(1.0)]).all())
    assert float(found.agreement[at(0.0)].mean()) < 0.8
    assert float(found.agreement[at(1.0)].mean()) > 0.99


def test_every_option_is_explained_and_on_the_page_of_commands() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "scripts" / "commands.py"))
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page == script["page"](), "run .venv/bin/python docs/scripts/commands.py"
    for path, command in every_command(main, "uturn"):
        assert f"## `{path}`" in page
        assert command.help, path
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{path} {option.opts[0]} has no help"
                assert option.opts[0] in page


def every_command(group: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(group, click.Group):
        return [(path, group)]
    return [
        found
        for name, command in group.commands.items()
        for found in every_command(command, f"{path} {name}")
    ]


def test_every_public_name_is_in_the_reference_and_explained() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for room in (uturn, uturn.attacks):
        for name in room.__all__:
            assert f"`{name}`" in page, name
            piece = getattr(room, name)
            assert not callable(piece) or piece.__doc__, name


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_to_headings_lead_to_one() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", text):
            target = (ROOT / page).parent / path if path else ROOT / page
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page} links to {path}#{anchor}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / page).parent.joinpath(link).exists(), link


def modules() -> list[str]:
    found = pkgutil.walk_packages(uturn.__path__, "uturn.")
    return ["uturn", *(module.name for module in found if module.name != "uturn.__main__")]


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
