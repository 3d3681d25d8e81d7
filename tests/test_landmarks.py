"""Oxford5k, Paris6k and their revisited lists, on miniature trees in the official layout."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from uturn import load_data
from uturn.data.folder import replace_queries
from uturn.data.landmarks import CORRUPT, Cropped, oxford5k, paris6k, roxford5k, rparis6k
from uturn.data.pictures import encode
from uturn.data.split import Split
from uturn.errors import DataError, SpecError
from uturn.retrieval import metrics
from uturn.retrieval.judge import Labels, judge_for
from uturn.retrieval.ranking import Chunk, Ranking, rank_chunk

WIDTH, HEIGHT = 48, 36

OXFORD = {
    "all_souls_1": {
        "query": ["oxc1_all_souls_000013 6.5 4.1 28.5 25.7"],
        "good": ["all_souls_000013", "all_souls_000026"],
        "ok": ["oxford_002985"],
        "junk": ["all_souls_000051"],
    },
    "all_souls_2": {
        "query": ["oxc1_all_souls_000026 1.0 1.0 40.0 30.0"],
        "good": ["all_souls_000013", "all_souls_000026"],
        "ok": [],
        "junk": [],
    },
    "radcliffe_camera_1": {
        "query": ["oxc1_oxford_002985 0.0 0.0 48.0 36.0"],
        "good": ["oxford_002985"],
        "ok": ["radcliffe_camera_000519"],
        "junk": ["all_souls_000013"],
    },
}
OXFORD_NAMES = (
    "all_souls_000013",
    "all_souls_000026",
    "all_souls_000051",
    "christ_church_000179",
    "oxford_002985",
    "radcliffe_camera_000519",
)
PARIS = {
    "defense_1": {
        "query": ["paris_defense_000605 2.0 3.0 40.0 30.0"],
        "good": ["paris_defense_000605"],
        "ok": ["paris_general_000001", "paris_louvre_000136"],
        "junk": ["paris_pantheon_000284"],
    },
    "louvre_1": {
        "query": ["paris_louvre_000001 2.0 3.0 40.0 30.0"],
        "good": ["paris_louvre_000001"],
        "ok": [],
        "junk": [],
    },
}
PARIS_NAMES = ("paris_defense_000605", "paris_general_000001", "paris_louvre_000001")


def photograph(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def write_lists(folder: Path, lists: dict[str, dict[str, list[str]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for query, kinds in lists.items():
        for kind, lines in kinds.items():
            (folder / f"{query}_{kind}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_oxford(
    root: Path, images: str = "oxbuild_images", lists: str = "gt_files_170407"
) -> Path:
    for seed, name in enumerate(OXFORD_NAMES):
        photograph(root / images / f"{name}.jpg", seed)
    write_lists(root / lists, OXFORD)
    return root


def write_paris(root: Path, images: str = "paris", lists: str = "paris_120310") -> Path:
    for seed, name in enumerate(PARIS_NAMES):
        photograph(root / images / name.split("_")[1] / f"{name}.jpg", seed)
    for name in ("paris_louvre_000136", "paris_pantheon_000284"):
        file = root / images / name.split("_")[1] / f"{name}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_text("<html>302 Found</html>")
    write_lists(root / lists, PARIS)
    return root


def listed(split: Split) -> dict[str, tuple[set[str], set[str]]]:
    """What a split says of each query, by the names of photographs."""
    names = np.array(split.gallery.names)
    return {
        query: (set(names[lists.relevant]), set(names[lists.ignored]))
        for query, lists in split.listings.items()
    }


def test_oxford5k_reads_boxes_and_lists(tmp_path: Path) -> None:
    split = load_data(f"oxford5k:{write_oxford(tmp_path)}")
    assert (split.name, split.protocol) == ("oxford5k", "listed")
    assert split.gallery.names == OXFORD_NAMES
    assert split.query.names == tuple(OXFORD)
    assert split.query.identities.tolist() == [1, 1, 2]  # the bootstrap is over landmarks
    assert split.query.cameras.tolist() == [0, 0, 0]
    for name, (relevant, ignored) in listed(split).items():
        kinds = OXFORD[name]
        assert relevant == {*kinds["good"], *kinds["ok"]}  # its own photograph among them
        assert ignored == set(kinds["junk"])


def test_a_query_is_pillows_crop_of_its_box(tmp_path: Path) -> None:
    split = oxford5k(str(write_oxford(tmp_path)))
    with Image.open(tmp_path / "oxbuild_images" / "all_souls_000013.jpg") as image:
        whole = image.convert("RGB")
        assert np.array_equal(split.query.read(0), np.array(whole.crop((6.5, 4.1, 28.5, 25.7))))
        assert np.array_equal(split.gallery.read(0), np.array(whole))
    assert split.query.read(0).shape == (22, 22, 3)  # 4 to 26, and halves to even: 6 to 28


def test_a_changed_box_or_photograph_changes_the_fingerprint(tmp_path: Path) -> None:
    root = write_oxford(tmp_path)
    before = oxford5k(str(root)).fingerprint()
    assert before == oxford5k(str(root)).fingerprint()
    query = root / "gt_files_170407" / "all_souls_2_query.txt"
    query.write_text("oxc1_all_souls_000026 1.0 1.0 40.0 31.0\n")
    boxed = oxford5k(str(root)).fingerprint()
    photograph(root / "oxbuild_images" / "christ_church_000179.jpg", 99)
    assert len({before, boxed, oxford5k(str(root)).fingerprint()}) == 3


@pytest.mark.parametrize("images", ["jpg", "oxbuild_images", "images", "."])
@pytest.mark.parametrize("lists", ["gt_files_170407", "lab", "."])
def test_oxford5k_lies_as_people_unpack_it(tmp_path: Path, images: str, lists: str) -> None:
    usual = oxford5k(str(write_oxford(tmp_path / "usual")))
    other = oxford5k(str(write_oxford(tmp_path / "other", images, lists)))
    assert other.fingerprint() == usual.fingerprint()


@pytest.mark.parametrize("images", ["paris", "jpg/paris", "jpg", "."])
def test_paris6k_leaves_out_what_is_no_picture(tmp_path: Path, images: str) -> None:
    split = load_data(f"paris6k:{write_paris(tmp_path, images)}")
    assert split.gallery.names == PARIS_NAMES
    assert listed(split) == {
        "defense_1": ({"paris_defense_000605", "paris_general_000001"}, set()),
        "louvre_1": ({"paris_louvre_000001"}, set()),
    }
    assert split.query.read(0).shape == (27, 38, 3)
    assert len(CORRUPT) == 20


LISTS = "gt_files_170407"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "oxbuild_images").rename(root.parent / "away"), "no photographs"),
        (
            lambda root: (root / "oxbuild_images" / "oxford_002985.jpg").unlink(),
            r"all_souls_1_ok\.txt lists 'oxford_002985' \(and 0 more\)",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_junk.txt").unlink(),
            r"cannot read the list .*all_souls_2_junk\.txt",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_ok.txt").write_bytes(b"\xff\xfe"),
            r"cannot read the list .*all_souls_2_ok\.txt",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_query.txt").write_text("oxc1_a 1 2 3"),
            r"all_souls_2_query\.txt does not parse",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_query.txt").write_text("oxc1_a 1 2 3 x"),
            "not of four numbers",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_query.txt").write_text("oxc1_a 1 2 nan 4"),
            "is empty",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_query.txt").write_text("oxc1_a 5 2 5 9"),
            "is empty",
        ),
        (
            lambda root: (root / LISTS / "all_souls_2_query.txt").write_text("oxc1_a 1 2 3 4"),
            r"lists 'a' \(and 0 more\), but there is no such photograph",
        ),
        (lambda root: write_lists(root / "lab", OXFORD), "both .* and .* hold lists"),
        (lambda root: (root / LISTS).rename(root.parent / "away"), "neither text files"),
        (
            lambda root: photograph(root / "oxbuild_images" / "more" / "oxford_002985.jpg"),
            "share a name",
        ),
    ],
)
def test_a_broken_tree_is_named(
    tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    root = write_oxford(tmp_path / "oxford")
    break_it(root)
    with pytest.raises(DataError, match=message):
        oxford5k(str(root))


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    for load in (oxford5k, paris6k, roxford5k, rparis6k):
        with pytest.raises(DataError, match="there is no folder"):
            load(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ((-2.0, -3.4, 10.0, 5.0), (8, 12, 3)),
        ((40.0, 30.0, 50.0, 40.0), (10, 10, 3)),
        ((50.0, 0.0, 60.0, 10.0), None),
        ((0.0, -20.0, 10.0, -1.0), None),
        ((-50.0, 0.0, 10.0, 10.0), None),
        ((0.0, 0.0, 1e12, 10.0), None),
        ((0.0, 0.0, 10.0, 1e300), None),
    ],
)
def test_a_box_may_reach_a_little_beyond_its_picture(
    tmp_path: Path, box: tuple[float, float, float, float], shape: tuple[int, ...] | None
) -> None:
    gallery = oxford5k(str(write_oxford(tmp_path))).gallery
    name = gallery.names[0]
    source = Cropped(gallery.source, {name: box})
    if shape is None:
        with pytest.raises(DataError, match=rf"of query {name} lies outside its picture of 48x36"):
            source.read(name)
        return
    cut = source.read(name)
    assert cut.shape == shape
    assert np.array_equal(cut, np.array(Image.fromarray(gallery.read(0)).crop(box)))


def test_changed_queries_are_not_cropped_again(tmp_path: Path) -> None:
    split = oxford5k(str(write_oxford(tmp_path / "oxford")))
    for name, i in (("all_souls_1", 0), ("radcliffe_camera_1", 2)):
        encode(tmp_path / "changed" / f"{name}.png", 255 - split.query.read(i))
    changed = replace_queries(split.query, tmp_path / "changed")
    assert np.array_equal(changed.read(0), 255 - split.query.read(0))


# The revisited lists

GALLERY = [f"oxford_{i:06d}" for i in range(24)]
QUERIES = [f"all_souls_{i:06d}" for i in range(5)]


def write_revisited(root: Path, truth: object, name: str = "roxford5k", protocol: int = 2) -> Path:
    if not (root / "jpg").exists():
        for seed, photo in enumerate([*GALLERY, *QUERIES]):
            photograph(root / "jpg" / f"{photo}.jpg", seed)
    (root / f"gnd_{name}.pkl").write_bytes(pickle.dumps(truth, protocol))
    return root


def entry(easy: Any, hard: Any, junk: Any, bbx: Any = (1.0, 2.0, 30.5, 31.0)) -> dict[str, Any]:
    return {"bbx": bbx, "easy": easy, "hard": hard, "junk": junk}


def truth_of(gnd: object, imlist: object = GALLERY, qimlist: object = QUERIES) -> dict[str, Any]:
    return {"gnd": gnd, "imlist": imlist, "qimlist": qimlist}


GND = [
    entry([0, 1, 2], [3], [4, 5]),
    entry(np.array([0, 1, 2]), np.array([np.int64(3), 6]), np.array([7])),
    entry([np.int32(8), np.int64(9)], np.array([]), [], np.array([1.5, 2, 30, 31])),
    entry([], [10], [11], [0, 0, 48, 36]),
    entry([], [], [12]),
]
FOUND = {
    "easy": [({0, 1, 2}, {3, 4, 5}), ({0, 1, 2}, {3, 6, 7}), ({8, 9}, set()), (set(), {10, 11})],
    "medium": [({0, 1, 2, 3}, {4, 5}), ({0, 1, 2, 3, 6}, {7}), ({8, 9}, set()), ({10}, {11})],
    "hard": [({3}, {0, 1, 2, 4, 5}), ({3, 6}, {0, 1, 2, 7}), (set(), {8, 9}), ({10}, {11})],
}


@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_levels_take_the_benchmarks_lists(
    tmp_path: Path, name: str, level: str, protocol: int
) -> None:
    root = write_revisited(tmp_path, truth_of(GND), name, protocol)
    split = load_data(f"{name}:{root},level={level}")
    assert (split.name, split.protocol) == (f"{name}-{level}", "listed")
    assert split.gallery.names == tuple(GALLERY)
    assert split.query.names == tuple(QUERIES)
    assert not set(split.query.names) & set(split.gallery.names)
    got = [(set(v.relevant.tolist()), set(v.ignored.tolist())) for v in split.listings.values()]
    assert got == [*FOUND[level], (set(), {12})]
    assert all(v.relevant.dtype == v.ignored.dtype == np.int64 for v in split.listings.values())
    assert split.query.identities.tolist() == [1, 1, 3, 4, 5]  # two share their photographs
    assert split.query.read(2).shape == (29, 28, 3)


def test_medium_is_the_default_and_other_levels_are_refused(tmp_path: Path) -> None:
    root = write_revisited(tmp_path, truth_of(GND))
    assert roxford5k(str(root)).name == "roxford5k-medium"
    with pytest.raises(SpecError, match="level must be one of easy, medium, hard"):
        load_data(f"roxford5k:{root},level=extreme")


def test_photographs_may_be_a_link_to_those_of_the_classic_set(tmp_path: Path) -> None:
    write_revisited(tmp_path / "oxford5k", None)
    (tmp_path / "roxford5k").mkdir()
    (tmp_path / "roxford5k" / "jpg").symlink_to(tmp_path / "oxford5k" / "jpg")
    split = roxford5k(str(write_revisited(tmp_path / "roxford5k", truth_of(GND))))
    assert split.gallery.read(3).shape == (HEIGHT, WIDTH, 3)


def test_the_classic_lists_may_be_pickled_too(tmp_path: Path) -> None:
    gnd = [{"bbx": [0, 0, 9, 9], "ok": [i, 9], "junk": [10]} for i in range(5)]
    split = oxford5k(str(write_revisited(tmp_path, truth_of(gnd), "oxford5k")))
    assert split.name == "oxford5k"
    assert split.listings[QUERIES[2]].relevant.tolist() == [2, 9]
    assert split.listings[QUERIES[2]].ignored.tolist() == [10]


def deep(width: int) -> list[Any]:
    """A list that unfolds to ``width ** 16`` numbers, and pickles as small as it is here."""
    inner: list[Any] = [0] * width
    for _ in range(15):
        inner = [inner] * width
    return inner


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([], "is no ground truth but a list"),
        ({}, "imlist is no list of names"),
        (truth_of(GND, imlist=[]), "imlist is no list of names"),
        (truth_of(GND, imlist=[1]), "imlist holds something else than names"),
        (truth_of(GND, qimlist="abc"), "qimlist is no list of names"),
        (truth_of(GND, imlist=[*GALLERY, "../../evil"]), r"lists '\.\./\.\./evil'"),
        (truth_of(GND, imlist=[*GALLERY, "\ud800"]), r"lists '\\ud800'"),
        (truth_of(GND, qimlist=[*QUERIES[:4], QUERIES[0]]), "two pictures share the name"),
        (truth_of(GND[:4]), "gnd is no list with an entry for each query"),
        (truth_of([*GND[:4], None]), "'all_souls_000004': the entry is no dict but a NoneType"),
        (truth_of([*GND[:4], {"bbx": [0, 0, 9, 9]}]), "000004': easy is no list of whole numbers"),
        (truth_of([*GND[:4], entry([24], [], [])]), "easy goes beyond the 24 photographs"),
        (truth_of([*GND[:4], entry([], [], [-1])]), "junk goes beyond the 24 photographs"),
        (truth_of([*GND[:4], entry([1 << 80], [], [])]), "easy goes beyond"),
        (truth_of([*GND[:4], entry([1.5], [], [])]), "easy is no list of whole numbers"),
        (truth_of([*GND[:4], entry(np.array([[1]]), [], [])]), "easy is no list of whole numbers"),
        (truth_of([*GND[:4], entry(deep(100), [], [])]), "easy is no list of whole numbers"),
        (truth_of([*GND[:4], entry([], [], [], [1, 2, 3])]), "the box is not of four numbers"),
        (truth_of([*GND[:4], entry([], [], [], deep(4))]), "the box is not of four numbers"),
        (truth_of([*GND[:4], entry([], [], [], [9, 9, 1, 1])]), "is empty"),
        (truth_of([*GND[:4], entry([], [], [], [0, 0, 10**400, 1])]), "not of four numbers"),
    ],
)
def test_a_malformed_ground_truth_is_named(tmp_path: Path, truth: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        roxford5k(str(write_revisited(tmp_path, truth)))


def test_a_missing_or_hostile_ground_truth_is_named(tmp_path: Path) -> None:
    root = write_revisited(tmp_path, None, "rparis6k")
    with pytest.raises(DataError, match=r"there is no pickle at .*gnd_roxford5k\.pkl"):
        roxford5k(str(root))
    canary = tmp_path / "canary"
    (root / "gnd_roxford5k.pkl").write_bytes(
        f"cbuiltins\neval\n(Vopen({str(canary)!r}, 'w')\ntR.".encode()
    )
    with pytest.raises(DataError, match=r"names 'builtins\.eval'"):
        roxford5k(str(root))
    assert not canary.exists()


# Parity with the benchmark, written anew from its paper and its definition of the metrics


def published(scores: npt.NDArray[np.float64], gnd: list[dict[str, Any]], level: str) -> list[Any]:
    """AP and P@1, 5, 10 per query, by walking down each ranking; None where there is no AP."""
    values: list[Any] = []
    for row, lists in zip(scores, gnd, strict=True):
        easy, hard, junk = (set(map(int, lists[key])) for key in ("easy", "hard", "junk"))
        positive = {"easy": easy, "medium": easy | hard, "hard": hard}[level]
        skipped = {"easy": junk | hard, "medium": junk, "hard": junk | easy}[level]
        if not positive:
            values.append(None)
            continue
        area, hits, seen, recall, precision = 0.0, 0, 0, 0.0, 1.0
        marks: list[bool] = []
        for item in np.argsort(-row):
            if int(item) in skipped:
                continue
            hits, seen = hits + (int(item) in positive), seen + 1
            marks.append(int(item) in positive)
            area += (hits / len(positive) - recall) * (precision + hits / seen) / 2
            recall, precision = hits / len(positive), hits / seen
        last = max(i for i, mark in enumerate(marks, start=1) if mark)
        depths = [min(k, last) for k in (1, 5, 10)]
        values.append((area, *(sum(marks[:depth]) / depth for depth in depths)))
    return values


def ranked(split: Split, scores: npt.NDArray[np.float64]) -> Ranking:
    device = torch.device("cpu")
    query, gallery = Labels.of(split.query, device), Labels.of(split.gallery, device)
    return rank_chunk(Chunk.of(torch.from_numpy(scores).clone(), judge_for(split)(query, gallery)))


def test_200_random_problems_score_as_the_benchmark_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    worst = 0.0
    unscored = 0
    for problem in range(200):
        gnd = []
        for _ in QUERIES:
            # Each photograph is easy, hard, junk or none of them; some queries lack one kind.
            kinds = rng.choice(4, len(GALLERY), p=rng.dirichlet([0.3, 0.3, 0.3, 1.0]))
            gnd.append(entry(*(np.flatnonzero(kinds == kind) for kind in range(3))))
        root = write_revisited(tmp_path, truth_of(gnd))
        scores = rng.normal(size=(len(QUERIES), len(GALLERY)))
        level = ("easy", "medium", "hard")[problem % 3]
        found = ranked(load_data(f"roxford5k:{root},level={level}"), scores)
        ours = torch.stack(
            [metrics.ap_trapezoid(found), *(metrics.precision_at(found, k) for k in (1, 5, 10))], 1
        )
        for row, known in zip(ours, published(scores, gnd, level), strict=True):
            assert bool(row.isnan().any()) == (known is None)
            unscored += known is None
            if known is not None:
                worst = max(worst, float((row - torch.tensor(known, dtype=row.dtype)).abs().max()))
    assert unscored > 50
    assert worst < 1e-12


def test_the_classic_evaluation_counts_the_querys_own_photograph(tmp_path: Path) -> None:
    split = oxford5k(str(write_oxford(tmp_path)))
    # All Souls 1: own photograph, junk, Christ Church, the ok one, the good one, the rest.
    scores = np.array([[9.0, 5.0, 8.0, 7.0, 6.0, 1.0]] * 3)
    # Without the junk the positives stand at 1, 3 and 4.
    ap = (1 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3
    assert metrics.ap_trapezoid(ranked(split, scores))[0].item() == pytest.approx(ap, abs=1e-15)
