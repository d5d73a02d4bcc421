"""Table 2: time and memory of QuAR and Residual flows, and of QuAR the paper's own way."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from quarflow.density.image_fit import make_flow, parameter_counts
from quarflow.experiments.paper.forecast import WORTH, span
from quarflow.experiments.paper.measure import PRECISIONS, Workload, peak_memory
from quarflow.experiments.paper.run import Numbers, RecipeError, Run, one_of
from quarflow.experiments.timing import in_turn
from quarflow.training.device import choose_device

__all__ = ["COLUMNS", "PAPER", "SIZES", "table2"]

# Same width, same steps. "small" is what two CPU cores do in some minutes.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {"shape": [3, 32, 32], "scales": 3, "transforms": 16, "hidden_channels": 528},
    "small": {"shape": [3, 16, 16], "scales": 3, "transforms": 2, "hidden_channels": 96},
}
BATCH = {"train": 96, "test": 256}  # the paper's
TERMS = 20  # of the log-det of a residual flow when testing, as the paper says

# Seconds per batch and GB, on a GPU that the paper does not name.
PAPER: dict[str, dict[str, dict[str, float]]] = {
    "train": {"residual": {"seconds": 6.64, "GB": 27.8}, "quar": {"seconds": 2.85, "GB": 17.8}},
    "test": {"residual": {"seconds": 39.4, "GB": 25.3}, "quar": {"seconds": 1.38, "GB": 21.0}},
}

# residual: with the memory reduction and the backward-in-forward that the paper used too.
# paper's way: dense masked convolutions, two forward evaluations, autograd through both.
COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": (
        "ImageResidualFlow",
        {"logdet": {"memory_saving": True, "neumann_gradient": True}},
    ),
    "quar": ("ImageQuAR", {}),
    "paper's way": (
        "ImageQuAR",
        {"implementation": "paper", "recompute": False, "norm": "center", "activation": "elu"},
    ),
}
TITLES = {"residual": "Residual", "quar": "QuAR", "paper's way": "QuAR, the paper's way"}
Phase = Literal["train", "test"]
PHASES: tuple[Phase, ...] = ("train", "test")


def table2(
    folder: Path,
    size: str = "small",
    repeats: int = 5,
    precision: str | None = None,
    compile: bool = False,
    device: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> Numbers:
    """Measure every column in training and in test; returns the numbers.

    Times are medians over rounds in which the columns take turns; memory is that of a process of
    its own for each.

    Arguments:
        folder: For everything that is written.
        size: ``paper`` (CIFAR-10's, for a GPU) or ``small``.
        repeats: Rounds.
        precision: ``float32``, ``tf32`` or ``bf16``; by default tf32 on CUDA, where it is what
            convolutions use anyway, and float32 elsewhere.
        compile: Whether training goes through ``torch.compile``.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Of weights, images and probes.
        quiet: Print nothing.

    Raises:
        ValueError: if an argument is out of its range.
    """
    one_of("size", [size], SIZES)
    if repeats < 1:
        raise RecipeError(f"repeats must be at least 1, not {repeats}.")
    device = choose_device(device)
    precision = precision or ("tf32" if device == "cuda" else "float32")
    one_of("precision", [precision], PRECISIONS)
    settings = {
        "size": size,
        "repeats": repeats,
        "precision": precision,
        "compile": compile,
        "device": device,
        "seed": seed,
        "batch": BATCH,
        "terms": TERMS,
        **SIZES[size],
    }
    run = Run("table2", folder, settings, quiet=quiet)
    numbers: Numbers = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "parameters": {
            name: parameter_counts(make_flow(flow, SIZES[size] | extra, seed))
            for name, (flow, extra) in COLUMNS.items()
        },
        "paper": PAPER,
    }
    for phase in PHASES:
        numbers[phase] = _phase(run, phase)
    numbers["ratios"] = {phase: _ratios(phase, numbers[phase]) for phase in PHASES}
    _print(run, numbers)
    run.finish(numbers)

    return numbers


def _phase(run: Run, phase: Phase) -> Numbers:
    """Memory and seconds of every column."""
    # memory first: processes of their own, with the device to themselves
    memory = {
        name: run.part(
            f"{phase}-memory-{name.replace(' ', '-').replace(chr(39), '')}",
            partial(_memory, run, phase, name),
        )
        for name in COLUMNS
    }
    seconds = run.part(f"{phase}-seconds", partial(_seconds, run, phase))

    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "all_seconds": seconds[name],
            "GB": memory[name]["bytes"] / 1e9,
            "baseline_GB": memory[name]["baseline_bytes"] / 1e9,
        }
        for name in COLUMNS
    }


def _ratios(phase: Phase, found: Numbers) -> Numbers:
    """How many times what QuAR takes the others do, in seconds and GB."""

    def to_quar(name: str, key: str) -> float | None:
        return found[name][key] / found["quar"][key] if found["quar"][key] > 0 else None

    return {
        key: {
            "residual / quar": to_quar("residual", key),
            "paper's way / quar": to_quar("paper's way", key),
            "in the paper": PAPER[phase]["residual"][key] / PAPER[phase]["quar"][key],
        }
        for key in ("seconds", "GB")
    }


def _workload(run: Run, phase: Phase, name: str) -> dict[str, Any]:
    flow, extra = COLUMNS[name]
    asked = run.settings
    arguments = {**SIZES[asked["size"]], **extra}
    if phase == "test" and flow == "ImageResidualFlow":
        arguments |= {"logdet": {"mode": "truncated"}, "eval_terms": TERMS}

    return {
        "flow": flow,
        "arguments": arguments,
        "phase": phase,
        "batch_size": BATCH[phase],
        "precision": asked["precision"],
        "device": asked["device"],
        "seed": asked["seed"],
        # dense kernels under autograd are the paper's way, which knew no compiler
        "compile": asked["compile"] and name != "paper's way",
    }


def _seconds(run: Run, phase: Phase, folder: Path) -> Numbers:
    torch.manual_seed(run.settings["seed"])  # probes and numbers of terms
    works = {name: Workload(**_workload(run, phase, name)) for name in COLUMNS}
    repeats = run.settings["repeats"]
    round_ = sum(t for (t,) in in_turn(works, 1, warm_up=0).values())  # to warm up
    if round_ * repeats > WORTH:
        run.say(f"{phase}: {repeats} rounds take about {span(round_ * repeats)}")
    seconds = in_turn(works, repeats, warm_up=0)
    works.clear()
    if run.settings["device"] == "cuda":
        torch.cuda.empty_cache()

    return dict(seconds)


def _memory(run: Run, phase: Phase, name: str, folder: Path) -> Numbers:
    return peak_memory(**_workload(run, phase, name))


def _print(run: Run, numbers: Numbers) -> None:
    rows: list[list[object]] = []
    for phase, title in (("train", "train, batch 96"), ("test", "test, batch 256")):
        for key, unit, digits in (("GB", "GB", 2), ("seconds", "s", 3)):
            ratio = numbers["ratios"][phase][key]
            rows.append(
                [
                    f"{title}, {unit}",
                    *(f"{numbers[phase][name][key]:.{digits}f}" for name in COLUMNS),
                    _times(ratio["residual / quar"]),
                    _times(ratio["in the paper"]),
                    _times(ratio["paper's way / quar"]),
                ]
            )
    run.table(
        f"Table 2: {run.settings['size']} size, {numbers['device']}, {run.settings['precision']}",
        [
            "",
            *TITLES.values(),
            "Residual / QuAR",
            "in the paper",
            "paper's way / QuAR",
        ],
        rows,
    )


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
