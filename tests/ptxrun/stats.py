"""Counts gathered while a kernel runs."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

WARP, SECTOR, BANKS, WORD = 32, 32, 32, 4
PLAIN_KIND = {"ld": "read", "st": "write"}  # volatile and relaxed ones included


@dataclass
class GlobalTraffic:
    """Global accesses of one kind to one argument. A request is one warp's instruction."""

    requests: int = 0
    bytes_requested: int = 0  # every active thread counted
    bytes_distinct: int = 0  # threads of a warp that share an address counted once
    sectors: int = 0  # distinct 32-byte sectors, summed over requests
    unique_sectors: int = 0  # distinct 32-byte sectors over the whole run

    @property
    def efficiency(self):
        """Share of the moved sectors that a warp asked for: 1.0 is perfectly coalesced."""
        return self.bytes_distinct / (self.sectors * SECTOR) if self.sectors else 1.0

    def __add__(self, other):
        return GlobalTraffic(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))


@dataclass
class SharedTraffic:
    """Shared-memory accesses of one kind. A wavefront is one pass over the 32 banks."""

    requests: int = 0
    bytes_requested: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    worst_degree: int = 0  # most distinct words that met in one bank in one pass

    @property
    def conflict_degree(self):
        """Wavefronts per conflict-free wavefront: 1.0 means no bank conflicts."""
        return self.wavefronts / self.ideal_wavefronts if self.ideal_wavefronts else 1.0

    def __add__(self, other):
        added = [getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__]
        return SharedTraffic(*added[:-1], max(self.worst_degree, other.worst_degree))


@dataclass
class Stats:
    """Result of a run.

    instructions counts warps per opcode (one warp executing once is 1); thread_instructions
    counts threads. traffic is keyed by (kind, argument name), shared by kind, and lines by
    (space, kind, source line); kind is 'read', 'write' or 'atomic'.
    """

    kernel: str = ""
    grid: tuple = (1, 1, 1)
    threads_per_cta: int = 0
    shared_bytes: int = 0
    instructions: Counter = field(default_factory=Counter)
    thread_instructions: Counter = field(default_factory=Counter)
    traffic: dict = field(default_factory=lambda: defaultdict(GlobalTraffic))
    shared: dict = field(default_factory=lambda: defaultdict(SharedTraffic))
    lines: dict = field(default_factory=dict)
    races: list = field(default_factory=list)
    race_count: int = 0
    ptx: str = field(default="", repr=False)
    _touched: dict = field(default_factory=dict, repr=False)

    # -- derived figures ---------------------------------------------------------------
    def count(self, prefix):
        """Warp-level count of all opcodes that start with prefix, e.g. 'mma.sync'."""
        return sum(n for opcode, n in self.instructions.items() if opcode.startswith(prefix))

    @property
    def total_instructions(self):
        return sum(self.instructions.values())

    @property
    def mma_count(self):
        """Matrix instructions, one per warp."""
        return self.count("mma.sync")

    @property
    def fma_count(self):
        """Scalar floating-point fused multiply-adds, one per thread."""
        return sum(n for opcode, n in self.thread_instructions.items() if opcode.startswith("fma."))

    def _sum(self, kinds):
        return sum((t for (kind, _), t in self.traffic.items() if kind in kinds), GlobalTraffic())

    @property
    def loads(self):
        return self._sum(("read",))

    @property
    def stores(self):
        return self._sum(("write",))

    @property
    def atomics(self):
        return self._sum(("atomic",))

    @property
    def sectors_read(self):
        return self.loads.sectors

    @property
    def coalescing_efficiency(self):
        return self._sum(("read", "write")).efficiency

    # -- gathering ---------------------------------------------------------------------
    def count_block(self, instrs, warps, threads):
        for instr in instrs:
            self.instructions[instr.opcode] += warps
            self.thread_instructions[instr.opcode] += threads

    def count_accesses(self, accesses):
        groups = defaultdict(list)
        for a in accesses:
            name = None if a.space == "shared" else a.segment.name if a.segment else "several"
            kind = PLAIN_KIND.get(a.instr.parts[0], a.kind)
            groups[a.space, kind, name, a.size, a.instr.source].append(a)
        for (space, kind, name, size, source), group in groups.items():
            rows, active = _by_warp(group)
            if space == "shared":
                amount = _shared_traffic(rows, active, size)
                self.shared[kind] += amount
            else:
                amount = self._global_traffic(rows, active, size, kind, name, group)
                self.traffic[kind, name] += amount
            line = (space, kind, source)
            self.lines[line] = self.lines[line] + amount if line in self.lines else amount

    def _global_traffic(self, rows, active, size, kind, name, group):
        big = np.iinfo(np.int64).max
        ordered = np.sort(np.where(active, rows, big), axis=1)
        sectors = ordered // SECTOR
        real = ordered != big
        distinct = _first_in_row(ordered) & real
        new_sector = _first_in_row(sectors) & real
        unique = 0
        if group[0].segment is not None:
            segment = group[0].segment
            base = segment.start // SECTOR
            seen = self._touched.setdefault((kind, name), np.zeros(segment.end // SECTOR - base + 1, bool))
            index = np.unique(sectors[new_sector] - base)
            unique = int((~seen[index]).sum())
            seen[index] = True
        return GlobalTraffic(
            int(real.any(axis=1).sum()),
            int(active.sum()) * size,
            int(distinct.sum()) * size,
            int(new_sector.sum()),
            unique,
        )

    def report(self):
        """The figures as plain text."""
        lines = [
            f"{self.kernel} grid={self.grid} threads={self.threads_per_cta} shared={self.shared_bytes}B",
            f"  warp instructions {self.total_instructions}, mma {self.mma_count}, fma (threads) {self.fma_count}",
        ]
        for (kind, name), t in sorted(self.traffic.items()):
            lines.append(
                f"  global {kind:6} {name:12} {t.requests} requests, {t.bytes_requested} bytes, "
                f"{t.sectors} sectors ({t.unique_sectors} unique), efficiency {t.efficiency:.3f}"
            )
        for kind, t in sorted(self.shared.items()):
            lines.append(
                f"  shared {kind:6} {t.requests} requests, {t.wavefronts} wavefronts, "
                f"conflict degree {t.conflict_degree:.2f} (worst {t.worst_degree})"
            )
        lines += [f"  race: {race}" for race in self.races]
        return "\n".join(lines)


def _by_warp(group):
    """Addresses and activity of a group of accesses as [requests, lanes]."""
    rows = np.concatenate([a.addresses for a in group]).reshape(-1, WARP)
    active = np.concatenate([np.ones(a.addresses.size, bool) if a.mask is None else a.mask for a in group]).reshape(
        -1, WARP
    )
    used = active.any(axis=1)
    return rows[used], active[used]


def _first_in_row(ordered):
    """True where a sorted row's value differs from its left neighbour."""
    first = np.ones(ordered.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return first


def _shared_traffic(rows, active, size):
    """8-byte accesses go by half warps and 16-byte accesses by quarter warps."""
    words = max(1, size // WORD)
    word = (rows // WORD)[..., None] + np.arange(words)
    passes = np.where(active[..., None], word, -1).reshape(-1, WARP)
    passes = passes[(passes >= 0).any(axis=1)]
    ordered = np.sort(passes, axis=1)
    counted = _first_in_row(ordered) & (ordered >= 0)
    slot = np.arange(len(ordered))[:, None] * BANKS + ordered % BANKS
    degree = np.bincount(slot[counted], minlength=len(ordered) * BANKS).reshape(-1, BANKS).max(axis=1)
    return SharedTraffic(
        len(rows), int(active.sum()) * size, int(degree.sum()), len(ordered), int(degree.max(initial=0))
    )
