"""The sets that the recipes know: digits, MNIST, CIFAR-10; where they are looked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from quarflow.data.image_files import (
    ImageError,
    array_images,
    read_array_file,
    read_cifar_binary,
    read_idx,
)
from quarflow.data.images import Images, without_stand_ins

__all__ = ["SETS", "VARIABLE", "load_set"]

SETS = ("digits", "mnist", "cifar10")
VARIABLE = "QUARFLOW_DATA"
Part = Literal["train", "test"]

# What the original authors' files hash to, as published with them.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_HASH = "md5:c32a1d4ab5d03f1284b67883e8d87530"
CIFAR_FILES = {
    "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["test_batch.bin"],
}
CIFAR_NPZ = {
    "train": [f"cifar10_train_{i}.npz" for i in range(1, 6)],
    "test": ["cifar10_test.npz"],
}


def load_set(
    name: str,
    part: Part = "train",
    data: str | Path | None = None,
    *,
    keep_stand_ins: bool = False,
    download: bool = True,
) -> Images:
    """Load one part of a set that recipes know.

    Looks in ``data``, and only there if it is given; else in the folder that the environment
    variable QUARFLOW_DATA names; else in a cache folder, which is filled from the network, with
    checksums. Digits come with scikit-learn and need no file: 1,437 for training and 360 for
    testing, of 8 x 8 pixels and 17 levels, split by a fixed permutation.

    Arguments:
        name: ``digits``, ``mnist`` or ``cifar10``.
        part: ``train`` or ``test``.
        data: Folder with the files, or with a folder ``mnist`` or ``cifar10`` in it.
        keep_stand_ins: Whether to keep CIFAR-10 images that the file says are not exact.
        download: Whether the network may be used.

    Raises:
        ImageError: if the set is not known or cannot be downloaded.

    Example:
        >>> digits = load_set("digits")
        >>> len(digits), digits.shape, digits.levels
        (1437, (1, 8, 8), 17)
    """
    if name not in SETS:
        raise ImageError(f"There is no image set {name!r}; the sets are {', '.join(SETS)}.")
    if part not in ("train", "test"):
        raise ImageError(f"part must be 'train' or 'test', not {part!r}.")
    if name == "digits":
        return _digits(part)
    wanted = _wanted(name, part)
    if data is not None:
        place = Path(data)
        folder = _find(place, name, wanted) if place.is_dir() else None
        if folder is None:
            first = " or ".join(files[0] for files in wanted)
            raise ImageError(
                f"{place} does not hold {name} ({part}): it should be a folder with {first}, "
                f"or with a folder {name!r} that has them."
            )
        return _read(name, part, folder, keep_stand_ins)
    variable, cache = os.environ.get(VARIABLE), _cache()
    for place in [Path(variable), cache] if variable else [cache]:
        folder = _find(place, name, wanted)
        if folder is not None:
            return _read(name, part, folder, keep_stand_ins)
    folder = _fetched(name, part, cache, download)

    return _read(name, part, folder, keep_stand_ins)


def _digits(part: Part) -> Images:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = array_images(found.images.astype(np.int64), "nhw", "digits")
    order = np.random.default_rng(0).permutation(len(images))
    index = np.sort(order[:360] if part == "test" else order[360:])
    everything = Images(images, found.target.astype(np.int64), 17, f"digits, {part}")

    return everything.pick(index)


def _wanted(name: str, part: Part) -> list[list[str]]:
    """The lists of files of which one must be there as a whole."""
    if name == "cifar10":
        return [CIFAR_FILES[part], CIFAR_NPZ[part]]
    stem = {"train": "train", "test": "t10k"}[part]
    packed = [f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"]

    return [packed, [file.removesuffix(".gz") for file in packed]]


def _find(folder: Path, name: str, wanted: Sequence[Sequence[str]]) -> Path | None:
    inside = {"mnist": ("mnist", "MNIST/raw"), "cifar10": ("cifar10", "cifar-10-batches-bin")}
    for candidate in (folder, *(folder / part for part in inside[name])):
        if any(all((candidate / file).is_file() for file in files) for files in wanted):
            return candidate

    return None


def _read(name: str, part: Part, folder: Path, keep_stand_ins: bool) -> Images:
    title = f"{name}, {part}"
    files = next(
        files for files in _wanted(name, part) if all((folder / f).is_file() for f in files)
    )
    if name == "mnist":
        images, labels = (read_idx(folder / file) for file in files)
        return Images(images[:, None], labels.astype(np.int64), 256, title)
    if files[0].endswith(".bin"):
        batches = [read_cifar_binary(folder / file) for file in files]
        images = np.concatenate([batch[0] for batch in batches])
        return Images(images, np.concatenate([batch[1] for batch in batches]), 256, title)
    strips = [read_array_file(folder / file) for file in files]
    joined = [np.concatenate([strip[i] for strip in strips]) for i in range(3)]

    return without_stand_ins(Images(joined[0], joined[1], 256, title), joined[2], keep_stand_ins)


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("quarflow"))


def _fetched(name: str, part: Part, cache: Path, download: bool) -> Path:
    """Fill the cache from the network; return the folder with the files."""
    trouble = (
        f"{name} was not found: give the folder with its files by --data (data=), or in the "
        f"environment variable {VARIABLE}. It is neither in the cache, {cache}"
    )
    if not download:
        raise ImageError(f"{trouble}, nor may it be downloaded.")
    import pooch
    import requests

    folder = cache / name
    pooch.get_logger().setLevel("WARNING")
    fetch = pooch.HTTPDownloader(timeout=30)
    try:
        if name == "mnist":
            for file in _wanted(name, part)[0]:
                pooch.retrieve(MNIST_URL + file, MNIST_FILES[file], file, folder, downloader=fetch)
            return folder
        unpack = pooch.Untar(extract_dir=".")
        pooch.retrieve(
            CIFAR_URL, CIFAR_HASH, "cifar-10-binary.tar.gz", folder, unpack, downloader=fetch
        )
        return folder / "cifar-10-batches-bin"
    except (requests.RequestException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ImageError(f"{trouble}, nor could it be downloaded ({reason}).") from None
