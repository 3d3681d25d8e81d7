"""Black-box transfer: who scores, ensembles of surrogates, and the table of who fools whom."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from tests.conftest import Tiny, normal
from uturn import load_data, load_victim
from uturn.attacks import load_attack
from uturn.cli import main
from uturn.data.folder import replace_queries
from uturn.data.pictures import encode
from uturn.errors import ArgumentError, RunFolderError, SpecError
from uturn.report import html, plates
from uturn.report.matrix import Matrix
from uturn.report.text import table
from uturn.retrieval.evaluate import evaluate
from uturn.specs import separated, split_list
from uturn.sweep import Plan, run
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim, to_pixels

OTHER = "tests.test_transfer:other"
"""A victim of another size, normalisation and similarity than the one that is attacked."""


def other(size: int = 24, seed: int = 1) -> Victim:
    """A network of random weights with a classifier, 24×24."""
    return Victim(
        name=f"other{seed}",
        network=Tiny(seed),
        preprocessing=Preprocessing(size=(size, size), interpolation="bicubic"),
        classifier=torch.nn.Linear(6, 9),
        similarity="euclidean",
        fingerprint=f"tiny {seed}",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen glyphs, five pictures each, as a folder: a gallery that is embedded in no time."""
    root, gallery = tmp_path_factory.mktemp("glyphs"), load_data("glyphs").gallery
    for identity in np.unique(gallery.identities)[:16]:
        for number in np.flatnonzero(gallery.identities == identity)[:5]:
            encode(root / f"g{identity}" / f"{number}.png", gallery.read(int(number)))
    return f"folder:{root}"


def plan(data: str, **changes: Any) -> Plan:
    given = {
        "victim": "glyph_net",
        "data": data,
        "attacks": ("fast", "odfa"),
        "eps": (8,),
        "queries": 12,
        "batch_size": 8,
        "seed": 3,
        "survive": ("jpeg75",),
        "transfer_to": (OTHER, "glyph_net:flip=yes"),
    }
    return Plan(**given | changes)


@pytest.fixture(scope="module")
def transferred(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("transfer") / "run"
    run(plan(data), out, progress=False)
    html.write(out)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in json.loads((out / "results.json").read_bytes())["rows"]
    ]


# -- who scores ------------------------------------------------------------------------------------


def test_the_attacked_victim_keeps_the_numbers_of_a_plain_sweep(
    data: str, transferred: Path, tmp_path: Path
) -> None:
    run(plan(data, transfer_to=()), tmp_path / "plain", progress=False)
    plain, both = rows(tmp_path / "plain"), rows(transferred)
    assert both[:3] == plain
    assert [(row["victim"], row["attack"]) for row in both[3:]] == [
        (name, attack)
        for name in (OTHER, "glyph_net:flip=yes")
        for attack in ("clean", "fast", "odfa")
    ]
    assert {row["crafted_on"] for row in both} == {"glyph_net"}
    queries = pq.read_table(transferred / "queries.parquet").to_pylist()
    assert queries[:36] == pq.read_table(tmp_path / "plain" / "queries.parquet").to_pylist()
    assert {q["victim"] for q in queries[36:]} == {OTHER, "glyph_net:flip=yes"}
    pictures = sorted(p.relative_to(transferred) for p in (transferred / "images").rglob("*.png"))
    assert len(pictures) == 36  # stored once, whoever scores
    for picture in pictures:
        assert (tmp_path / "plain" / picture).read_bytes() == (transferred / picture).read_bytes()
    # The rank lists that are shown are those of the attacked victim.
    lists = "ranklists.json"
    assert (transferred / lists).read_bytes() == (tmp_path / "plain" / lists).read_bytes()


@pytest.mark.parametrize("target", [OTHER, "glyph_net:flip=yes"])
def test_a_target_says_of_the_pictures_what_eval_says_of_them(
    data: str, transferred: Path, target: str
) -> None:
    """Its own resizing, features, similarity and threshold: `uturn eval --query-dir` agrees."""
    split, victim = load_data(data).sample(12, 3), load_victim(target)
    _, _, odfa = (row for row in rows(transferred) if row["victim"] == target)
    changed = replace_queries(split.query, transferred / "images" / "odfa" / "eps8")
    alone = evaluate(victim, replace(split, query=changed), clean=split.query, progress=False)
    assert odfa["recall@1"] == pytest.approx(alone["recall@1"])
    assert odfa["map"] == pytest.approx(alone["map (plain)"], abs=1e-6)
    assert odfa["metrics"]["tpr@fpr=0.001"] == pytest.approx(alone["tpr@fpr=0.001"])
    assert odfa["index"] == f"exact:{victim.similarity}"
    header = json.loads((transferred / "run.json").read_bytes())
    assert header["configuration"]["targets"][target]["similarity"] == victim.similarity
    assert header["targets"][target]["dimensions"] == victim.features(torch.rand(1, 3, 9, 9)).size(
        1
    )


def test_the_worst_is_chosen_by_the_attacked_and_only_looked_at_by_others(
    data: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    found = run(
        plan(data, attacks=("worst",), eps=(2,), queries=4, transfer_to=(OTHER,)),
        out,
        progress=False,
    )
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    theirs = [q for q in queries if q["victim"] == OTHER]
    worst = {q["query"]: q for q in theirs if q["attack"] == "worst"}
    for name, query in worst.items():
        picture = (out / "images" / "worst" / "eps2" / f"{name}.png").read_bytes()
        same = [
            q
            for q in theirs
            if q["attack"] not in ("worst", "clean")
            and q["query"] == name
            and next(
                (out / "images").glob(f"{q['attack'].replace(':', '_')}*/eps2/{name}.png")
            ).read_bytes()
            == picture
        ]
        assert same
        assert query["ap"] == pytest.approx(same[0]["ap"])
    assert len(found) == 2 * 8


def test_impossible_transfers_fail_before_any_work(data: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="every victim scores once"):
        plan(data, transfer_to=("glyph_net",))
    with pytest.raises(ArgumentError, match="every victim scores once"):
        plan(data, transfer_to=(OTHER, OTHER))
    with pytest.raises(SpecError, match="unknown victim 'nobody'"):
        run(plan(data, transfer_to=("nobody",)), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_another_target_is_another_configuration(data: str, transferred: Path) -> None:
    with pytest.raises(RunFolderError, match="transfer_to"):
        run(plan(data, transfer_to=(OTHER,)), transferred, progress=False)


def test_the_table_and_the_page_tell_the_victims_apart(transferred: Path) -> None:
    text = table(rows(transferred))
    blocks = text.split("\n\n")
    assert len(blocks) == 3
    assert blocks[0].startswith("scored by glyph_net, attacked itself\n")
    assert blocks[1].startswith(f"scored by {OTHER}, pictures crafted on glyph_net\n")
    page = (transferred / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>Transfer to <code>") == 2
    assert page.count('<table class="results">') == 3
    assert "crafted on <code>glyph_net</code>" in page


def test_a_killed_transfer_goes_on_to_the_same_numbers(
    data: str, transferred: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "uturn", "sweep", "--victim", "glyph_net", "--data", data]
    command += ["--attack", "fast,odfa", "--eps", "8", "--queries", "12", "--batch-size", "8"]
    command += ["--seed", "3", "--survive", "jpeg75", "--device", "cpu", "--quiet"]
    command += ["--transfer-to", f"{OTHER},glyph_net:flip=yes", "--out", str(out)]
    for after in (1, 3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while len([p for p in (out / "parts").rglob("*.json") if p.name[0] != "."]) < after:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    assert rows(out) == rows(transferred)
    stored = [pq.read_table(run / "queries.parquet").to_pylist() for run in (out, transferred)]
    assert stored[0] == stored[1]


def test_the_command_takes_specs_with_commas() -> None:
    text = f"{OTHER},size=16,glyph_net:flip=yes,power=2,ensemble:[glyph_net:flip=yes,power=2]+x"
    assert split_list(text) == [
        f"{OTHER},size=16",
        "glyph_net:flip=yes,power=2",
        "ensemble:[glyph_net:flip=yes,power=2]+x",
    ]
    assert split_list("[osnet:weights=/a,b.pth],glyph_net") == [
        "osnet:weights=/a,b.pth",
        "glyph_net",
    ]
    assert split_list("a:weights=/x]y,b") == ["a:weights=/x]y", "b"]
    assert separated("a+[b+c]+d", "+") == ["a", "[b+c]", "d"]
    assert "--transfer-to" in {o for p in main.commands["sweep"].params for o in p.opts}  # type: ignore[attr-defined]


# -- ensembles -------------------------------------------------------------------------------------


def test_an_ensemble_puts_its_members_unit_features_side_by_side() -> None:
    ensemble = load_victim(f"ensemble:[glyph_net:flip=yes]+{OTHER}")
    members = [load_victim("glyph_net:flip=yes"), other()]
    pixels = to_pixels(torch.randint(0, 256, (3, 3, 32, 32)).byte())
    expected = torch.cat([member.embed(pixels) for member in members], 1)
    torch.testing.assert_close(ensemble.features(pixels), expected, rtol=0, atol=1e-6)
    assert ensemble.preprocessing.size == members[0].preprocessing.size
    # On another size, the first member's grid comes first, then every member's own.
    wide = torch.rand(2, 3, 40, 50)
    seen = members[0].preprocessing.resize(wide)
    torch.testing.assert_close(
        ensemble.features(wide), torch.cat([m.embed(seen) for m in members], 1), rtol=0, atol=1e-6
    )


def test_an_ensembles_gradient_is_that_of_all_members() -> None:
    ensemble = load_victim(f"ensemble:glyph_net+{OTHER}")
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    weights = normal(2, 134)
    (own,) = torch.autograd.grad((ensemble.features(pixels) * weights).sum(), pixels)
    parts = weights.split([128, 6], 1)
    summed = sum(
        torch.autograd.grad((member.embed(pixels) * part).sum(), pixels)[0]
        for member, part in zip((load_victim("glyph_net"), other()), parts, strict=True)
    )
    torch.testing.assert_close(own, summed, rtol=1e-4, atol=1e-6)


def test_ensembles_differ_by_what_is_in_them() -> None:
    specs = (
        "glyph_net+tests.test_transfer:other",
        "[glyph_net:flip=yes]+tests.test_transfer:other",
    )
    marks = {load_victim(f"ensemble:{spec}").fingerprint for spec in specs}
    marks.add(load_victim("ensemble:glyph_net+[tests.test_transfer:other,seed=2]").fingerprint)
    assert len(marks) == 3
    with pytest.raises(SpecError, match="at least two members"):
        load_victim("ensemble:glyph_net")
    with pytest.raises(ArgumentError, match="no classifier"):
        load_victim(f"ensemble:glyph_net+{OTHER}").logits(torch.rand(1, 3, 32, 32))


def test_an_ensemble_is_attacked_on_the_first_members_grid() -> None:
    members = ("glyph_net", "glyph_net:size=24x24,interpolation=bicubic")
    ensemble = load_victim(f"ensemble:{members[0]}+[{members[1]}]")
    query = load_data("glyphs").query
    images = ensemble.grid(query.read(i) for i in range(3))
    assert images.shape[2:] == (32, 32)
    found = load_attack("odfa:steps=20", eps=8)(ensemble, images, names=query.names[:3]).images
    for member in map(load_victim, members):
        cosine = (member.embed(to_pixels(images)) * member.embed(to_pixels(found))).sum(1)
        assert float(cosine.max()) < 0.5


# -- the matrix ------------------------------------------------------------------------------------


def finished_run(out: Path, surrogate: str, scores: dict[str, tuple[float, float]]) -> Path:
    """The result file of a run in which each target has a clean and an attacked recall@1."""
    out.mkdir()
    found = [
        {"victim": t, "crafted_on": surrogate, "attack": a, "eps": e, "recall@1": v, "metrics": {}}
        for t, values in scores.items()
        for a, e, v in zip(("clean", "odfa"), (0, 8), values, strict=True)
    ]
    (out / "results.json").write_text(json.dumps({"schema": 1, "rows": found}))
    return out


def test_a_matrix_holds_every_pair_and_says_what_is_missing(tmp_path: Path) -> None:
    a = finished_run(tmp_path / "a", "A", {"A": (0.9, 0.01), "B": (0.8, 0.4), "C": (0.7, 0.6)})
    b = finished_run(tmp_path / "b", "B", {"B": (0.85, 0.02), "A": (0.88, 0.5)})
    matrix = Matrix.of([a, b], "odfa", 8, titles={"A": "ours"})
    assert (matrix.surrogates, matrix.targets) == (("ours", "B"), ("ours", "B", "C"))
    assert matrix.attacked[:, :2].tolist() == [[0.01, 0.4], [0.5, 0.02]]
    assert matrix.clean[1, :2].tolist() == [0.88, 0.85]
    assert str(matrix.attacked[1, 2]) == "nan"
    assert "| B | 0.5000 (0.8800) | 0.0200 (0.8500) | – |" in matrix.markdown()
    head, *lines = matrix.text().splitlines()
    assert head == "odfa at ε = 8: R@1 (clean)"
    assert len({len(line) for line in lines}) == 1


def test_a_matrix_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    a = finished_run(tmp_path / "a", "A", {"A": (0.9, 0.01)})
    for runs, attack, metric, error, message in (
        ([a], "fast", "recall@1", RunFolderError, "no fast at ε=8; it has odfa ε=8"),
        ([a], "odfa", "top1", RunFolderError, "A in .* has no top1"),
        ([a, a], "odfa", "recall@1", ArgumentError, "both hold A → A"),
        ([tmp_path], "odfa", "recall@1", RunFolderError, "cannot read the results"),
        ([], "odfa", "recall@1", ArgumentError, "at least one run"),
    ):
        with pytest.raises(error, match=message):
            Matrix.of(runs, attack, 8, metric)


def test_a_white_box_is_who_crafted_it_whatever_the_titles(tmp_path: Path) -> None:
    a = finished_run(tmp_path / "a", "A", {"A": (0.9, 0.01), "B": (0.8, 0.4), "C": (0.7, 0.6)})
    b = finished_run(tmp_path / "b", "B", {"B": (0.85, 0.02), "A": (0.88, 0.5)})
    matrix = Matrix.of([a, b], "odfa", 8, titles={"A": "net", "B": "net"})
    assert matrix.surrogates == ("net", "net")
    assert matrix.white.tolist() == [[True, False, False], [False, True, False]]


def test_numbers_in_cells_contrast_with_their_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4.5 : 1 or more, by an independent count of WCAG's contrast."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plates, "save", lambda figure, *_: drawn.append(figure) or [])
    left = [n / 24 for n in range(25)]
    run = finished_run(tmp_path / "a", "A", {f"{n}": (1.0, v) for n, v in enumerate(left)})
    Matrix.of([run], "odfa", 8).draw(tmp_path / "matrix")

    def luminance(colour: Any) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    numbers = [t for t in drawn[0].axes[0].texts if not t.get_text().startswith("clean")]
    assert len(numbers) == len(left)
    for value, text in zip(left, numbers, strict=True):
        own = sorted([luminance(colormaps["cividis"](value)), luminance(to_rgb(text.get_color()))])
        assert (own[1] + 0.05) / (own[0] + 0.05) >= 4.5


def test_the_heat_map_is_a_vector_picture_that_repeats(transferred: Path, tmp_path: Path) -> None:
    matrix = Matrix.of([transferred], "odfa", 8)
    files = matrix.draw(tmp_path / "one")
    assert [file.suffix for file in files] == [".svg", ".png"]
    again = matrix.draw(tmp_path / "two")
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
    assert matrix.attacked.shape == (1, 3)
