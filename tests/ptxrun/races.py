"""Race check over the accesses between two barriers, and between CTAs.

Two accesses of one CTA race if different threads touch the same bytes without a barrier in
between, at least one of them writes, and they are not both atomic. Threads that write equal
values do not race. Between CTAs nothing orders plain accesses, so any byte that one CTA writes
and another reads or writes is a race unless both accesses are atomic.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

WARP = 32
MAX_LISTED = 50


@dataclass
class Race:
    kind: str  # e.g. 'write/write', 'read/write', 'cross-CTA write/write'
    space: str
    segment: str
    byte: int  # offset in the segment
    actors: tuple  # two threads, or two CTAs for cross-CTA races
    cta: tuple
    instr: str
    times: int = 1

    def __str__(self):
        who = "CTAs" if self.kind.startswith("cross") else "threads"
        return (
            f"{self.kind} in {self.space} {self.segment} at byte {self.byte}, {who} "
            f"{self.actors[0]} and {self.actors[1]}, CTA {self.cta}, {self.instr} ({self.times}x)"
        )


class _Entries:
    """Accesses spelled out: one element per granule touched by one thread."""

    def __init__(self, accesses, granule, origin):
        cells, threads, owner, data = [], [], [], []
        for number, a in enumerate(accesses):
            lanes = np.arange(a.addresses.size) if a.mask is None else np.flatnonzero(a.mask)
            per_lane = a.size // granule
            first = (a.addresses[lanes] - origin) // granule
            cells.append((first[:, None] + np.arange(per_lane)).reshape(-1))
            threads.append(np.repeat(lanes, per_lane))
            owner.append(np.full(lanes.size * per_lane, number))
            data.append((a, lanes))

        def join(parts):
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)

        self.cells, self.threads, self.owner = join(cells), join(threads), join(owner)
        self.accesses, self.granule, self._data = accesses, granule, data

    def values(self):
        """What each element wrote; only called when a conflict is suspected."""
        out = []
        for a, lanes in self._data:
            whole = np.stack([v[lanes] for v in a.values], axis=1)
            out.append(np.ascontiguousarray(whole).view(f"u{self.granule}").reshape(-1).astype(np.uint64))
        return np.concatenate(out)


def _granule(accesses):
    """Bytes that no access, and no value written, is smaller than; at most 4."""
    return min(4, *(a.size for a in accesses), *(v.itemsize for a in accesses for v in a.values or ()))


class RaceCheck:
    def __init__(self):
        self.found, self.count = {}, 0
        self._scratch = {}
        self._between = {}  # segment -> _CtaOwners

    @property
    def races(self):
        return list(self.found.values())[:MAX_LISTED]

    def _report(self, kind, access, cell, granule, actors, cta):
        self.count += 1
        key = (kind, access.space, access.segment.name, access.instr.index)
        if key in self.found:
            self.found[key].times += 1
            return
        byte = int(cell) * granule + access.segment.origin - access.segment.start
        self.found[key] = Race(
            kind,
            access.space,
            access.segment.name,
            byte,
            tuple(int(a) for a in actors),
            cta.ctaid,
            access.instr.describe(),
        )

    # -- one CTA -----------------------------------------------------------------------
    def check_epoch(self, accesses, cta):
        by_segment = defaultdict(list)
        for a in accesses:
            if a.segment is not None:
                by_segment[a.segment].append(a)
        for segment, group in by_segment.items():
            if any(a.kind != "read" for a in group):
                self._check_threads(segment, group, cta)
            if group[0].space == "global":
                self._check_ctas(segment, group, cta)

    def _check_threads(self, segment, group, cta):
        epochs = {a.warp_epoch for a in group}
        if len(epochs) == 1:
            self._check_actors(segment, group, cta, lambda threads: threads)
            return
        self._check_actors(segment, group, cta, lambda threads: threads // WARP)
        for epoch in epochs:
            part = [a for a in group if a.warp_epoch == epoch]
            self._check_actors(segment, part, cta, lambda threads: threads)

    def _check_actors(self, segment, group, cta, actor_of):
        granule = _granule(group)
        entries = {
            kind: _Entries([a for a in group if a.kind == kind], granule, segment.origin)
            for kind in ("read", "write", "atomic")
        }
        write, read, atomic = entries["write"], entries["read"], entries["atomic"]
        last = self._scratch_for(segment, granule)
        actors = actor_of(write.threads)
        last[write.cells] = actors
        if (last[write.cells] != actors).any():
            self._write_write(write, actors, last, granule, cta)
        self._against(read, write, last, actor_of, "read/write", granule, cta)
        self._against(atomic, write, last, actor_of, "atomic/write", granule, cta)
        last[write.cells] = -1
        if atomic.cells.size:
            last[atomic.cells] = actor_of(atomic.threads)
            self._against(read, atomic, last, actor_of, "read/atomic", granule, cta)
            last[atomic.cells] = -1

    def _scratch_for(self, segment, granule):
        key = (segment, granule)
        if key not in self._scratch:
            size = segment.views[1].size // granule + 1
            self._scratch[key] = np.full(size, -1, np.int32)
        return self._scratch[key]

    def _write_write(self, write, actors, last, granule, cta):
        values = write.values()
        winner = np.zeros(last.size, np.uint64)
        winner[write.cells] = values
        bad = np.flatnonzero((last[write.cells] != actors) & (winner[write.cells] != values))
        for i in bad[:1000]:
            cell = write.cells[i]
            self._report("write/write", write.accesses[write.owner[i]], cell, granule, (actors[i], last[cell]), cta)

    def _against(self, entries, writers, last, actor_of, kind, granule, cta):
        if not entries.cells.size or not writers.cells.size:
            return
        actors, other = actor_of(entries.threads), last[entries.cells]
        bad = np.flatnonzero((other >= 0) & (other != actors))
        if not bad.size:
            return
        # A thread that wrote the same cell itself, with the same value as the other, is safe.
        own = (writers.cells.astype(np.int64) << 32) | actor_of(writers.threads)
        mine = (entries.cells[bad].astype(np.int64) << 32) | actors[bad]
        for i in bad[~np.isin(mine, own)][:1000]:
            self._report(
                kind, entries.accesses[entries.owner[i]], entries.cells[i], granule, (actors[i], other[i]), cta
            )

    # -- between CTAs ------------------------------------------------------------------
    def _check_ctas(self, segment, group, cta):
        if segment not in self._between:
            self._between[segment] = _CtaOwners(segment)
        owners = self._between[segment]
        owners.refine(_granule(group))
        for kind in ("read", "write", "atomic"):
            chosen = [a for a in group if a.kind == kind]
            if not chosen:
                continue
            entries = _Entries(chosen, owners.granule, segment.origin)
            for label, other, i in owners.claim(kind, entries.cells, cta.number + 1):
                self._report(
                    f"cross-CTA {label}",
                    chosen[entries.owner[i]],
                    entries.cells[i],
                    owners.granule,
                    (cta.number, other),
                    cta,
                )


class _CtaOwners:
    """Per granule of one segment: which CTA wrote, used atomically or read it (number + 1)."""

    def __init__(self, segment):
        self.segment, self.granule = segment, 4
        self._allocate()

    def _allocate(self):
        size = self.segment.views[1].size // self.granule + 1
        self.by = {kind: np.zeros(size, np.int32) for kind in ("read", "write", "atomic")}

    def refine(self, granule):
        """Switch to smaller granules, keeping what is known."""
        if granule < self.granule:
            ratio = self.granule // granule
            self.granule = granule
            self.by = {kind: np.repeat(v, ratio) for kind, v in self.by.items()}

    def claim(self, kind, cells, me):
        """Record an access and yield (conflict, other CTA, element) for each race.

        -1 stands for several CTAs (only among readers and atomics, which may share).
        """
        clashes = {"read": ("write", "atomic"), "write": ("write", "read", "atomic"), "atomic": ("write", "read")}[kind]
        for other_kind in clashes:
            other = self.by[other_kind][cells]
            for i in np.flatnonzero((other != 0) & (other != me))[:1000]:
                yield f"{kind}/{other_kind}", max(int(other[i]) - 1, -1), i
        mine = self.by[kind]
        if kind == "write":
            mine[cells] = me
        else:
            before = mine[cells]
            mine[cells] = np.where((before == 0) | (before == me), me, -1)
