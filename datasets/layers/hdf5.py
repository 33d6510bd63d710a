"""Damaged HDF5 files, netCDF among them, noticed before GDAL opens them: its library can crash on such metadata."""

from __future__ import annotations

from typing import Any

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def require_whole_hdf5(path: str) -> None:
    """Reads the metadata of an HDF5 file through h5py, where it is installed; does nothing for other files.

    Args:
        path: of a file, or what else GDAL opens.

    Raises:
        OSError: groups, variables or attributes cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            is_hdf5 = stream.read(len(_SIGNATURE)) == _SIGNATURE
        if not is_hdf5:
            return
        import h5py
    except (OSError, ImportError):  # a remote file, a folder, a subdataset; h5py is optional
        return
    try:
        with h5py.File(path, "r") as file:
            _read_attributes("", file)
            file.visititems(_read_attributes)
    except (OSError, RuntimeError, KeyError) as error:
        raise OSError(f"its HDF5 metadata cannot be read: {error}") from error


def _read_attributes(_: str, item: Any) -> None:
    for name in item.attrs:
        try:
            item.attrs[name]
        except (TypeError, ValueError):  # a type that numpy does not have
            continue
