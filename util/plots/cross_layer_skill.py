"""Figure of cross-layer skill: how well each layer is predicted from each group."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def matrix_figure(
    matrices: Sequence[tuple[str, Sequence[Sequence[float]]]], *, rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Draws matrices of skill side by side, with colours from -1 to 1 and numbers in the cells.

    Args:
        matrices: title and values of each, rows by columns; cells with NaN are empty.
        rows: names of the rows.
        columns: names of the columns.
    """
    figure = Figure(figsize=(1.6 + len(matrices) * (0.9 + 0.9 * len(columns)), 1.8 + 0.5 * len(rows)))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    for axis, (title, values) in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True):
        drawn = axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if value == value:
                    axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=figure.axes, label="skill against the mean of the layer", fraction=0.04)
    return figure
