"""Sine-cosine embeddings of position and of the group number, and their interpolation to another grid.

References: Vaswani et al. 2017, section 3.5; He et al. 2022 (MAE) for two dimensions; Cong et al. 2022 (SatMAE) for the
division between position and group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_1d(positions: Tensor, width: int) -> Tensor:
    """Embed numbers as [sin(x w_k), cos(x w_k)] with w_k = 10000^(-k / (width / 2)).

    Args:
        positions: (M,) numbers.
        width: length of the embedding, even.

    Returns:
        (M, width) float32, computed in float64.

    Raises:
        ValueError: the width is not even.
    """
    if width % 2:
        raise ValueError(f"sine-cosine embedding of width {width}: expected an even number")
    half = width // 2
    device = positions.device
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = positions.to(torch.float64)[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(torch.float32)


def sincos_2d(grid_size: int, width: int) -> Tensor:
    """Embed the cells of a square grid, row by row: half of the width for the column (x), half for the row (y).

    Args:
        grid_size: number of rows and of columns.
        width: length of the embedding, a multiple of four.

    Returns:
        (grid_size * grid_size, width) float32.

    Raises:
        ValueError: the width is not a multiple of four.
    """
    if width % 4:
        raise ValueError(f"2-D sine-cosine embedding of width {width}: expected a multiple of 4")
    steps = torch.arange(grid_size)
    rows, cols = torch.meshgrid(steps, steps, indexing="ij")
    return torch.cat([sincos_1d(cols.flatten(), width // 2), sincos_1d(rows.flatten(), width // 2)], dim=1)


def resize_positions(embedding: Tensor, grid_size: int) -> Tensor:
    """Resize a position embedding to a grid of another size by bicubic interpolation.

    Args:
        embedding: (1, 1+L, width); the first row belongs to the class token and is unchanged, the others form a square
            grid.
        grid_size: number of rows and of columns of the new grid.

    Returns:
        (1, 1 + grid_size * grid_size, width); the embedding itself if the grid has that size.

    Raises:
        ValueError: the rows are not a square grid and a class token.
    """
    edge = round((embedding.shape[1] - 1) ** 0.5)
    if edge * edge != embedding.shape[1] - 1:
        raise ValueError(
            f"position embedding of {embedding.shape[1]} rows: expected a square number plus one for the class token"
        )
    if edge == grid_size:
        return embedding
    grid = embedding[:, 1:].unflatten(1, (edge, edge)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
