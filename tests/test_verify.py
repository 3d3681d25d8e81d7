"""A finished run verified: an untouched one passes, and whatever is changed in it is found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from tests.test_craft import a_classifier, data  # noqa: F401  (the fixture)
from uturn.cli import main
from uturn.data.pictures import decode, encode
from uturn.errors import RunFolderError, UturnError
from uturn.report import html
from uturn.sweep import Plan, run, scorer
from uturn.sweep.engines import load_engine
from uturn.sweep.store import TABLES, digest, seal
from uturn.verify import Verification, verify
from uturn.verify import again as scoring
from uturn.victims.victim import Victim

Rng = np.random.Generator
SEED = 9


def another() -> Victim:
    """Who scores the pictures, too: `a_classifier` with its weights turned round."""
    victim = a_classifier()
    with torch.no_grad():
        for weights in victim.network.parameters():
            weights.copy_(weights.flip(0))
    return dataclasses.replace(victim, name="another")


@pytest.fixture(scope="module")
def plan(data: str) -> Plan:  # noqa: F811
    return Plan(
        victim="tests.test_craft:a_classifier",
        data=data,
        attacks=("odfa", "tma:steps=2"),
        eps=(2, 4),
        batch_size=5,
        seed=3,
        survive=("jpeg75",),
        transfer_to=("tests.test_verify:another",),
    )


@pytest.fixture(scope="module")
def finished(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "run"
    run(plan, out, progress=False)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy to be tampered with."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def held(out: Path, **options: Any) -> Verification:
    """What `verify` says of a run of ours, whose victims are code."""
    return verify(out, device="cpu", trust=True, progress=False, **options)


def found(out: Path, **options: Any) -> list[str]:
    """What is wrong with a run, a sentence each."""
    try:
        return [str(finding) for finding in held(out, **options).findings]
    except UturnError as error:
        return [str(error)]


# -- what passes -----------------------------------------------------------------------------------


def test_an_untouched_run_passes_with_its_report(out: Path) -> None:
    html.write(out)
    verified = held(out)
    assert not verified.findings
    assert verified.seal == json.loads((out / "run.json").read_bytes())["seal"]
    assert [text.partition(":")[0] for text in verified.unchecked] == [
        "report.html",
        "card.html",
        "card.md",
    ]
    certified = next(text for text in verified.checked if "as far from their clean" in text)
    assert certified.startswith(f"{12 * 5} pictures")
    again = "10 rows of the table: every query scored again from its picture, as by the machine of "
    assert f"{again}the run" in verified.checked


@pytest.mark.parametrize(
    "changes",
    [
        {"attacks": ("odfa", "worst"), "eps": (3,)},
        {"attacks": ("odfa", "minimal"), "monotone": True, "eps": (2, 4, 8)},
        {"attacks": ("qa_minus:steps=2", "square:max_queries=20"), "eps": (4,), "queries": 7},
        {"attacks": ("odfa",), "eps": (4,), "at": "native", "convention": "trapezoid"},
        {"attacks": ("odfa",), "eps": (4,), "mode": "paper", "transfer_to": ()},
        {"attacks": ("odfa",), "eps": (4,), "index": "exact:euclidean"},
        {"attacks": ("odfa",), "eps": (4,), "index": "faiss:Flat", "transfer_to": ()},
    ],
    ids=lambda changes: "-".join(changes["attacks"]) + str(len(changes)),
)
def test_runs_of_all_kinds_pass(plan: Plan, tmp_path: Path, changes: dict[str, Any]) -> None:
    if "faiss" in changes.get("index", ""):
        pytest.importorskip("faiss", reason="FAISS is not installed; pip install 'uturn[faiss]'")
    run(dataclasses.replace(plan, **changes), tmp_path / "run", progress=False)
    verified = held(tmp_path / "run")
    assert not verified.findings
    assert not verified.unchecked


@pytest.mark.slow
def test_a_run_of_several_workers_passes(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    run(plan, tmp_path / "run", engine=load_engine("ray:local,workers=2,threads=1"), progress=False)
    verified = held(tmp_path / "run")
    assert not verified.findings
    assert not verified.unchecked


# -- what is found ---------------------------------------------------------------------------------


def pictures(out: Path) -> list[Path]:
    return sorted((out / "images").rglob("*.png"))


def drawn(rng: Rng, items: list[Any]) -> Any:
    return items[rng.integers(len(items))]


def a_pixel(out: Path, rng: Rng) -> Path:
    file = drawn(rng, pictures(out))
    picture = decode(file)
    place = tuple(rng.integers(side) for side in picture.shape)
    picture[place] ^= 1  # to the next level
    encode(file, picture)
    return file


def a_swap(out: Path, rng: Rng) -> Path:
    file = drawn(rng, pictures(out))
    other = drawn(rng, [p for p in pictures(out) if p.read_bytes() != file.read_bytes()])
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return file


def an_attack_for_the_clean(out: Path, rng: Rng) -> Path:
    """The clean picture in the place of an attacked one: the victim looks robust."""
    file = drawn(rng, sorted((out / "images" / "odfa").rglob("*.png")))
    name = file.relative_to(out / "images" / "odfa").parts[1:]
    shutil.copy((out / "images" / "clean").joinpath(*name), file)
    return file


def another_coding(out: Path, rng: Rng) -> Path:
    file = drawn(rng, pictures(out))
    Image.fromarray(decode(file)).save(file, "PNG", compress_level=9, optimize=True)
    return file


def a_cut(out: Path, rng: Rng) -> Path:
    file = drawn(rng, [*pictures(out), *(out / name for name in (*TABLES, "run.json"))])
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])
    return file


def a_loss(out: Path, rng: Rng) -> Path:
    file = drawn(rng, [*pictures(out), *(out / name for name in TABLES)])
    file.unlink()
    return file


def an_addition(out: Path, rng: Rng) -> Path:
    file = drawn(rng, pictures(out))
    added = file.with_name(f"{rng.integers(100)}.{drawn(rng, ['png', 'jpg', 'txt'])}")
    shutil.copy(file, added)
    return added


def a_thumbnail(out: Path, rng: Rng) -> Path:
    file = drawn(rng, sorted((out / "thumbnails").rglob("*.png")))
    encode(file, 255 - decode(file))
    return file


def leaves(value: Any, *path: Any) -> list[tuple[Any, ...]]:
    """Where the numbers and texts of JSON stand."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], *path, key)]
    if isinstance(value, list):
        return [leaf for n, each in enumerate(value) for leaf in leaves(each, *path, n)]
    return [path]


def edited(rng: Rng, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + drawn(rng, [1, -1, 0.01, -0.01])
    return f"{value}x" if isinstance(value, str) else 0.5


def a_value(name: str) -> Callable[[Path, Rng], Path]:
    def edit(out: Path, rng: Rng) -> Path:
        content = json.loads((out / name).read_bytes())
        *way, last = drawn(rng, leaves(content))
        place = content
        for step in way:
            place = place[step]
        place[last] = edited(rng, place[last])
        (out / name).write_text(json.dumps(content, indent=1) + "\n")
        return out / name

    return edit


def a_cell(out: Path, rng: Rng) -> Path:
    file = out / "queries.parquet"
    rows = pq.read_table(file).to_pylist()
    row = drawn(rng, rows)
    key = drawn(rng, [key for key in row if row[key] is not None])
    row[key] = type(row[key])(edited(rng, row[key])) if key != "tied" else not row[key]
    if key in ("identity", "camera", "matches", "asked"):
        row[key] = int(rng.integers(90, 99))
    write_rows(file, rows)
    return file


def a_row(out: Path, rng: Rng) -> Path:
    file = out / "queries.parquet"
    rows = pq.read_table(file).to_pylist()
    position = int(rng.integers(len(rows) - 1))
    if rng.integers(2):
        del rows[position]
    else:
        rows[position], rows[position + 1] = rows[position + 1], rows[position]
    write_rows(file, rows)
    return file


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), file)


TAMPERINGS: dict[str, Callable[[Path, Rng], Path]] = {
    "a changed pixel": a_pixel,
    "two pictures swapped": a_swap,
    "the clean picture for an attacked one": an_attack_for_the_clean,
    "a picture coded anew": another_coding,
    "a cut file": a_cut,
    "a removed file": a_loss,
    "an added file": an_addition,
    "a changed thumbnail": a_thumbnail,
    "a value of results.json": a_value("results.json"),
    "a value of run.json": a_value("run.json"),
    "a value of ranklists.json": a_value("ranklists.json"),
    "a cell of queries.parquet": a_cell,
    "a row of queries.parquet": a_row,
}


def test_fifty_random_tamperings_are_found_and_the_file_is_named(
    finished: Path, tmp_path: Path
) -> None:
    rng, missed = np.random.default_rng(SEED), list[str]()
    names = [*TAMPERINGS, *rng.choice(list(TAMPERINGS), 50 - len(TAMPERINGS))]
    for number, name in enumerate(names):
        out = tmp_path / str(number)
        shutil.copytree(finished, out)
        file = TAMPERINGS[name](out, rng)
        where = file.relative_to(out).as_posix()
        if not any(where in says for says in found(out, files_only=True)):
            missed.append(f"{name}: {where}")
        shutil.rmtree(out)
    assert len(names) == 50
    assert not missed


def mend(out: Path) -> None:
    """What a careful forger does: all hashes are those of the files as they are now."""
    rows = pq.read_table(out / "queries.parquet").to_pylist()
    folders = {
        (row["attack"], row["eps"]): row["folder"]
        for row in json.loads((out / "ranklists.json").read_bytes())["queries"]
    }
    for row in rows:
        if row["sha256"] is not None:
            folder = folders[row["attack"], row["eps"]]
            row["sha256"] = digest(out / "images" / folder / f"{row['query']}.png")
    write_rows(out / "queries.parquet", rows)
    header = json.loads((out / "run.json").read_bytes())
    header["files"] = {name: digest(out / name) for name in header["files"]}
    header["seal"] = seal(header)
    (out / "run.json").write_text(json.dumps(header))


def test_who_mends_the_hashes_is_found_by_distances_and_scores(
    finished: Path, tmp_path: Path
) -> None:
    """Pictures, thumbnails and what is measured: their truth is not in the hashes."""
    rng, missed = np.random.default_rng(SEED + 1), list[str]()
    deep = (
        "a changed pixel",
        "two pictures swapped",
        "the clean picture for an attacked one",
        "a changed thumbnail",
    )
    for number, name in enumerate(4 * deep):
        out = tmp_path / f"{number}"
        shutil.copytree(finished, out)
        file = TAMPERINGS[name](out, rng)
        mend(out)
        if not found(out):
            missed.append(f"{name}: {file}")
    for column, change in (
        ("first_match_rank", 1),
        ("ap", -0.01),
        ("cosine_to_clean", 0.01),
        ("inp", -0.01),
        ("tpr", 0.05),
        ("ap|jpeg75", 0.02),
        ("goal_rank", 2),
        ("l2", 1e-6),
        ("linf_levels", 1),
    ):
        out = tmp_path / column
        shutil.copytree(finished, out)
        rows = pq.read_table(out / "queries.parquet").to_pylist()
        row = drawn(rng, [row for row in rows if row[column] is not None])
        row[column] += change
        write_rows(out / "queries.parquet", rows)
        mend(out)
        if not any(f", {column}: says" in says or "levels" in says for says in found(out)):
            missed.append(column)
    assert not missed


def test_an_empty_seal_and_a_missing_one_are_found(out: Path) -> None:
    header = json.loads((out / "run.json").read_bytes())
    del header["seal"]
    (out / "run.json").write_text(json.dumps(header))
    assert found(out) == ["run.json: has no seal: it was changed, or the run is older than seals"]


def test_files_named_outside_the_run_are_not_looked_at(out: Path) -> None:
    header = json.loads((out / "run.json").read_bytes())
    header["files"]["../secret"] = "0" * 64
    header["seal"] = seal(header)
    (out / "run.json").write_text(json.dumps(header))
    assert "run.json: lists a file outside the run: ../secret" in found(out)


@pytest.mark.parametrize("content", ["[]", '{"finished": "now"}', '{"seal": 1, "files": {"a": 1}}'])
def test_what_is_no_run_at_all_is_told(out: Path, content: str) -> None:
    (out / "run.json").write_text(content)
    assert found(out)


def test_an_unfinished_run_is_no_matter_for_verification(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"finished": null}')
    with pytest.raises(RunFolderError, match="has not finished; repeat its command"):
        held(tmp_path)


def test_the_command_names_what_it_finds_and_exits_with_1(out: Path) -> None:
    line = ["verify", str(out), "--quiet", "--device", "cpu", "--trust"]
    passed = CliRunner().invoke(main, line)
    assert passed.exit_code == 0
    assert passed.output.splitlines()[-1] == "nothing is wrong"
    file = a_pixel(out, np.random.default_rng(0)).relative_to(out)
    failed = CliRunner().invoke(main, [*line, "--json"])
    assert failed.exit_code == 1
    told = json.loads(failed.output)
    assert str(file) in {finding["where"] for finding in told["findings"]}


# -- other machines, and what is gone --------------------------------------------------------------


def test_what_cannot_be_checked_without_the_data_is_told(
    plan: Plan, out: Path, tmp_path: Path
) -> None:
    folder = Path(plan.data.partition(":")[2])
    elsewhere = tmp_path / "moved" / folder.name
    shutil.copytree(folder, elsewhere)
    gone = f"folder:{tmp_path / 'gone'}"
    verified = held(out, data=gone)
    assert not verified.findings
    (told,) = verified.unchecked
    assert told.startswith("scores, and clean pictures beside those of the data set: ")
    assert "gone" in told
    a_pixel(out, np.random.default_rng(0))
    assert found(out, data=gone)
    assert held(out, data=f"folder:{elsewhere}").unchecked == ()


def test_another_victim_is_not_held_against_the_run(out: Path) -> None:
    (told,) = held(out, victim="tests.test_verify:a_stranger").unchecked
    assert "the run was made with victim weights" in told


def a_stranger() -> Victim:
    victim = a_classifier()
    with torch.no_grad():
        next(victim.network.parameters()).add_(0.1)
    return victim


@pytest.mark.parametrize(("noise", "passes"), [(1e-6, True), (3e-2, False)])
@pytest.mark.parametrize("index", ["exact", "faiss:Flat"])
def test_rounding_is_no_tampering(
    request: pytest.FixtureRequest,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    index: str,
    noise: float,
    passes: bool,
) -> None:
    """Features as another machine finds them: places may move where scores almost tie."""
    if index == "exact":
        out = request.getfixturevalue("out")
    else:
        pytest.importorskip("faiss", reason="FAISS is not installed; pip install 'uturn[faiss]'")
        out = tmp_path / "guessed"
        changed = dataclasses.replace(plan, index=index, transfer_to=(), attacks=("odfa",))
        run(changed, out, progress=False)
    draw = torch.Generator().manual_seed(0)

    def rounded(look: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def looked(*args: Any, **options: Any) -> Tensor:
            features = look(*args, **options)
            moved = torch.randn(features.shape, generator=draw) * features.norm(dim=1, keepdim=True)
            return features + noise * moved / features.shape[1] ** 0.5

        return looked

    monkeypatch.setattr(scoring, "extract_all", rounded(scoring.extract_all))
    monkeypatch.setattr(scorer, "extract_decoded", rounded(scorer.extract_decoded))
    verified = held(out)
    assert (not verified.findings) is passes
    if passes:
        assert any(
            "values differ and are within the tolerance" in each for each in verified.checked
        )


def test_one_feature_rounded_is_no_tampering(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads may round a few pictures' features otherwise and all others alike."""
    look, first = scorer.extract_decoded, [True]

    def looked(*args: Any, **options: Any) -> Tensor:
        features = look(*args, **options)
        if first:
            first.clear()
            features[0, 0] += 1e-5 * features[0].norm()
        return features

    monkeypatch.setattr(scorer, "extract_decoded", looked)
    assert not held(out).findings
