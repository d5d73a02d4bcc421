"""The fitted estimator as the report sees it: plain float64 arrays in, plain arrays out."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from quarflow.data.finite import check_finite
from quarflow.data.frames import frame_of
from quarflow.data.values import is_frame, pick_columns, read_values
from quarflow.report.calibration import normal_scores
from quarflow.report.template import ReportError


class Model:
    """Wraps a fitted ``QuARDensity``: names, context and frames are settled here, once."""

    def __init__(self, estimator: Any) -> None:
        if getattr(estimator, "columns_", None) is None:
            raise ReportError("The estimator is not fitted; call fit before writing a report.")
        self.estimator = estimator
        self.columns = estimator.columns_
        self.names: list[str] = list(self.columns.names)
        self.steps: list[float | None] = [column.step for column in self.columns.columns]
        self.lattices = [
            (column.grid, column.origin) if column.grid else None
            for column in self.columns.columns
        ]
        self.context_columns = getattr(estimator, "context_columns_", None)
        self.conditional = self.context_columns is not None
        self.context_names: list[str] = (
            [] if self.context_columns is None else list(self.context_columns.names)
        )

    # -- what comes in

    def rows(self, X: Any, columns: Any, what: str) -> np.ndarray:
        """``X`` as float64 (N, D) in the model's column order; frames go by name.

        Arguments:
            X: An array or a frame.
            columns: The ``Columns`` it must have.
            what: The argument it was, for messages.
        """
        if is_frame(X):
            missing = [name for name in columns.names if name not in list(X.columns)]
            if missing:
                raise ReportError(f"{what} has no column {missing[0]!r}, which the model needs.")
            X = pick_columns(X, columns.names, what)
        values, _ = read_values(X, what)
        wide = len(columns.names)
        if values.ndim != 2 or values.shape[1] != wide:
            raise ReportError(f"{what} must have shape (N, {wide}), not {values.shape}.")
        if len(values) == 0:
            raise ReportError(f"{what} has no rows.")
        check_finite(values, columns.names, f"column of {what}", ReportError)
        return values

    def framed(self, values: np.ndarray) -> Any:
        """Rows the way the estimator was fitted: as a frame if it knows names."""
        if not hasattr(self.estimator, "feature_names_in_"):
            return values
        return frame_of(self.names, values)

    # -- what comes out

    def log_prob(self, values: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Log-densities (N,) in the data's own units."""
        return np.asarray(self.estimator.score_samples(self.framed(values), context=context))

    def sample(self, count: int, seed: int, context: np.ndarray | None) -> np.ndarray:
        """Samples (count, D); of a conditional model one for each row of ``context``.

        Arguments:
            count: How many.
            seed: Of the samples.
            context: Rows (count, C), of a conditional model.
        """
        if context is None:
            return np.asarray(self.estimator.sample(count, random_state=seed))
        return np.asarray(self.estimator.sample(count, random_state=seed, context=context))

    def latents(self, values: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Latents z (N, D)."""
        return np.asarray(
            self.estimator.transform(self.framed(values), context=context), dtype=np.float64
        )

    def inverse(self, z: np.ndarray, context: np.ndarray | None) -> np.ndarray:
        """Rows (N, D) for latents."""
        return np.asarray(self.estimator.inverse_transform(z, context=context), dtype=np.float64)

    def spread_out(self, values: np.ndarray, seed: int) -> np.ndarray:
        """Rows with the noise of training on discrete columns, so that latents can fit."""
        if not any(self.steps):
            return values
        generator = torch.Generator().manual_seed(seed)
        return np.asarray(self.columns.dequantise(torch.as_tensor(values), generator).numpy())

    def normal_scores(self, z: np.ndarray) -> np.ndarray:
        """Latents as numbers that are standard normal if the model fits."""
        base = self.estimator.flow_.base
        df = getattr(base() if callable(base) else base, "df", None)
        if isinstance(df, torch.Tensor):
            df = df.detach().cpu().double().numpy()
        return normal_scores(z, df)

    # -- the flow underneath

    def _standard(self, values: np.ndarray, columns: Any) -> torch.Tensor:
        like = next(self.estimator.flow_.parameters())
        return columns.transform()(torch.as_tensor(values, dtype=torch.float64)).to(like)

    def _context(self, context: np.ndarray | None) -> torch.Tensor | None:
        return None if context is None else self._standard(context, self.context_columns)

    def certificate(self, values: np.ndarray | None, context: np.ndarray | None) -> list[dict]:
        """Per step: sigma, certified bound, and the largest abs(d) measured on rows."""
        x = None if values is None else self._standard(values, self.columns)
        found = self.estimator.flow_.certificate(x, self._context(context))
        return [
            {
                "step": int(entry.step) + 1,
                "sigma": float(entry.sigma),
                "bound": float(entry.bound),
                "measured": None if entry.measured is None else float(entry.measured),
            }
            for entry in found
        ]

    @torch.no_grad()
    def sweeps(self, z: np.ndarray, context: np.ndarray | None) -> list[dict]:
        """Per step: the sweeps the solver took and the residual it left, to invert ``z``."""
        flow = deepcopy(self.estimator.flow_).double()  # as the estimator samples
        given = self._context(context)
        at = torch.as_tensor(z).to(next(flow.parameters()))
        p = flow(None if given is None else given.double())
        return [
            {
                "median": float(np.median(solution.iterations.cpu().numpy())),
                "most": int(solution.iterations.max()),
                "residual": float(solution.residual.max()),
            }
            for solution in p.transform.invert(at)[1]
        ]
