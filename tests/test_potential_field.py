"""Fields of slabs against the closed formulas of a rectangular prism, and against what is known on paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.synthetic.potential_field import Wavenumbers

CELL_M = 100.0
SIZE = 96
Array = NDArray[np.float64]
INCLINATION_DEG, DECLINATION_DEG, FIELD_NT = -50.0, 25.0, 50_000.0
# A prism along the cells' edges: columns 40 to 60, rows 30 to 46; the origin is the south-west corner.
ROWS, COLS = slice(30, 46), slice(40, 60)
EAST, NORTH, DEPTH = (4000.0, 6000.0), ((SIZE - 46) * 100.0, (SIZE - 30) * 100.0), (200.0, 1500.0)


def slab_gravity(
    density: Array, *, cell_m: float, top_m: float, bottom_m: float, pad_cells: int | None = None
) -> Array:
    """Gravity of one slab."""
    plane = Wavenumbers(density.shape, cell_m=cell_m, pad_cells=pad_cells)
    return plane.to_grid(plane.gravity(density, top_m=top_m, bottom_m=bottom_m))


def magnetics(
    rock: Array,
    *,
    cell_m: float,
    top_m: float,
    bottom_m: float,
    pad_cells: int | None = None,
    inclination_deg: float = INCLINATION_DEG,
) -> Array:
    """Total-field anomaly of one slab."""
    plane = Wavenumbers(rock.shape, cell_m=cell_m, pad_cells=pad_cells)
    field = plane.earth_field(inclination_deg, DECLINATION_DEG, FIELD_NT)
    return plane.to_grid(plane.magnetics(rock, top_m=top_m, bottom_m=bottom_m) * field)


def body(value: float) -> Array:
    grid = np.zeros((SIZE, SIZE))
    grid[ROWS, COLS] = value
    return grid


def centres() -> tuple[Array, Array]:
    steps = (np.arange(SIZE) + 0.5) * CELL_M
    east, north = np.meshgrid(steps, steps[::-1])
    return east, north


def corners() -> Iterator[tuple[int, Array, Array, float]]:
    """Sign of each corner in the triple integral, and its place seen from each cell: east, north, down."""
    east, north = centres()
    for (i, x), (j, y), (k, z) in itertools.product(enumerate(EAST), enumerate(NORTH), enumerate(DEPTH)):
        yield (-1) ** (i + j + k + 1), x - east, y - north, z


def prism_gravity(density: float) -> Array:
    """Closed formula of the prism's vertical attraction, in mGal (Nagy 1966)."""
    total = np.zeros((SIZE, SIZE))
    for sign, x, y, z in corners():
        r = np.sqrt(x * x + y * y + z * z)
        total -= sign * (x * np.log(y + r) + y * np.log(x + r) - z * np.arctan2(x * y, z * r))
    return total * 6.67430e-11 * density * 1000 * 1e5


def prism_magnetics(susceptibility: float) -> Array:
    """Closed formula of the prism's induced anomaly, in nT: second derivatives of its potential."""
    inclination, declination = math.radians(INCLINATION_DEG), math.radians(DECLINATION_DEG)
    e = math.cos(inclination) * math.sin(declination)
    n = math.cos(inclination) * math.cos(declination)
    d = math.sin(inclination)
    total = np.zeros((SIZE, SIZE))
    for sign, x, y, z in corners():
        r = np.sqrt(x * x + y * y + z * z)
        diagonal = -e * e * np.arctan2(y * z, x * r) - n * n * np.arctan2(x * z, y * r)
        diagonal -= d * d * np.arctan2(x * y, z * r)
        mixed = e * n * np.log(z + r) + e * d * np.log(y + r) + n * d * np.log(x + r)
        total += sign * (diagonal + 2 * mixed)
    return total * susceptibility * FIELD_NT / (4 * math.pi)


def test_gravity_of_a_prism() -> None:
    expected = prism_gravity(0.3)
    field = slab_gravity(body(0.3), cell_m=CELL_M, top_m=DEPTH[0], bottom_m=DEPTH[1])
    # The padded transform sees the body repeated at twice the array's size: 0.2 % of the peak, positive.
    np.testing.assert_allclose(field, expected, atol=0.005 * expected.max())
    padded = slab_gravity(body(0.3), cell_m=CELL_M, top_m=DEPTH[0], bottom_m=DEPTH[1], pad_cells=8 * SIZE)
    np.testing.assert_allclose(padded, expected, atol=0.0005 * expected.max())


def test_magnetics_of_a_prism() -> None:
    expected = prism_magnetics(0.02)
    field = magnetics(body(0.02), cell_m=CELL_M, top_m=DEPTH[0], bottom_m=DEPTH[1])
    assert expected.max() > 250 and expected.min() < -100  # a dipole-like pair, not a bump
    np.testing.assert_allclose(field, expected, atol=0.005 * expected.max())


def test_vertical_field_magnetises_symmetrically_and_southern_sign_does_not_matter() -> None:
    down, up = (
        magnetics(body(0.02), cell_m=CELL_M, top_m=200, bottom_m=1500, inclination_deg=inclination)
        for inclination in (90.0, -90.0)
    )
    np.testing.assert_allclose(down, up, atol=1e-3)
    rows, cols = ROWS.start + ROWS.stop - 1, COLS.start + COLS.stop - 1  # mirrored about the body's middle
    np.testing.assert_allclose(down[25, 35], down[rows - 25, cols - 35], atol=0.5)
    assert down[38, 50] > 0


def test_infinite_slab_is_the_bouguer_plate() -> None:
    """2 pi G rho t is 0.04193 mGal for each metre and g/cm3, at any depth; it has no magnetic field."""
    plate = np.full((16, 24), 2.0)
    for top_m in (10.0, 500.0):
        field = slab_gravity(plate, cell_m=50, top_m=top_m, bottom_m=top_m + 100, pad_cells=0)
        np.testing.assert_allclose(field, 2.0 * 100 * 0.041935, rtol=1e-4)
    anomaly = magnetics(plate, cell_m=50, top_m=100, bottom_m=200, pad_cells=0)
    np.testing.assert_allclose(anomaly, 0, atol=1e-3)


@pytest.mark.parametrize("field", [slab_gravity, magnetics])
def test_fields_add_up(field: Callable[..., Array]) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 20, 32))
    depths = {"cell_m": 100.0, "top_m": 150.0, "bottom_m": 900.0}
    together, apart = (
        field(3 * first + second, **depths),
        3 * field(first, **depths) + field(second, **depths),
    )
    scale = np.abs(together).max()
    np.testing.assert_allclose(together, apart, atol=1e-5 * scale)
    halves = field(first, **{**depths, "bottom_m": 400.0}) + field(first, **{**depths, "top_m": 400.0})
    np.testing.assert_allclose(field(first, **depths), halves, atol=1e-5 * scale)
    assert together.shape == (20, 32) and together.dtype == np.float32


def test_an_odd_number_of_columns_keeps_its_shape() -> None:
    assert slab_gravity(np.ones((5, 7)), cell_m=10, top_m=5, bottom_m=20).shape == (5, 7)


@pytest.mark.parametrize(("top_m", "bottom_m"), [(0, 100), (-5, 100), (200, 100), (100, 100), (math.nan, 100)])
def test_depths_out_of_order_are_refused(top_m: float, bottom_m: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < top_m < bottom_m"):
        slab_gravity(np.ones((4, 4)), cell_m=100, top_m=top_m, bottom_m=bottom_m)
    with pytest.raises(ValueError, match="expected 0 < top_m < bottom_m"):
        magnetics(np.ones((4, 4)), cell_m=100, top_m=top_m, bottom_m=bottom_m)


def test_cell_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="cell_m is 0, expected a positive length"):
        slab_gravity(np.ones((4, 4)), cell_m=0, top_m=1, bottom_m=2)
