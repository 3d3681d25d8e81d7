"""The command line: help without torch, every option documented, each command on real input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from uturn import load_data, load_victim
from uturn.cli import main
from uturn.data.pictures import decode, encode
from uturn.victims.victim import to_pixels


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def commands(group: click.Command = main) -> dict[str, click.Command]:
    assert isinstance(group, click.Group)
    return group.commands


def test_help_does_not_import_torch() -> None:
    code = """
import sys
from uturn.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert not {"torch", "numpy", "PIL", "matplotlib", "pyarrow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_has_help(name: str) -> None:
    command = commands()[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.name}"
    result = call(name, "--help")
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("attacks", ["fast", "basic", "least_likely", "odfa"]),
        ("victims", ["glyph_net", "osnet_x0_25", "osnet_x1_0"]),
        ("data", ["glyphs", "market1501"]),
        ("metrics", ["recall@k", "plain", "trapezoid"]),
    ],
)
def test_list(what: str, expected: list[str]) -> None:
    lines = call("list", what).output.splitlines()
    names = [line.split()[0] for line in lines]
    assert set(expected) <= set(names)
    assert all(len(line.split()) > 3 for line in lines)  # a name alone helps nobody


def test_attack_writes_pictures_within_budget(tmp_path: Path) -> None:
    query = load_data("glyphs").query
    for i in (0, 1):
        encode(tmp_path / f"in{i}.png", query.read(i))
    result = call(
        "attack",
        *(str(tmp_path / f"in{i}.png") for i in (0, 1)),
        *("--victim", "glyph_net", "--attack", "odfa", "--eps", "4", "--device", "cpu"),
        *("--out", str(tmp_path / "out")),
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("cosine to clean") == 2
    for i in (0, 1):
        clean = decode(tmp_path / "out" / "clean" / f"in{i}.png")
        assert np.array_equal(clean, query.read(i))
        change = decode(tmp_path / "out" / f"in{i}.png").astype(int) - clean
        assert 0 < np.abs(change).max() <= 4


def test_attack_at_native_size_and_towards_a_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a", (48, 20, 3)), ("b", (30, 30, 3))):
        encode(tmp_path / f"{name}.png", rng.integers(0, 256, size, dtype=np.uint8))
    encode(tmp_path / "goal.png", load_data("glyphs").query.read(900))
    base = ("attack", *(str(tmp_path / f"{name}.png") for name in "ab"))
    base = (*base, "--victim", "glyph_net", "--eps", "6", "--device", "cpu")
    result = call(*base, "--at", "native", "--out", str(tmp_path / "native"))
    assert result.exit_code == 0, result.output
    for name, size in (("a", (48, 20, 3)), ("b", (30, 30, 3))):
        changed = decode(tmp_path / "native" / f"{name}.png").astype(int)
        assert changed.shape == size
        assert 0 < np.abs(changed - decode(tmp_path / f"{name}.png")).max() <= 6
    tma, goal = ("--attack", "tma:steps=30"), ("--target", str(tmp_path / "goal.png"))
    result = call(*base, *tma, *goal, "--out", str(tmp_path / "tma"))
    assert result.exit_code == 0, result.output
    victim = load_victim("glyph_net")
    pictures = [tmp_path / "tma" / "clean" / "a.png", tmp_path / "tma" / "a.png", Path(goal[1])]
    clean, changed, wanted = victim.embed(to_pixels(victim.grid(map(decode, pictures))))
    assert float(changed @ wanted) > float(clean @ wanted) + 0.1
    result = call(*base, *tma, "--out", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "give it with --target" in result.output
    result = call(*base, "--attack", "qa_plus", "--out", str(tmp_path / "none"))
    assert "use it in `uturn sweep`" in result.output


def test_universal_learns_a_file_that_a_sweep_uses(tmp_path: Path) -> None:
    file = tmp_path / "u.safetensors"
    result = call(
        *("universal", "--victim", "glyph_net", "--data", "glyphs", "--eps", "8", "--quiet"),
        *("--pictures", "640", "--device", "cpu", "--out", str(file)),
    )
    assert result.exit_code == 0, result.output
    assert "640 pictures" in result.output
    result = call(
        *("sweep", "--victim", "glyph_net", "--data", "glyphs", "--eps", "8", "--quiet"),
        *("--attack", f"noise,universal:file={file}", "--queries", "20", "--device", "cpu"),
        *("--out", str(tmp_path / "run")),
    )
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    recall = {row["attack"].partition(":")[0]: row["recall@1"] for row in rows}
    assert recall["universal"] < 0.5 < 0.8 < recall["noise"]


def test_attack_never_overwrites_what_it_reads(tmp_path: Path) -> None:
    picture = _picture(tmp_path)
    before = picture.read_bytes()
    result = call(
        "attack", str(picture), "--victim", "glyph_net", "--eps", "4", "--out", str(tmp_path)
    )
    assert result.exit_code == 1
    assert "would be overwritten" in result.output
    assert picture.read_bytes() == before


def test_eval_scores_any_folder_of_queries(tmp_path: Path) -> None:
    base = ("eval", "--victim", "glyph_net", "--data", "glyphs", "--device", "cpu", "--quiet")
    query = load_data("glyphs").query
    for i in range(0, 60, 3):
        encode(tmp_path / f"{query.names[i]}.png", np.zeros_like(query.read(i)))
    result = call(*base, "--query-dir", str(tmp_path), "--json")
    blank = json.loads(result.stdout)
    assert blank["queries"] == 20
    assert blank["index"] == "exact:cosine"
    assert blank["recall@1"] < 0.2
    assert {"map (plain)", "map (trapezoid)", "no-match queries", "tied queries"} <= set(blank)
    text = call(*base, "--query-dir", str(tmp_path)).output
    assert f"recall@1                 {blank['recall@1']:.4f}" in text


def test_train_writes_weights_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training of two epochs on a sixteenth of the training identities."""
    import dataclasses

    from uturn.train import loop

    def small(spec: str):
        split = load_data(spec)
        part = np.arange(1200)
        return dataclasses.replace(
            split,
            train=split.train.subset(part),
            query=split.query.subset(part[:600]),
            gallery=split.gallery.subset(part[:600]),
        )

    monkeypatch.setattr(loop, "load_data", small)
    out = tmp_path / "net.safetensors"
    result = call(
        *("train", "--data", "glyphs", "--arch", "glyph_net", "--out", str(out)),
        *("--epochs", "2", "--augment", "shift,flip,recolour", "--device", "cpu", "--quiet"),
    )
    assert result.exit_code == 0, result.output
    assert "Recall@1" in result.output
    listed = call(
        *("attack", str(_picture(tmp_path)), "--victim", f"glyph_net:weights={out}"),
        *("--eps", "4", "--device", "cpu", "--out", str(tmp_path / "out")),
    )
    assert listed.exit_code == 0, listed.output


def _picture(folder: Path) -> Path:
    encode(folder / "p.png", load_data("glyphs").query.read(0))
    return folder / "p.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "nowhere"), "has no run.json"),
        (("attack", "a/x.png", "b/x.png", "--victim", "glyph_net", "--eps", "4", "--out", "o"),
         "two pictures would be written to x.png"),
        (("attack", "x.png", "--victim", "resnet", "--eps", "4", "--out", "o"),
         "known: cifar_resnet20"),
        (("sweep", "--victim", "glyph_net", "--data", "glyphs", "--eps", "a", "--out", "o"),
         "not a comma-separated list of numbers"),
        (("sweep", "--victim", "glyph_net", "--data", "glyphs", "--index", "hnsw", "--out", "o",
          "--queries", "1", "--quiet"), "known: exact"),
        (("eval", "--victim", "glyph_net", "--data", "market1501:/none"),
         "no folder /none to read Market-1501"),
        (("train", "--data", "glyphs", "--arch", "glyph_net", "--out", "net.pth"),
         "must end in .safetensors"),
        (("attack", "x.png", "--victim", "glyph_net", "--eps", "4", "--out", "o",
          "--batch-size", "0"), "is not in the range"),
        (("train", "--data", "glyphs", "--arch", "glyph_net", "--augment", "blur", "--out", "o"),
         "known: crop, erase, flip"),
        (("eval", "--victim", "glyph_net", "--data", "glyphs", "--device", "abacus"),
         "cannot be used here"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
