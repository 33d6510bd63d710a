"""Gravity and magnetic fields of horizontal slabs of laterally varying rocks, by the Fourier transform.

A slab is a grid of square cells, each a vertical prism of uniform density or susceptibility between two depths. Its
field is the transform of the rock property times a closed-form filter. A stack of slabs models geology that changes
with depth, at the cost of one transform per slab.

References:
    Blakely (1995), Potential Theory in Gravity and Magnetic Applications, section 11.1. He uses point values on the
    grid; here a value fills its cell, hence the two sincs: a body along cell edges is exactly a prism.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

FloatArray = NDArray[np.float32]
ComplexArray = NDArray[np.complex64]

GRAVITATION = 6.67430e-11  # m3 kg-1 s-2
MGAL_PER_SI = 1e5
KG_M3_PER_G_CM3 = 1000.0


class Wavenumbers:
    """The wavenumbers of a padded grid, and spectra of slabs on it, to be added up before `to_grid`.

    Args:
        shape: (rows, cols) of the grid; row 0 is north.
        cell_m: cell edge in metres.
        pad_cells: zeros added on two sides against wrap-around; by default as many as the grid has cells.

    Raises:
        ValueError: the cell size is not positive.
    """

    def __init__(self, shape: tuple[int, ...], *, cell_m: float, pad_cells: int | None = None) -> None:
        if not cell_m > 0:
            raise ValueError(f"cell_m is {cell_m}, expected a positive length in metres; correct it")
        self.shape = (shape[0], shape[1])
        rows, cols = (fft.next_fast_len(n + (n if pad_cells is None else pad_cells), real=True) for n in self.shape)
        self.padded_shape = (rows, cols)
        north = -2 * np.pi * fft.fftfreq(rows, cell_m)  # rows run southwards
        east = 2 * np.pi * fft.rfftfreq(cols, cell_m)
        self.k_north, self.k_east = north.astype(np.float32)[:, None], east.astype(np.float32)[None, :]
        self.k = np.hypot(self.k_north, self.k_east)
        self.k_nonzero = np.where(self.k > 0, self.k, np.float32(1))
        sincs = np.outer(np.sinc(north * cell_m / (2 * np.pi)), np.sinc(east * cell_m / (2 * np.pi)))
        self.cell = sincs.astype(np.float32)

    def gravity(self, density: NDArray[np.floating], *, top_m: float, bottom_m: float) -> ComplexArray:
        """Spectrum of a slab's vertical attraction, in mGal, positive downwards; k = 0 is the infinite slab.

        Args:
            density: (rows, cols) density contrast in g/cm3; zero outside the array.
            top_m: depth of the slab's top below the observation plane in metres, > 0.
            bottom_m: depth of its bottom in metres, > top_m.

        Raises:
            ValueError: depths not positive, or out of order.
        """
        _check_depths(top_m, bottom_m)
        thickness = np.float32(bottom_m - top_m)
        depth_filter = np.where(self.k > 0, -np.expm1(-self.k * thickness) / self.k_nonzero, thickness)
        unit = np.float32(2 * math.pi * GRAVITATION * KG_M3_PER_G_CM3 * MGAL_PER_SI)
        return self._transform(density) * (unit * self.cell * depth_filter * np.exp(-self.k * np.float32(top_m)))

    def magnetics(self, susceptibility: NDArray[np.floating], *, top_m: float, bottom_m: float) -> ComplexArray:
        """Spectrum of a slab of (rows, cols) SI susceptibilities, to be multiplied by `earth_field`; see `gravity`."""
        _check_depths(top_m, bottom_m)
        decay = np.exp(-self.k * np.float32(top_m)) - np.exp(-self.k * np.float32(bottom_m))
        return self._transform(susceptibility) * (self.cell * decay)

    def earth_field(self, inclination_deg: float, declination_deg: float, field_nt: float) -> ComplexArray:
        """Factor that turns the spectra of `magnetics` into total-field anomalies in nT, without remanence.

        Half the Earth's field times its direction twice: once as it induces, once as the component that is measured.

        Args:
            inclination_deg: dip of the Earth's field, positive downwards.
            declination_deg: azimuth of the Earth's field, positive east of grid north.
            field_nt: strength of the Earth's field in nT.
        """
        inclination, declination = math.radians(inclination_deg), math.radians(declination_deg)
        north = math.cos(inclination) * math.cos(declination)
        east = math.cos(inclination) * math.sin(declination)
        direction = math.sin(inclination) + 1j * (self.k_north * north + self.k_east * east) / self.k_nonzero
        return (0.5 * field_nt * direction * direction).astype(np.complex64)

    def to_grid(self, spectrum: ComplexArray) -> FloatArray:
        """(rows, cols) field at the cell centres, from its spectrum, without the padding."""
        grid = fft.irfft2(spectrum, s=self.padded_shape, workers=2)
        return np.ascontiguousarray(grid[: self.shape[0], : self.shape[1]], dtype=np.float32)

    def _transform(self, values: NDArray[np.floating]) -> ComplexArray:
        return fft.rfft2(np.asarray(values, dtype=np.float32), s=self.padded_shape, workers=2)


def _check_depths(top_m: float, bottom_m: float) -> None:
    if not 0 < top_m < bottom_m:
        raise ValueError(
            f"slab from {top_m} m to {bottom_m} m: expected 0 < top_m < bottom_m, in metres of depth; correct them"
        )
