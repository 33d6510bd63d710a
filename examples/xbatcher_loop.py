"""A training loop of your own: xarray and xbatcher give the tiles, this project the model and its losses.

    python -m examples.xbatcher_loop --epochs 3

trains on the sample survey as a zarr store. For the same tiles, statistics and masks its losses are those of
main_pretrain. It leaves out what main_pretrain adds: tiles at edges and between those of xbatcher's lattice, held-out
ground and scores, layers of several pixel sizes, learning-rate schedule, checkpoints, several processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
import xbatcher
from torch import Tensor

from datasets.synthetic.sample_survey import default_survey
from models_mae_group_channels import build_model

SCALES = (1, 2, 4)
FINEST = SCALES[-1]  # pixels of the store along the edge of a base pixel
SIZE, PATCH, BATCH = 48, 8, 8  # base pixels of a tile and of a patch; tiles in a batch


def as_zarr(survey: Path) -> Path:
    """Write gravity (200 m) and magnetics (100 m) to one store of 100 m, NaN = nodata, unless it is there."""
    path = survey.with_name(survey.name + ".zarr")
    if not path.exists():
        gravity, magnetics = (
            xr.open_dataset(survey / name, engine="rasterio").band_data[0] for name in ("gravity.tif", "magnetics.tif")
        )
        gravity = magnetics.copy(data=np.kron(gravity.values, np.ones((2, 2), np.float32)))
        unfinished = path.with_suffix(".unfinished")
        store = xr.Dataset({"gravity": gravity, "magnetics": magnetics}).drop_encoding().drop_vars("band")
        store.to_zarr(unfinished, mode="w")
        unfinished.rename(path)
    return path


def batches(store: xr.Dataset, *, order: np.random.Generator, least_valid: float = 0.5) -> Iterator[Tensor]:
    """Yield shuffled batches of the store's tiles, (N, layers, rows, cols) float32, NaN = invalid."""
    edge = SIZE * FINEST
    tiles = xbatcher.BatchGenerator(store, input_dims={"y": edge, "x": edge}, preload_batch=False)
    found: list[np.ndarray] = []
    for number in order.permutation(len(tiles)):
        tile = tiles[int(number)].to_dataarray().values.astype(np.float32)
        if np.isfinite(tile).mean() >= least_valid:
            found.append(tile)
        if len(found) == BATCH:
            yield torch.from_numpy(np.stack(found))
            found = []


def pyramid(tiles: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Means over valid pixels at every scale, (N, C, sH, sW), 0 where there is none; and where there is one."""
    known = torch.isfinite(tiles)
    weights = [F.avg_pool2d(known.float(), FINEST // s) for s in SCALES]
    totals = [F.avg_pool2d(torch.where(known, tiles, 0.0), FINEST // s) for s in SCALES]
    valid = [weight > 1e-4 for weight in weights]
    return [torch.where(ok, t / w, 0.0) for t, w, ok in zip(totals, weights, valid, strict=True)], valid


def detail_of(tiles: Tensor) -> list[float]:
    """Standard deviation of each layer's pixels about the mean of their base pixel: what stems are scaled by."""
    base = pyramid(tiles)[0][0].repeat_interleave(FINEST, 2).repeat_interleave(FINEST, 3)
    return [float(torch.nanmean(part.square()).sqrt()) for part in (tiles - base).unbind(1)]


def losses(model: Any, tiles: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss at the base scale, and the mean over finer ones, of normalised tiles; noise decides the masks."""
    (imgs, *imgs_up), (valid, *valid_up) = pyramid(tiles)
    return model(imgs, imgs_up, valid=valid, valid_up=valid_up, noise=noise, native=[tiles])[:2]


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Train, and return the mean loss of every epoch."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--store", help="zarr store of layers on one grid (the sample survey)")
    parser.add_argument("--model", default="tiny", help="tiny, small, base or large (tiny)")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs (3)")
    args = parser.parse_args(argv)
    store = xr.open_zarr(args.store or as_zarr(default_survey())).drop_vars("spatial_ref", errors="ignore").load()
    store = (store - store.mean()) / store.std()
    torch.manual_seed(0)
    order, count = np.random.default_rng(0), len(store.data_vars)
    channels = {"in_chans": count, "channel_groups": [list(range(count))], "scales": SCALES, "scale_heads": "subpixel"}
    stem = {
        "stem": "native",
        "native_scales": [FINEST] * count,
        "detail_scales": detail_of(next(batches(store, order=order))),
    }
    model = build_model(args.model, img_size=SIZE, patch_size=PATCH, **channels, **stem)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    history = []
    for epoch in range(1, args.epochs + 1):
        found = []
        for tiles in batches(store, order=order):
            loss, finer_loss = losses(model, tiles)
            optimizer.zero_grad()
            total = 0.6 * loss + 0.4 * finer_loss
            total.backward()
            optimizer.step()
            found.append(total.item())
        history.append(float(np.mean(found)))
        print(f"epoch {epoch} of {args.epochs}: loss {history[-1]:.3f} in {len(found)} updates")
    return history


if __name__ == "__main__":
    main()
