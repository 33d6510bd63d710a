"""How long a netCDF-3 file is by its header: GDAL reads zeros, or other variables' values, where it is cut short.

References: "File Format Specifications" of the NetCDF User's Guide, classic format and its 64-bit variants.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
# Longest header that is read; real ones have kilobytes.
_HEADER_BYTES = 2**24


def is_classic_netcdf(path: Path) -> bool:
    """Whether a file is netCDF-3, of 32 or 64 bits."""
    with open(path, "rb") as stream:
        head = stream.read(4)
    return head[:3] == b"CDF" and head[3:] in (b"\x01", b"\x02", b"\x05")


def length_of_classic_netcdf(path: Path) -> int:
    """Bytes up to the end of the last variable; of a header that is cut short itself, more than the file has."""
    with open(path, "rb") as stream:
        try:
            return _Header(stream).end()
        except (struct.error, KeyError, IndexError):  # it ends within the header
            return path.stat().st_size + 1


class _Header:
    """Reads numbers, names and lists in order."""

    def __init__(self, stream: BinaryIO) -> None:
        data = stream.read(_HEADER_BYTES)
        self._data, self._place = data, 4
        version = data[3]
        self._count, self._offset = (">Q" if version == 5 else ">I"), (">I" if version == 1 else ">Q")

    def _number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._place)
        self._place += struct.calcsize(form)
        return int(value)

    def _skip(self, size: int) -> None:
        self._place += -(-size // 4) * 4

    def _length_of_list(self) -> int:
        self._number(">I")  # which list it is; 0 if there is none
        return self._number(self._count)

    def _skip_attributes(self) -> None:
        for _ in range(self._length_of_list()):
            self._skip(self._number(self._count))
            kind = self._number(">I")
            self._skip(self._number(self._count) * _TYPE_BYTES[kind])

    def end(self) -> int:
        """End of the last variable; of those along the record dimension, in the last record."""
        records = self._number(self._count)
        if records == (2**64 if self._count == ">Q" else 2**32) - 1:  # written as a stream: it is not known
            records = 0
        sizes = []
        for _ in range(self._length_of_list()):
            self._skip(self._number(self._count))
            sizes.append(self._number(self._count))
        self._skip_attributes()
        ends, along_records = [self._place], []
        for _ in range(self._length_of_list()):
            self._skip(self._number(self._count))
            dims = [self._number(self._count) for _ in range(self._number(self._count))]
            self._skip_attributes()
            itemsize = _TYPE_BYTES[self._number(">I")]
            self._number(self._count)  # its size, which large variables do not state rightly
            begin = self._number(self._offset)
            lengths = [sizes[dim] for dim in dims]
            if lengths and lengths[0] == 0:
                along_records.append((begin, math.prod(lengths[1:]) * itemsize))
            else:
                ends.append(begin + math.prod(lengths) * itemsize)
        padding = 4 if len(along_records) > 1 else 1
        record = sum(-(-size // padding) * padding for _, size in along_records)
        if records:
            ends += [begin + (records - 1) * record + size for begin, size in along_records]
        return max(ends)
