"""Figures for print, from a real run folder of small pictures: what they show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from uturn.errors import ArgumentError, RunFolderError
from uturn.report import figures, paper, plates, text
from uturn.report.paper import Curves
from uturn.sweep import Plan, run

ATTACKS = ("fast", "odfa:scales=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of glyph_net on four identities of random colours."""
    data, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in (("query", 1), ("gallery", 2)):
        for identity in range(4):
            colour = np.array([60 + 40 * identity, 200 - 40 * identity, 128])
            for n in range(count):
                picture = np.clip(colour + rng.normal(0, 25, (32, 24, 3)), 0, 255).astype(np.uint8)
                (data / part / str(identity)).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(data / part / str(identity) / f"{n}.png")
    out = tmp_path_factory.mktemp("run") / "run"
    plan = Plan(victim="glyph_net", data=f"folder:{data}", attacks=ATTACKS, eps=(4, 8))
    run(plan, out, progress=False)
    return out


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    kept: list[Figure] = []
    save = plates.save

    def spy(figure: Figure, *rest: Any, **more: Any) -> list[Path]:
        kept.append(figure)
        return save(figure, *rest, **more)

    monkeypatch.setattr(plates, "save", spy)
    return kept


def changed(folder: Path, out: Path, name: str, change: Any) -> Path:
    """A copy of the run in which ``change`` was done to the content of a file."""
    shutil.copytree(folder, out)
    content = json.loads((out / name).read_bytes())
    change(content)
    (out / name).write_text(json.dumps(content))
    return out


# -- curves --------------------------------------------------------------------------------------


def test_curves_hold_the_rows_and_their_intervals(
    folder: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    paper.curves([Curves("A", folder), Curves("B", folder, ("map",))], tmp_path / "curves")
    (figure,) = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        *("A, R@1", "A, R@10", "A, mAP"),
        "B, mAP",
    ]
    rows = json.loads((folder / "results.json").read_bytes())["rows"]
    for axes, metric in zip(figure.axes, ("recall@1", "recall@10", "map", "map"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert lines["clean"].get_ydata()[0] == rows[0][metric]
        for band, attack in zip(axes.collections, ATTACKS, strict=True):
            own = [rows[0], *(row for row in rows if row["attack"] == attack)]
            assert list(lines[attack].get_xdata()) == [0, 4, 8]
            assert list(lines[attack].get_ydata()) == [row[metric] for row in own]
            corners = band.get_paths()[0].vertices[:, 1]
            for row in own[1:]:
                assert set(row["ci95"][metric]) <= set(corners)


def test_attacks_are_told_apart_without_colour(
    folder: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    paper.curves([Curves("A", folder)], tmp_path / "curves")
    lines = [line for line in drawn[0].axes[0].lines if line.get_label() in ATTACKS]
    assert len({line.get_marker() for line in lines}) == len(lines)
    assert len({line.get_linestyle() for line in lines}) == len(lines)
    assert [line.get_color() for line in lines] == list(figures.COLOURS[: len(lines)])


def test_no_two_attacks_look_alike() -> None:
    looks = [plates.line_of(position) for position in range(24)]
    assert len(set(looks)) == len(looks)
    assert len({look[1:] for look in looks[:16]}) == 16  # in grey, too
    assert len({to_rgb(colour) for colour in plates.CLASSES}) == 10
    assert len(set(plates.CLASS_MARKERS)) == 10


def test_rows_of_other_victims_are_no_part_of_a_curve(
    folder: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    def transferred(content: dict[str, Any]) -> None:
        target = [{**row, "victim": "other", "recall@1": 0.123} for row in content["rows"]]
        for row in (*content["rows"], *target):
            row["crafted_on"] = "glyph_net"
        content["rows"] += target

    out = changed(folder, tmp_path / "run", "results.json", transferred)
    paper.curves([Curves("A", out)], tmp_path / "curves")
    assert all(0.123 not in line.get_ydata() for line in drawn[0].axes[0].lines)


def test_top1_is_found_among_the_metrics(folder: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    def classified(content: dict[str, Any]) -> None:
        for row in content["rows"]:
            row["metrics"]["top1"], row["ci95"]["top1"] = 0.25, [0.2, 0.4]

    out = changed(folder, tmp_path / "run", "results.json", classified)
    paper.curves([Curves("C", out, ("top1",))], tmp_path / "curves")
    (axes,) = drawn[0].axes
    assert axes.get_title(loc="left") == "C, top-1"
    assert set(axes.lines[-1].get_ydata()) == {0.25}


def test_errors_name_the_run_and_the_way_out(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no top1 .* scored by recall@1"):
        paper.curves([Curves("A", folder, ("top1",))], tmp_path / "curves")
    with pytest.raises(RunFolderError, match="no finished run folder"):
        paper.curves([Curves("A", tmp_path)], tmp_path / "curves")
    with pytest.raises(ArgumentError, match="at least one run folder"):
        paper.curves([], tmp_path / "curves")
    with pytest.raises(RunFolderError, match=r"rank list of basic .* it keeps fast at 4"):
        paper.rank_list(folder, tmp_path / "ranks", attack="basic", eps=4)
    with pytest.raises(RunFolderError, match="it keeps 4"):
        paper.rank_list(folder, tmp_path / "ranks", attack="fast", eps=4, query=4)
    with pytest.raises(RunFolderError, match="it has 4, 8"):
        paper.perturbation(folder, tmp_path / "change", attack="fast", eps=(16,))


# -- pictures ------------------------------------------------------------------------------------


def test_a_rank_list_says_right_and_wrong_in_three_ways(
    folder: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    def another(content: dict[str, Any]) -> None:  # who scored the same pictures, other answers
        told = content["queries"]
        told += [{**e, "victim": "another", "items": e["items"][::-1]} for e in told]

    run = changed(folder, tmp_path / "run", "ranklists.json", another)
    paper.rank_list(run, tmp_path / "ranks", attack="fast", eps=8, query=1, top=5)
    listed = json.loads((folder / "ranklists.json").read_bytes())["queries"]
    name = list(dict.fromkeys(entry["query"] for entry in listed))[1]
    lists = {(e["attack"], e["eps"]): e["items"][:5] for e in listed if e["query"] == name}
    items = [*lists["clean", 0], *lists["fast", 8]]
    panels = drawn[0].axes
    answers = [*panels[1:6], *panels[7:]]
    assert panels[6].get_ylabel() == "fast\nε = 8"
    assert {item["relevant"] for item in items} == {True, False}
    looks = set()
    for axes, item in zip(answers, items, strict=True):
        with Image.open(folder / "thumbnails" / f"{item['name']}.png") as picture:
            assert np.array_equal(axes.images[0].get_array(), np.array(picture.convert("RGB")))
        spine = axes.spines["left"]
        look = (axes.get_xlabel(), to_rgb(spine.get_edgecolor()), str(spine.get_linestyle()))
        looks.add((item["relevant"], look))
        assert axes.get_xlabel() == ("✓" if item["relevant"] else "✗")
    (right, wrong) = (look for _, look in sorted(looks, reverse=True))
    assert all(one != other for one, other in zip(right, wrong, strict=True))


def test_a_perturbation_is_amplified_around_grey(
    folder: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    paper.perturbation(folder, tmp_path / "change", attack="odfa:scales=1")
    name = json.loads((folder / "ranklists.json").read_bytes())["queries"][0]["query"]

    def picture(place: str) -> np.ndarray[Any, Any]:
        with Image.open(folder / "images" / place / f"{name}.png") as found:
            return np.array(found.convert("RGB")).astype(int)

    panels = drawn[0].axes
    clean = picture("clean")
    assert np.array_equal(panels[0].images[0].get_array(), clean)
    for number, eps in enumerate((4, 8)):
        attacked = picture(f"odfa_scales=1/eps{eps}")
        assert np.array_equal(panels[1 + 2 * number].images[0].get_array(), attacked)
        shown = panels[2 + 2 * number].images[0].get_array().astype(int)
        change = attacked - clean
        assert (shown[change == eps] == 255).all()
        assert (shown[change == -eps] == 0).all()
        assert np.abs(shown - 127.5 * (1 + change / eps)).max() <= 1


def test_pictures_outside_the_run_are_not_read(folder: Path, tmp_path: Path) -> None:
    def astray(content: dict[str, Any]) -> None:
        for entry in content["queries"]:
            entry["items"][0]["name"] = "../../outside"

    out = changed(folder, tmp_path / "run", "ranklists.json", astray)
    shutil.copy(next((folder / "thumbnails").rglob("*.png")), tmp_path / "outside.png")
    with pytest.raises(RunFolderError, match="lies outside"):
        paper.rank_list(out, tmp_path / "ranks", attack="fast", eps=4)


# -- print ---------------------------------------------------------------------------------------


def test_files_repeat_and_are_sized_for_print(folder: Path, tmp_path: Path) -> None:
    for where in ("a", "b"):
        paper.curves([Curves("A", folder)], tmp_path / where / "curves")
        paper.rank_list(folder, tmp_path / where / "ranks", attack="fast", eps=4, top=3)
        paper.perturbation(folder, tmp_path / where / "change", attack="fast")
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == [
        *("change.png", "change.svg", "curves.pdf", "curves.png", "curves.svg"),
        *("ranks.png", "ranks.svg"),
    ]
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file
        if file.suffix == ".png":
            with Image.open(file) as picture:
                dots = picture.info["dpi"][0]
                assert dots >= (250 if file.stem == "curves" else 149)
                assert picture.width / dots <= plates.TEXT + 0.01
        else:
            assert not any(word in file.read_bytes() for word in (b"<dc:date>", b"CreationDate"))


def test_no_text_is_small_whatever_the_readers_style(
    folder: Path, tmp_path: Path, drawn: list[Figure]
) -> None:
    with matplotlib.rc_context({"font.size": 3, "xtick.labelsize": 3}):
        paper.curves([Curves("A", folder)], tmp_path / "curves")
        paper.rank_list(folder, tmp_path / "ranks", attack="fast", eps=4, top=3)
        paper.perturbation(folder, tmp_path / "change", attack="fast")
        assert matplotlib.rcParams["font.size"] == 3
    for figure in drawn:
        texts = [each for each in figure.findobj(matplotlib.text.Text) if each.get_text()]
        assert texts
        assert min(each.get_fontsize() for each in texts) >= 7


# -- tables --------------------------------------------------------------------------------------


def test_a_metric_is_found_where_it_stands() -> None:
    row = {"recall@1": 1, "metrics": {"top1": 0.5, "top5": None}, "ci95": {"recall@1": [0.9, 1]}}
    found = [text.value(row, metric) for metric in ("recall@1", "top1", "top5", "map")]
    assert found == [1.0, 0.5, None, None]
    assert text.interval(row, "recall@1") == (0.9, 1.0)
    assert text.interval(row, "top1") is text.interval({}, "map") is None
    assert [text.shown(metric) for metric in ("recall@1", "top1", "ndcg")] == [
        *("R@1", "top-1", "ndcg"),
    ]


def test_cells_of_tables_keep_their_bars() -> None:
    assert text.markdown(["a", "b"], [["x|y", "1"]], numbers=True).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 |",
    ]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text.aligned([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "───  ──", "ccc   d"]
