"""Byte-addressed memory spaces: checked gathers and scatters over the threads of a CTA."""

import ctypes

import numpy as np

from .errors import MemoryFault

ITEM_DTYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SLACK = 16  # views are widened to 16-byte boundaries; bounds are checked exactly


class Segment:
    """One contiguous allocation [start, end) and its bytes seen as items of 1 to 8 bytes."""

    def __init__(self, name, start, end, buffer, origin=None, keep=None):
        self.name, self.start, self.end = name, start, end
        self.origin = start if origin is None else origin
        self.views = {n: np.frombuffer(buffer, dtype) for n, dtype in ITEM_DTYPES.items()}
        self._keep = keep  # whatever owns the bytes

    @property
    def size(self):
        return self.end - self.start

    @classmethod
    def of_address(cls, name, start, size, keep=None):
        """A segment over memory this process already owns."""
        origin = start & -SLACK
        length = (start + size - origin + SLACK - 1) & -SLACK
        buffer = (ctypes.c_uint8 * length).from_address(origin) if size else bytearray(SLACK)
        return cls(name, start, start + size, buffer, origin, keep)

    @classmethod
    def of_zeros(cls, name, size):
        """A fresh segment whose addresses start at 0."""
        return cls(name, 0, size, bytearray((size + SLACK - 1) & -SLACK or SLACK))

    def fill(self, byte):
        self.views[1][self.start - self.origin : self.end - self.origin] = byte


class Space:
    """Several segments, accessed by the address each thread holds."""

    def __init__(self, name, segments=()):
        self.name = name
        self.segments = list(segments)

    def load(self, addresses, mask, item, count):
        """Read count items of item bytes per active thread; inactive threads get 0.

        Returns ([values per item], segment), the segment being None if several were touched.
        """
        active = addresses if mask is None else addresses[mask]
        parts = self._parts(active, mask, item * count)
        shift = item.bit_length() - 1
        out = (
            [np.zeros(addresses.size, ITEM_DTYPES[item]) for _ in range(count)]
            if mask is not None or len(parts) > 1
            else None
        )
        for segment, chosen in parts:
            where = active if chosen is None else active[chosen]
            view, index = segment.views[item], (where - segment.origin) >> shift
            if out is None:
                return [view[index + i] for i in range(count)], segment
            lanes = np.flatnonzero(mask) if mask is not None else np.arange(addresses.size)
            lanes = lanes if chosen is None else lanes[chosen]
            for i in range(count):
                out[i][lanes] = view[index + i]
        return out, parts[0][0] if len(parts) == 1 else None

    def store(self, addresses, mask, item, values):
        """Write one array per item. Where threads collide the highest thread wins."""
        active = addresses if mask is None else addresses[mask]
        parts = self._parts(active, mask, item * len(values))
        shift = item.bit_length() - 1
        for segment, chosen in parts:
            where = active if chosen is None else active[chosen]
            view, index = segment.views[item], (where - segment.origin) >> shift
            for i, value in enumerate(values):
                value = value if mask is None else value[mask]
                view[index + i] = value if chosen is None else value[chosen]
        return parts[0][0] if len(parts) == 1 else None

    def check(self, addresses, mask, size):
        """Check an access without making it; returns its segment (None if several)."""
        active = addresses if mask is None else addresses[mask]
        parts = self._parts(active, mask, size)
        return parts[0][0] if len(parts) == 1 else None

    def _parts(self, active, mask, size):
        """[(segment, which of the active threads)], the second None for all of them."""
        if np.bitwise_or.reduce(active) & (size - 1):
            self._fault("misaligned", active, mask, (active & (size - 1)) != 0, size)
        low, high = int(active.min()), int(active.max()) + size
        for segment in self.segments:
            if segment.start <= low and high <= segment.end:
                return [(segment, None)]
        parts, found = [], np.zeros(active.size, bool)
        for segment in self.segments:
            inside = (active >= segment.start) & (active + size <= segment.end) & ~found
            if inside.any():
                parts.append((segment, np.flatnonzero(inside)))
                found |= inside
        if not found.all():
            self._fault("out-of-bounds", active, mask, ~found, size)
        return parts

    def _fault(self, what, active, mask, bad, size):
        first = int(np.flatnonzero(bad)[0])
        thread = first if mask is None else int(np.flatnonzero(mask)[first])
        address = int(active[first])
        near = min(self.segments, default=None, key=lambda s: min(abs(address - s.start), abs(address - s.end)))
        hint = ""
        if near is not None:
            hint = f"; nearest allocation is {near.name} ({near.size} bytes), at its byte {address - near.start}"
        raise MemoryFault(
            f"{what} {self.name} access of {size} bytes at {address:#x} by thread "
            f"{thread} ({int(bad.sum())} threads in all){hint}",
            thread,
        )


class GlobalMemory(Space):
    """Registered tensors and arrays, addressed by their real data pointers."""

    def __init__(self):
        super().__init__("global")

    def register(self, name, tensor, poison=False):
        """Make a CPU torch tensor or numpy array addressable; returns its address.

        poison fills it with 0xff bytes (NaN for floats, -1 for integers) so that elements a
        kernel fails to write stand out.
        """
        start, size = _extent(tensor)
        end = start + size
        overlapping = [s for s in self.segments if s.start < end and start < s.end]
        names, keep = [s.name for s in overlapping], [s._keep for s in overlapping]
        low = min([start] + [s.start for s in overlapping])
        high = max([end] + [s.end for s in overlapping])
        segment = Segment.of_address("+".join(names + [name]), low, high - low, keep + [tensor])
        self.segments = [s for s in self.segments if s not in overlapping] + [segment]
        if poison:
            first = start - segment.origin
            segment.views[1][first : first + size] = 0xFF
        return start


def _extent(tensor):
    """(address, bytes) of the memory a tensor or array can reach."""
    if isinstance(tensor, np.ndarray):
        if tensor.size and min(tensor.strides, default=0) < 0:
            raise MemoryFault("arrays with negative strides cannot be registered")
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides)) + tensor.itemsize
        return tensor.ctypes.data, reach if tensor.size else 0
    if tensor.device.type != "cpu":
        raise MemoryFault(f"tensor on {tensor.device}: only CPU tensors can be registered")
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1
    return tensor.data_ptr(), reach * tensor.element_size() if tensor.numel() else 0
