"""`quarflow paper table1` and `table2`: the image experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quarflow.cli.common import names_of
from quarflow.cli.paper import Output, Seed, folder

__all__ = ["table1", "table2"]

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def table1(
    dataset: Annotated[str, typer.Option(help="digits (built in), mnist or cifar10.")] = "digits",
    model: Annotated[str, typer.Option(help="quar, residual, or both: quar,residual.")] = "quar",
    setting: Annotated[str, typer.Option(help="paper (its architecture), or best (ours).")] = (
        "best"
    ),
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images; 300 by default.", min=1)
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time limit of a model.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the files of MNIST or CIFAR-10.")
    ] = None,
    seed: Seed = 0,
    draws: Annotated[int, typer.Option(help="Draws of noise per test image.", min=1)] = 4,
    test_images: Annotated[
        int | None, typer.Option(help="Score only the first so many.", min=2)
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, or bf16 for training.")] = "float32",
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    device: Device = "auto",
    output: Output = None,
) -> None:
    """Bits per dimension on images, beside the paper's row; samples as a picture.

    \b
    Example:
      quarflow paper table1 --dataset digits --minutes 2
      quarflow paper table1 --dataset mnist --data DIR --model quar,residual --minutes 60
    """
    from quarflow.experiments.paper.table1 import table1 as make

    make(
        folder(output, "table1"),
        dataset,
        names_of(model, "--model") or [],
        setting,
        epochs,
        minutes,
        data,
        seed,
        draws,
        test_images,
        precision,
        compile,
        device,
    )


def table2(
    size: Annotated[str, typer.Option(help="paper (for a GPU), or small.")] = "small",
    repeats: Annotated[int, typer.Option(help="Rounds of timing.", min=1)] = 5,
    precision: Annotated[
        str | None, typer.Option(help="float32, tf32 or bf16; tf32 on CUDA by default.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    output: Output = None,
) -> None:
    """Time and memory of QuAR against Residual, and of QuAR the paper's own way.

    \b
    Example:
      quarflow paper table2 --size small
    """
    from quarflow.experiments.paper.table2 import table2 as make

    make(folder(output, "table2"), size, repeats, precision, compile, device, seed)
