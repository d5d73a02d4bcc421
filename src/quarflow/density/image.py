r"""The density of images: pictures in, bits per dimension and new pictures out."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from quarflow.data.image_files import ImageError, Layout, array_images
from quarflow.data.image_sets import SETS, Part, load_set
from quarflow.data.images import Images, read_images
from quarflow.density.base import RUN, Place, Say, Scores, Section, certified, quiet, trained
from quarflow.density.checks import check_fitted, seed_of
from quarflow.density.defaults import IMAGE_TRAINING, NO_LIMIT, image_architecture
from quarflow.density.image_evaluation import Evaluation, evaluate, summed, to_bits, with_bits
from quarflow.density.image_fit import FLOWS, hold_out, make_flow, more_settings, parameter_counts
from quarflow.density.rows import FIRST, ImageRows
from quarflow.density.samples import ImageSamples
from quarflow.flows.former import former_names, present_or_warn
from quarflow.report.words import duration, number, typed
from quarflow.store.folder import read_model, save_flow
from quarflow.store.read import StoreError
from quarflow.store.schema import ImageConfig
from quarflow.training import Listener, StopSignals, TrainingProgress, TrainingSettings, train
from quarflow.training.device import choose_device

__all__ = ["ImageDensity"]

DRAWS, SHOWN = 4, 64  # of noise in scores of files; images drawn unless asked for more
# of a training, in the metrics
OF_A_RUN = ("steps", "epochs", "seconds", "stopped", "interrupted", "device", "recoveries")


class ImageDensity:
    r"""Density of images of one size by an image flow.

    Log-densities are those of images in [0, 1], dequantised as (x + u) / levels.

    Arguments:
        flow: ``ImageQuAR``, or ``ImageResidualFlow``.
        levels, layout, keep_stand_ins: Of images that are read from files; see
            :func:`quarflow.data.read_images`.
        flip: Whether to mirror training images at random, where either is as likely.
        validation_fraction: How many images are held out, at most 1,000.
        first: Images for the data-dependent initialisation, if a batch is not larger.
        minutes, max_epochs: Budget of the training; minutes alone are the only limit.
        device: ``auto``, ``cpu`` or ``cuda``.
        random_state: Seed, RandomState or None: of weights, validation part, order and noise.
        verbose: Whether to show progress.
        checkpoint, resume: See :func:`quarflow.training.train`.
        settings: Any argument of the flow (``transforms``, ``hidden_channels``, ...) or of
            :class:`quarflow.training.TrainingSettings`, over the defaults for images.

    Attributes:
        flow_: The flow, with the averaged weights that were best on the validation images.
        images_: What it was fitted to.
        settings_: Every choice made.
        metrics_: How well it did.
        history_: One dict per evaluation while training.

    Raises:
        ValueError: if there is no such setting.

    Example:
        >>> x = Images(np.zeros((32, 1, 4, 4), np.uint8), None, 17, "black")
        >>> density = ImageDensity(max_epochs=1, batch_size=8, transforms=1, hidden_channels=4)
        >>> density = density.fit(x)
        >>> density.settings_["learning_rate"], density.sample(2, random_state=0).shape
        (0.003, (2, 1, 4, 4))
    """

    of: ClassVar[str] = "images"
    draws_to: ClassVar[tuple[str, ...]] = (".png", ".npy")
    context_names: ClassVar[list[str]] = []

    flow_: Any
    images_: ImageConfig
    settings_: dict[str, Any]
    metrics_: dict[str, Any]
    history_: list[dict[str, Any]]

    def __init__(
        self,
        *,
        flow: str = "ImageQuAR",
        levels: int | None = None,
        layout: Layout = "auto",
        keep_stand_ins: bool = False,
        flip: bool = False,
        validation_fraction: float = 0.1,
        first: int = FIRST,
        minutes: float | None = None,
        max_epochs: int | None = None,
        device: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
        checkpoint: Place | None = None,
        resume: bool = False,
        **settings: Any,
    ) -> None:
        if flow not in FLOWS:
            raise ValueError(f"flow is one of {', '.join(FLOWS)}, not {flow!r}.")
        settings = present_or_warn(flow, settings)
        known = self.setting_names()
        for name in settings:
            if name not in known:
                raise ValueError(f"There is no setting {name!r}. They are: {', '.join(known)}.")
        self.flow, self.settings = flow, settings
        self.levels, self.layout, self.keep_stand_ins = levels, layout, keep_stand_ins
        self.flip, self.validation_fraction, self.first = flip, validation_fraction, first
        self.minutes, self.max_epochs = minutes, max_epochs
        self.device, self.random_state, self.verbose = device, random_state, verbose
        self.checkpoint, self.resume = checkpoint, resume

    @classmethod
    def setting_names(cls) -> list[str]:
        """What it can be made with, but for what belongs to a run."""
        signature = inspect.signature(cls).parameters
        own = [n for n, p in signature.items() if p.kind != p.VAR_KEYWORD and n not in RUN]

        return [*own, *(name for name in more_settings() if name not in own)]

    @classmethod
    def former_setting_names(cls) -> set[str]:
        """What settings were called before; taken with a warning for one more release."""
        return {name for flow in FLOWS for name in former_names(flow)}

    # Fitting

    def fit(self, X: Any, y: object = None, *, on_event: Listener | None = None) -> Self:
        """Fit the density by maximum likelihood.

        Arguments:
            X: Images; an array of them, uint8, (N, H, W) or with channels; a file or folder; or
                the name of a set. Some are held out to choose the best weights by.
            y: Ignored.
            on_event: Called with each event of the training.

        Raises:
            ValueError: if something cannot be as asked, in plain words.
            KeyboardInterrupt: After Ctrl-C, when the best so far has become this density; see
                :meth:`quarflow.QuARDensity.fit`.
        """
        images = self._images(X)
        settings = self._training()
        arguments = {k: v for k, v in self.settings.items() if k not in asdict(settings)}
        chosen = {**image_architecture(images.shape, images.levels), **arguments}
        flow = make_flow(self.flow, chosen, settings.seed)
        train_part, valid_part = hold_out(images, self.validation_fraction, settings.seed)
        home = choose_device(self.device)
        rows = ImageRows(train_part, bool(self.flip), home)
        rows.first = self.first
        asked = {"flip": rows.flip, "validation_fraction": self.validation_fraction}
        with StopSignals():  # passed on in the end, when all that was reached is kept
            with TrainingProgress(verbose=self.verbose, also=on_event) as progress:
                result = train(
                    flow,
                    rows,
                    ImageRows(valid_part, device=home),
                    settings,
                    device=self.device,
                    checkpoint=self.checkpoint,
                    resume=self.resume,
                    identity=asked,
                    on_event=progress,
                )
            D, levels = math.prod(images.shape), images.levels
            self.flow_ = flow.eval()
            self.images_ = ImageConfig(shape=images.shape, levels=levels, name=images.name)
            self.settings_ = {"flow": self.flow, **flow.arguments, **asked, **asdict(settings)}
            self.history_ = [with_bits(record, D, levels) for record in result.history]
            self.metrics_ = {
                "images": len(images),
                "train_images": len(train_part),
                "valid_images": len(valid_part),
                "valid_bits_per_dim": to_bits(result.best, D, levels),
                "parameters": parameter_counts(flow),
                **{name: getattr(result, name) for name in OF_A_RUN},
            }

        return self

    def read(self, path: Place, *, say: Say = quiet) -> dict[str, Any]:
        """The images of a file, a folder, or a set of that name, as arguments of :meth:`fit`.

        Arguments:
            path: See :meth:`fit`.
            say: Called with what is to be told about the images.
        """
        images = self._images(path)
        if images.note:
            say(images.note)

        return {"X": images}

    def _training(self) -> TrainingSettings:
        names = {field.name for field in fields(TrainingSettings)}
        asked = {name: value for name, value in self.settings.items() if name in names}
        epochs = {} if self.max_epochs is None else {"max_epochs": self.max_epochs}
        if self.minutes is not None and not epochs:
            epochs = {"max_epochs": NO_LIMIT}  # the time budget is the only limit
        seed = seed_of(self.random_state)

        return TrainingSettings(**IMAGE_TRAINING | asked | epochs, minutes=self.minutes, seed=seed)

    def _images(self, X: Any, part: Part = "train", levels: int | None = None) -> Images:
        """Images from whatever holds them, of so many levels where it does not say."""
        levels = levels or self.levels
        if isinstance(X, Images):
            return X
        if not isinstance(X, str | os.PathLike):
            return Images(array_images(np.asarray(X), self.layout), None, levels or 256, "X")
        if Path(X).exists() or os.fspath(X) not in SETS:
            return read_images(
                Path(X), levels=levels, layout=self.layout, keep_stand_ins=self.keep_stand_ins
            )
        if self.levels is not None or self.layout != "auto":
            raise ImageError(f"levels and layout are for files, not for the set {X}.")

        return load_set(os.fspath(X), part, keep_stand_ins=self.keep_stand_ins)

    # Using

    def _like(self, X: Any) -> Images:
        """Images to use the fitted density on; of a set, the part to test with."""
        check_fitted(self)

        return self._images(X, "test", self.images_.levels)

    def evaluate(
        self, X: Any, *, draws: int = 1, batch_size: int = 256, seed: int = 0
    ) -> Evaluation:
        """Bits per dimension of images, with their mean and its error.

        Arguments:
            X: Images, as in :meth:`fit`, of the same shape and levels.
            draws, batch_size, seed: See :func:`quarflow.density.image_evaluation.evaluate`.

        Raises:
            ImageError: if the images do not suit the density, or there are none.
        """
        images = self._like(X)

        return evaluate(self.flow_, images, draws=draws, batch_size=batch_size, seed=seed)

    def score_samples(self, X: Any, draws: int = 1, seed: int = 0) -> NDArray[np.float64]:
        """Log-density of each image in [0, 1], in nats, the mean over draws of the noise."""
        return self.evaluate(X, draws=draws, seed=seed).log_prob

    def score(self, X: Any, y: object = None) -> float:
        """Total log-likelihood of the images; :meth:`evaluate` gives bits per dimension."""
        return float(self.score_samples(X).sum())

    def transform(self, X: Any, seed: int = 0) -> NDArray[np.float64]:
        """The noise that images are mapped to, dequantised as for their score, shape (N, D)."""
        z = summed(self.flow_, self._like(X), lambda p, x: p.transform(x), seed=seed)

        return z.flatten(1).numpy()

    def sample(self, n_samples: int = 1, random_state: Any = None) -> NDArray[np.uint8]:
        """New images, uint8, shape (n_samples, C, H, W)."""
        return self.draw(n_samples, seed_of(random_state)).images

    def draw(self, n_samples: int = SHOWN, seed: int = 0) -> ImageSamples:
        """New images that know how to write themselves, and what drawing them took.

        Raises:
            InversionError: if a step could not be inverted.
        """
        check_fitted(self)
        begun = time.perf_counter()
        generator = torch.Generator(next(self.flow_.parameters()).device).manual_seed(seed)
        images, evaluations = self.flow_.sample_images(n_samples, generator=generator)
        seconds = time.perf_counter() - begun

        return ImageSamples(
            images.cpu().numpy(), evaluations.cpu().numpy(), seconds, self.images_.levels
        )

    # Files

    def save(self, path: Place) -> None:
        """Write it as a folder, atomically; see :mod:`quarflow.store`."""
        check_fitted(self)
        save_flow(
            self.flow_,
            path,
            images=self.images_,
            settings=self.settings_,
            metrics=self.metrics_,
            log=self.history_,
        )

    @classmethod
    def load(cls, path: Place, device: str = "auto") -> Self:
        """Read one back; nothing in the folder is executed.

        Raises:
            StoreError: if the folder does not hold a whole, valid image model.
        """
        model = read_model(path)
        if model.config.images is None:
            raise StoreError(f"{os.fspath(path)} does not hold an image model.")
        self = cls(flow=model.config.flow.name, device=device)
        self.flow_ = model.flow.to(choose_device(device))
        self.images_ = model.config.images
        self.settings_, self.metrics_ = model.config.settings, model.metrics
        self.history_ = model.log

        return self

    def score_file(self, path: Place) -> Scores:
        """Number, bits per dimension and log-density of each image of a file, folder or set."""
        return Scores(partial(self._scored, path))

    def _scored(self, path: Place, told: list[str]) -> Generator[Mapping[str, Any], None, None]:
        found = self.evaluate(path, draws=DRAWS)
        bits = found.bits_per_dim
        numbers = np.arange(1, len(bits) + 1, dtype=np.float64)
        yield {"image": numbers, "bits_per_dim": bits, "log_prob": found.log_prob}
        error = "" if found.error is None else f" ± {found.error:.4f}"
        rate = len(bits) / max(found.seconds, 1e-9)
        told.append(
            f"{len(bits):,} images, {found.mean:.4f}{error} bits per dimension, "
            f"{duration(found.seconds)} ({rate:,.0f} images/s)."
        )

    # Showing

    def info(self) -> list[Section]:
        """What is known about it, in sections."""
        check_fitted(self)
        metrics, (C, H, W) = self.metrics_, self.images_.shape
        counts = metrics.get("parameters")
        counts = counts if isinstance(counts, dict) else {}
        facts = [
            ("flow", str(self.settings_.get("flow", type(self.flow_).__name__))),
            ("fitted to", f"{metrics.get('images') or 0:,} images, {self.images_.name}"),
            ("images", f"{W} x {H} pixels, {C} channels, {self.images_.levels} levels"),
            (
                "parameters",
                f"{counts.get('unmasked', 0):,} ({counts.get('total', 0):,} with masked)",
            ),
            ("validation", f"{number(metrics.get('valid_bits_per_dim'))} bits per dimension"),
            *trained(metrics),
        ]
        settings = [(key, typed(value)) for key, value in self.settings_.items()]

        return [Section("Model", facts), Section("Settings", settings), certified(self.flow_)]

    def summary(self) -> list[str]:
        """What it was fitted to and how well, in sentences."""
        metrics, (C, H, W) = self.metrics_, self.images_.shape
        return [
            f"{metrics['images']:,} images of {W} x {H} pixels, {C} channel{'s'[: C > 1]}; "
            f"{metrics['parameters']['unmasked']:,} parameters.",
            f"Validation: {metrics['valid_bits_per_dim']:.4f} bits per dimension, "
            f"after {duration(metrics['seconds'])}.",
        ]

    def report(
        self,
        path: Place,
        X: Any = None,
        *,
        title: str | None = None,
        seed: int = 0,
        say: Say = quiet,
    ) -> Path:
        """Write the page of :func:`quarflow.report.images.write_image_report`.

        Arguments:
            path: The file to write.
            X: Images to compare with, as in :meth:`fit`; best, some it was not fitted to.
            title: Heading of the page.
            seed: Of the samples and of the choice of images where there are too many.
            say: Called with what is to be told about the images.
        """
        from quarflow.report.images import write_image_report  # matplotlib is slow to import

        images = None if X is None else self._like(X)
        if images is not None and images.note:
            say(images.note)

        return write_image_report(
            self, Path(path), images, title=title or "Image model", seed=seed
        )
