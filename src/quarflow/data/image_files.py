"""Images from files: idx, CIFAR-10's two layouts, folders of pictures, NumPy arrays."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LAYOUTS",
    "PICTURES",
    "ImageError",
    "Layout",
    "Read",
    "array_images",
    "read_array_file",
    "read_cifar_binary",
    "read_cifar_npz",
    "read_folder",
    "read_idx",
]

Layout = Literal["auto", "nhw", "nhwc", "nchw"]
LAYOUTS = ("auto", "nhw", "nhwc", "nchw")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CHANNELS = (1, 3, 4)
RECORD = 1 + 3 * 32 * 32  # of CIFAR-10's binary version: a label, then three planes
Pixels = NDArray[np.uint8]
Read = tuple[Pixels, NDArray[np.int64] | None]  # images (N, C, H, W) and labels (N,)


class ImageError(ValueError):
    """Images that cannot be read as asked; the message says what to do."""


# idx: MNIST and its relatives


def read_idx(path: Path) -> Pixels:
    """Read an idx file of bytes, packed by gzip or not; any number of dimensions.

    Raises:
        ImageError: if it is no idx file of bytes, or cut off.

    Reference:
        | The MNIST database of handwritten digits (LeCun, Cortes and Burges, 1998)
    """
    content = _unpacked(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ImageError(f"{path} is not an idx file.")
    if content[2] != 8:
        raise ImageError(f"{path} holds numbers of idx type {content[2]}; 8, bytes, is read.")
    dims = content[3]
    start = 4 + 4 * dims
    shape: tuple[int, ...] = ()
    if len(content) >= start:
        shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    if len(shape) != dims or math.prod(shape) != len(content) - start:
        raise ImageError(f"{path} is cut off or damaged; copy it again.")

    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error):
        raise ImageError(f"{path} is cut off or damaged; copy it again.") from None


# CIFAR-10


def read_cifar_binary(path: Path) -> tuple[Pixels, NDArray[np.int64]]:
    """Read one batch of CIFAR-10's binary version: images (N, 3, 32, 32), labels (N,).

    Raises:
        ImageError: if its size or a label does not suit.

    Reference:
        | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
    """
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if not len(content) or len(content) % RECORD:
        raise ImageError(
            f"{path} is not a batch of CIFAR-10's binary version: {len(content):,} bytes is no "
            f"multiple of {RECORD:,}."
        )
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise ImageError(f"{path} is not a batch of CIFAR-10: it has labels above 9.")

    return records[:, 1:].reshape(-1, 3, 32, 32).copy(), records[:, 0].astype(np.int64)


def read_cifar_npz(arrays: Mapping[str, Any], path: Path) -> tuple[Pixels, NDArray[np.int64], Any]:
    """Read one batch kept as lossless WebP strips in an .npz.

    Arguments:
        arrays: ``webp``, the strips' bytes one after the other; ``offsets``, where each begins;
            ``labels`` (N,); ``exact`` (N,), False for an image that is only a stand-in for the
            original, which could not be found without loss.

    Returns:
        Images (N, C, H, W), labels (N,), exact (N,).
    """
    webp, offsets = arrays["webp"], arrays["offsets"].astype(np.int64)
    labels, exact = arrays["labels"], arrays["exact"].astype(bool)
    edges = offsets.tolist()
    sound = webp.dtype == np.uint8 and edges and edges[0] == 0 and edges[-1] == len(webp)
    if not sound or (np.diff(offsets) <= 0).any() or len(labels) != len(exact):
        raise ImageError(f"{path} is damaged: its offsets or labels do not suit its images.")
    parts = [
        _picture(io.BytesIO(webp[a:b].tobytes()), f"{path}, strip {i + 1}")
        for i, (a, b) in enumerate(pairwise(edges))
    ]
    if any(part.shape[0] % part.shape[1] for part in parts):
        raise ImageError(f"{path} is damaged: a strip is no column of square images.")
    images = np.concatenate([_hwc(part, part.shape[1]) for part in parts])
    if len(images) != len(labels):
        raise ImageError(f"{path} is damaged: {len(images)} images and {len(labels)} labels.")

    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64), exact


def _hwc(strip: Pixels, size: int) -> Pixels:
    return strip.reshape(-1, size, size, strip.shape[2] if strip.ndim == 3 else 1)


# Folders of pictures


def read_folder(folder: Path) -> Read:
    """Read all PNG, JPEG and WebP files of a folder, in the order of their names.

    Grey ones give one channel, others three; grey among colour becomes colour.

    Raises:
        ImageError: if there is none, one cannot be read, has transparency or more than 8 bits,
            or their sizes differ.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    if not paths:
        raise ImageError(f"{folder} holds no {', '.join(PICTURES)} files.")
    read = []
    for path in paths:
        read.append(_picture(path, str(path)))
        if read[-1].shape[:2] != read[0].shape[:2]:
            (h, w), (h0, w0) = read[-1].shape[:2], read[0].shape[:2]
            raise ImageError(
                f"{path} has {w} x {h} pixels, but {paths[0].name} has {w0} x {h0}: all images "
                "must have the same size. Crop or scale them first."
            )
    if any(image.ndim == 3 for image in read):
        colour = [i if i.ndim == 3 else np.repeat(i[..., None], 3, axis=2) for i in read]
        return np.ascontiguousarray(np.stack(colour).transpose(0, 3, 1, 2)), None

    return np.stack(read)[:, None], None


def _picture(source: Path | io.BytesIO, name: str) -> Pixels:
    """One picture as (H, W) if grey, (H, W, 3) otherwise."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            image.load()
            if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
                solid = image.convert("RGBA")
                low, _ = solid.getchannel("A").getextrema()
                if low != 255:
                    raise ImageError(f"{name} is partly transparent; flatten it first.")
                grey = image.mode in ("LA", "La")
                return np.asarray(solid.convert("L" if grey else "RGB"), dtype=np.uint8)
            if image.mode in ("1", "L"):
                return np.asarray(image.convert("L"), dtype=np.uint8)
            if image.mode.startswith(("I", "F")):
                raise ImageError(f"{name} has more than 8 bits a channel; save it with 8 bits.")
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name} cannot be read as a picture: {error}.") from None


# NumPy arrays


def read_array_file(path: Path, layout: Layout = "auto") -> tuple[Pixels, Any, Any]:
    """Read .npy or .npz: images (N, C, H, W), labels or None, and exact or None.

    An .npz holds CIFAR-10's WebP layout (:func:`read_cifar_npz`), or one array called ``images``,
    ``X`` or ``x`` (or only one that could be images), with ``labels`` or ``y`` beside it.

    Raises:
        ImageError: if the file is damaged, holds Python objects or nothing like images.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return array_images(loaded, layout, str(path)), None, None
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except ImageError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        trouble = (
            "holds Python objects, which are not read because unpickling them can run code"
            if "bject" in str(error) or "pickle" in str(error)
            else "is damaged or not a NumPy file"
        )
        raise ImageError(f"{path} {trouble}.") from None
    if {"webp", "offsets", "labels", "exact"} <= set(arrays):
        return read_cifar_npz(arrays, path)
    named = [key for key in ("images", "X", "x") if key in arrays]
    wide = [key for key, array in arrays.items() if array.ndim in (3, 4)]
    if not named and len(wide) != 1:
        held = ", ".join(f"{k} {a.shape}" for k, a in list(arrays.items())[:8]) or "no arrays"
        raise ImageError(
            f"{path} holds {held}; save the images as one uint8 array called 'images'."
        )
    key = named[0] if named else wide[0]
    images = array_images(arrays[key], layout, f"{path}, array {key!r}")
    for name in ("labels", "y"):
        if name in arrays and arrays[name].shape == (len(images),):
            return images, arrays[name], None

    return images, None, None


def array_images(array: NDArray[Any], layout: Layout = "auto", name: str = "X") -> Pixels:
    """Bring an array of whole numbers 0 to 255 to (N, C, H, W), uint8.

    Arguments:
        array: Shape (N, H, W), (N, H, W, C) or (N, C, H, W).
        layout: Which of them it is: ``nhw``, ``nhwc``, ``nchw``, or ``auto``: four dimensions
            are told apart by where the 1, 3 or 4 channels are.
        name: What messages call it.

    Raises:
        ImageError: if it cannot be images, or the layout is not clear.

    Example:
        >>> array_images(np.zeros((10, 8, 6, 3), np.uint8)).shape
        (10, 3, 8, 6)
    """
    if layout not in LAYOUTS:
        raise ImageError(f"layout must be one of {LAYOUTS}, not {layout!r}.")
    shape = tuple(array.shape)
    if array.dtype.kind not in "iu":
        hint = (
            "turn them into whole numbers first, such as (255 * x).round().astype('uint8')"
            if array.dtype.kind == "f"
            else "images are whole numbers from 0 to 255"
        )
        raise ImageError(f"{name} holds values of type {array.dtype}; {hint}.")
    if array.ndim not in (3, 4) or (layout != "auto" and len(layout) != array.ndim):
        wanted = "(N, H, W), (N, H, W, C) or (N, C, H, W)" if layout == "auto" else layout
        raise ImageError(f"{name} has shape {shape}; images have shape {wanted}.")
    if 0 in shape:
        raise ImageError(f"{name} has shape {shape}: there are no images in it.")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255):
        raise ImageError(
            f"{name} has values from {array.min()} to {array.max()}; "
            "images are whole numbers from 0 to 255."
        )
    if array.ndim == 3:
        found = array[:, None]
    else:
        first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
        if layout == "auto" and first == last:
            trouble = "is not clear" if first else "is not to be seen (1, 3 or 4 channels)"
            raise ImageError(
                f"{name} has shape {shape}: where its channels are {trouble}; "
                "say layout='nhwc' (channels last) or layout='nchw' (channels first)."
            )
        channels_last = layout == "nhwc" or (layout == "auto" and last)
        found = array.transpose(0, 3, 1, 2) if channels_last else array

    return np.ascontiguousarray(found, dtype=np.uint8)
