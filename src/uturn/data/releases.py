"""Where data sets are published, on which terms, and what a person must do where a program may not.

A checksum stands here only if it is public; its source is beside it. The homepage is what counts.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final
from urllib.parse import urlsplit


@final
@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file at an official address. A ``.zip``, ``.tgz`` or ``.tar.gz`` is unpacked."""

    url: str
    checksum: str = ""
    """``md5:…`` or ``sha256:…``; empty where none is published."""
    size: int | None = None
    """Exact, in bytes, where it is known for the file with the checksum."""
    limit: int = 8 << 30
    """Bytes; more is not received."""
    into: str = "."
    """The folder that it belongs in, relative to the data set's."""

    @property
    def name(self) -> str:
        return posixpath.basename(urlsplit(self.url).path)


@final
@dataclass(frozen=True, kw_only=True)
class Release:
    """A published data set."""

    name: str
    title: str
    homepage: str
    terms: str
    files: tuple[RemoteFile, ...] = ()
    by_hand: str = ""
    """What a person has to do, where there are no files that a program may fetch."""
    note: str = ""
    use: str = ""
    """The data spec for it, with ``{}`` for the folder it was unpacked to."""

    def describe(self, to: Path) -> str:
        """What it is, its terms, and what would be fetched from where to ``to``."""
        lines = [self.title, f"homepage: {self.homepage}", f"terms:    {self.terms}"]
        lines += [f"note:     {self.note}"] if self.note else []
        for file in self.files:
            size = f", {size_of(file.size)}" if file.size else ""
            check = file.checksum or "no checksum is published"
            lines.append(f"file:     {file.url} ({check}{size})")
        return "\n".join([*lines, f"to:       {to}"] if self.files else lines)


def size_of(count: int) -> str:
    """A number of bytes for people.

    >>> size_of(8174), size_of(1150585339)
    ('8.2 kB', '1.2 GB')
    """
    number = float(count)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


_FLICKR = (
    "the pictures come from Flickr and belong to those who took them; for research, under Flickr's "
    "terms and those of the homepage"
)
_PEOPLE = "It shows real people who were not asked: do not pass it on, and show no picture of it."
_MARKET_LAYOUT = "query, bounding_box_test and bounding_box_train"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_REVISITED = "http://cmp.felk.cvut.cz/revisitop/data/datasets"
_CIFAR = "https://www.cs.toronto.edu/~kriz"
_CIFAR_TERMS = "none are stated; cite Krizhevsky, Learning Multiple Layers of Features, 2009"

_ALL = (
    Release(
        name="cub200",
        title="CUB-200-2011: 11,788 pictures of 200 species of birds (Wah et al., 2011)",
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        terms=_FLICKR,
        files=(
            # MD5 as on CaltechDATA (record 65de6-vp158); the size goes with it in public loaders.
            RemoteFile(
                url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                checksum="md5:97eceeb196236b17998738112f37df78",
                size=1_150_585_339,
            ),
        ),
        use="cub200:{}/CUB_200_2011",
    ),
    Release(
        name="cifar10",
        title="CIFAR-10, python version: 60,000 pictures of 32 x 32 of 10 classes",
        homepage=f"{_CIFAR}/cifar.html",
        terms=_CIFAR_TERMS,
        files=(
            # MD5 as on the homepage; the size goes with it in public loaders.
            RemoteFile(
                url=f"{_CIFAR}/cifar-10-python.tar.gz",
                checksum="md5:c58f30108f718f92721af3b95e74349a",
                size=170_498_071,
            ),
        ),
        use="cifar10:{}/cifar-10-batches-py",
    ),
    Release(
        name="cifar10_binary",
        title="CIFAR-10, binary version: 60,000 pictures of 32 x 32 of 10 classes, no pickles",
        homepage=f"{_CIFAR}/cifar.html",
        terms=_CIFAR_TERMS,
        files=(
            # MD5 as on the homepage; the size goes with it in public loaders.
            RemoteFile(
                url=f"{_CIFAR}/cifar-10-binary.tar.gz",
                checksum="md5:c32a1d4ab5d03f1284b67883e8d87530",
                size=170_052_171,
            ),
        ),
        use="cifar10:{}/cifar-10-batches-bin",
    ),
    Release(
        name="sop",
        title="Stanford Online Products: 120,053 pictures of 22,634 products (Song et al., 2016)",
        homepage="https://cvgl.stanford.edu/projects/lifted_struct/",
        terms="none are stated for the pictures, which come from offers on eBay; cite the paper",
        files=(
            # The http twin of the official ftp address. MD5 as in PyTorch Metric Learning's
            # loader of this archive.
            RemoteFile(
                url="http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
                checksum="md5:7f73d41a2f44250d4779881525aea32e",
            ),
        ),
        use="sop:{}/Stanford_Online_Products",
    ),
    Release(
        name="food256",
        title="UEC FOOD 256: pictures of 256 dishes with boxes (Kawano and Yanai, 2014)",
        homepage="http://foodcam.mobi/dataset256.html",
        terms="for non-commercial research only; cite the paper",
        files=(RemoteFile(url="http://foodcam.mobi/dataset256.zip"),),
        note="the server offers http without encryption and no checksum",
        use="food256:{}/UECFOOD256",
    ),
    Release(
        name="oxford5k",
        title="Oxford5k: 5,062 pictures, 55 queries (Philbin et al., 2007), with its revisited "
        "lists (Radenovic et al., 2018)",
        homepage=f"{_VGG}/oxbuildings/",
        terms=f"{_FLICKR} (Terms of Access and Dataset Privacy Notice)",
        files=(
            RemoteFile(url=f"{_VGG}/oxbuildings/oxbuild_images-v1.tgz", into="jpg"),
            RemoteFile(url=f"{_VGG}/oxbuildings/gt_files_170407.tgz", into="gt_files"),
            RemoteFile(url=f"{_REVISITED}/roxford5k/gnd_roxford5k.pkl", limit=16 << 20),
        ),
        note="the homepage has not linked the pictures at all times; this address is the one in "
        "the code of the revisited lists' authors (cnnimageretrieval-pytorch)",
        use="oxford5k:{}",
    ),
    Release(
        name="paris6k",
        title="Paris6k: 6,412 pictures, 55 queries (Philbin et al., 2008), with its revisited "
        "lists (Radenovic et al., 2018)",
        homepage=f"{_VGG}/parisbuildings/",
        terms=f"{_FLICKR} (Terms of Access and Dataset Privacy Notice)",
        files=(
            RemoteFile(url=f"{_VGG}/parisbuildings/paris_1-v1.tgz", into="jpg"),
            RemoteFile(url=f"{_VGG}/parisbuildings/paris_2-v1.tgz", into="jpg"),
            RemoteFile(url=f"{_VGG}/parisbuildings/paris_120310.tgz", into="gt_files"),
            RemoteFile(url=f"{_REVISITED}/rparis6k/gnd_rparis6k.pkl", limit=16 << 20),
        ),
        note="the homepage has not linked the pictures at all times; these addresses are those in "
        "the code of the revisited lists' authors (cnnimageretrieval-pytorch)",
        use="paris6k:{}",
    ),
    Release(
        name="grocery",
        title="Grocery Store: 5,125 photos of 81 fruits, vegetables and packages (Klasson et al., "
        "2019)",
        homepage="https://github.com/marcusklasson/GroceryStoreDataset",
        terms="MIT licence; cite the paper",
        files=(
            RemoteFile(
                url="https://github.com/marcusklasson/GroceryStoreDataset/archive/refs/heads/master.zip"
            ),
        ),
        note="GitHub packs the archive anew at times, so there is no checksum and no resuming",
        use="grocery:{}",
    ),
    Release(
        name="market1501",
        title="Market-1501: 32,668 pictures of 1,501 people, 6 cameras (Zheng et al., 2015)",
        homepage="https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
        terms=f"research only, not to be distributed, no commercial use. {_PEOPLE}",
        by_hand="its homepage links Market-1501-v15.09.15.zip on file-sharing services, where the "
        "link and its conditions change. Read the terms there, download and unzip it: the folder "
        f"must hold {_MARKET_LAYOUT}. Then use --data market1501:FOLDER",
    ),
    Release(
        name="msmt17",
        title="MSMT17: 126,441 pictures of 4,101 people, 15 cameras (Wei et al., 2018)",
        homepage="https://www.pkuvmc.com/dataset.html",
        terms=f"by agreement with its authors, for research only. {_PEOPLE}",
        by_hand="its authors send the address to those who sign their agreement; the homepage, or "
        "the first author of the paper (Person Transfer GAN, CVPR 2018), says how. Unpack it: the "
        "folder must hold train, test, list_train.txt, list_val.txt, list_query.txt and "
        "list_gallery.txt",
    ),
    Release(
        name="cuhk03np",
        title="CUHK03: 13,164 pictures of 1,360 people, 6 cameras (Li et al., 2014)",
        homepage="https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html",
        terms=f"by request, for academic use only. {_PEOPLE}",
        by_hand="request it on the homepage; the new protocol's lists (Zhong et al., 2017) are at "
        "https://github.com/zhunzhong07/person-re-ranking in evaluation/data/CUHK03",
    ),
    Release(
        name="dukemtmc",
        title="DukeMTMC-reID: 36,411 pictures of 1,812 people, 8 cameras (Zheng et al., 2017)",
        homepage="https://exposing.ai/duke_mtmc/",
        terms=f"withdrawn by Duke University in 2019. {_PEOPLE}",
        by_hand="it was withdrawn because the people in it had not consented, so there is no "
        "official address and uturn names no other. Prefer another data set for new work. A copy "
        f"that you hold lawfully must contain {_MARKET_LAYOUT}",
    ),
)

RELEASES: dict[str, Release] = {release.name: release for release in _ALL}
for _name in ("oxford5k", "paris6k"):  # the revisited lists come with the same photographs
    RELEASES[f"r{_name}"] = replace(RELEASES[_name], name=f"r{_name}", use=f"r{_name}:{{}}")
