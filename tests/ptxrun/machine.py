"""Executes one CTA at a time, all of its threads in lockstep.

Threads that diverge are split into fragments, each with its own position. The fragment that is
furthest behind runs first, and fragments that arrive at the same position merge, so threads
meet again at the join point of a branch. A fragment that reaches a barrier, or a warp-wide
instruction with part of a warp missing, waits for the others.
"""

import numpy as np

from . import ops_arith, ops_bits, ops_convert, ops_memory, ops_warp
from .errors import PtxError, SyncError, UnsupportedInstruction
from .memory import Segment, Space
from .numeric import TYPES, UNSIGNED
from .operands import WARP, Operands, unsupported
from .parse import Symbol

BUILDERS = {
    **ops_arith.BUILDERS,
    **ops_bits.BUILDERS,
    **ops_convert.BUILDERS,
    **ops_memory.BUILDERS,
    **ops_warp.BUILDERS,
}
WARP_WIDE = {"shfl", "vote", "mma", "ldmatrix", "stmatrix", "redux"}
FULL_BARRIERS = (
    "bar.sync",
    "barrier.sync",
    "barrier.sync.aligned",
    "bar.cta.sync",
    "barrier.cta.sync",
    "barrier.cta.sync.aligned",
)


class RegisterFile(list):
    """One array per register, plus where the CTA is in the grid."""

    ctaid = grid = (0, 0, 0)


class Program:
    """A parsed kernel made executable for a CTA size and a set of symbol values."""

    def __init__(self, kernel, threads, symbols):
        if threads % WARP:
            raise PtxError(f"{threads} threads per CTA: only whole warps are supported")
        self.kernel, self.threads, self.instrs = kernel, threads, kernel.instrs
        self.ops = Operands(kernel, threads, symbols)
        self.control, self.warp_wide, self.steps = {}, set(), []
        for instr in kernel.instrs:
            try:
                self.steps.append(self._build(instr))
            except UnsupportedInstruction as error:
                raise error.at(instr.describe()) from None
        count = len(self.steps)
        leaders = set(kernel.labels.values())
        self.next_control, self.next_stop = [count] * (count + 1), [count] * (count + 1)
        for i in range(count - 1, -1, -1):
            self.next_control[i] = i if i in self.control else self.next_control[i + 1]
            self.next_stop[i] = i if i in self.control or i in leaders else self.next_stop[i + 1]

    def _build(self, instr):
        name = instr.parts[0]
        if name == "bra":
            target = instr.operands[0]
            if not isinstance(target, Symbol) or target.name not in self.kernel.labels:
                raise unsupported(instr, "unknown target")
            self.control[instr.index] = ("branch", self.kernel.labels[target.name])
        elif name in ("ret", "exit"):
            self.control[instr.index] = ("exit", None)
        elif instr.opcode in FULL_BARRIERS:
            if instr.guard is not None or not all(hasattr(o, "value") for o in instr.operands):
                raise unsupported(instr, "guarded or computed barrier")
            self.control[instr.index] = ("barrier", tuple(o.value for o in instr.operands))
        elif name in BUILDERS:
            if name in WARP_WIDE or instr.opcode == "bar.warp.sync":
                self.warp_wide.add(instr.index)
            return self._guarded(instr, BUILDERS[name](instr, self.ops))
        else:
            raise unsupported(instr)
        return None

    def guard(self, instr):
        """Reader of the threads for which a guarded instruction takes effect, or None."""
        if instr.guard is None:
            return None
        read = self.ops.reader(instr.guard, TYPES["pred"])
        return (lambda regs: ~read(regs)) if instr.negated else read

    def _guarded(self, instr, step):
        guard = self.guard(instr)
        if guard is None:
            return step

        def guarded(cta, mask):
            active = guard(cta.regs)
            if mask is not None:
                active = active & mask
            if active.all():
                step(cta, None)
            elif active.any():
                step(cta, active)

        return guarded


class Fragment:
    """Threads at one position. mask None means every thread of the CTA."""

    def __init__(self, position, mask):
        self.position, self.mask = position, mask
        self.waiting = None  # None, 'warp' or a barrier


class Cta:
    """State and control flow of one CTA."""

    def __init__(self, program, number, ctaid, grid, shared_bytes, memory, trace):
        self.program, self.number, self.ctaid, self.trace = program, number, ctaid, trace
        threads = program.threads
        zeros = {bits: np.zeros(threads, dtype) for bits, dtype in UNSIGNED.items()}
        self.regs = RegisterFile(zeros[bits] for bits in program.kernel.register_bits)
        self.regs.ctaid, self.regs.grid = ctaid, grid
        shared = Space("shared", [Segment.of_zeros("memory", shared_bytes)])
        self.spaces = {"global": memory, "shared": shared}
        self.copies = ops_memory.AsyncCopies(shared, trace)
        self.carry = np.zeros(threads, np.int64)
        local_bytes = sum(v.size + v.align for v in program.kernel.variables.values() if v.space == "local")
        self.local = Space("local", [Segment.of_zeros("local", threads * local_bytes)])
        self.local_base = np.arange(threads) * local_bytes
        self.exited = np.zeros(threads, bool)
        self.executed = {}  # (first, last) -> [warps, threads]

    def run(self, limit):
        """Execute to the end; limit bounds the instructions of any one path."""
        fragments, done = [Fragment(0, None)], 0
        while fragments:
            ready = [f for f in fragments if f.waiting is None]
            if not ready:
                self._release(fragments)
                continue
            fragment = min(ready, key=lambda f: f.position)
            start = fragment.position
            end = self._advance(fragment, alone=len(fragments) == 1)
            done += end - start + 1
            if done > limit:
                raise PtxError(f"more than {limit} instructions in one CTA: endless loop?")
            if fragment.waiting is None:
                self._control(fragment, end, fragments)
            if len(fragments) > 1:
                self._merge(fragments)
        self.copies.wait_all(None)
        self.trace.end_epoch(self)

    def _advance(self, fragment, alone):
        """Run straight-line code up to the next control instruction or possible meeting point."""
        program, mask = self.program, fragment.mask
        start = fragment.position
        first = start + 1 if start not in program.control else start
        end = program.next_control[start] if alone else min(program.next_control[start], program.next_stop[first])
        if mask is not None:
            end = self._stop_before_split_warp(fragment, start, end)
        steps, at = program.steps, start
        try:
            for at in range(start, end):
                steps[at](self, mask)
        except PtxError as error:
            raise error.at(f"{program.instrs[at].describe()}, CTA {self.ctaid}") from None
        warps = program.threads // WARP if mask is None else int(mask.reshape(-1, WARP).any(axis=1).sum())
        threads = program.threads if mask is None else int(mask.sum())
        counted = end + 1 if end in program.control and fragment.waiting is None else end
        if counted > start:
            entry = self.executed.setdefault((start, counted), [0, 0])
            entry[0] += warps
            entry[1] += threads
        fragment.position = end
        return end

    def _stop_before_split_warp(self, fragment, start, end):
        rows = (fragment.mask | self.exited).reshape(-1, WARP)
        live = fragment.mask.reshape(-1, WARP).any(axis=1)
        if rows[live].all():
            return end
        for i in range(start, end):
            if i in self.program.warp_wide:
                fragment.waiting = "warp"
                return i
        return end

    def _control(self, fragment, at, fragments):
        kind, detail = self.program.control.get(at, (None, None))
        if kind == "branch":
            self._branch(fragment, at, detail, fragments)
        elif kind == "exit":
            self._exit(fragment, at, fragments)
        elif kind == "barrier":
            fragment.waiting = ("barrier", detail)
        elif at >= len(self.program.steps):
            fragments.remove(fragment)

    def _taken(self, fragment, at):
        """(threads that obey the control instruction, threads that do not); None for none."""
        guard = self.program.guard(self.program.instrs[at])
        everyone = np.ones(self.program.threads, bool) if fragment.mask is None else fragment.mask
        if guard is None:
            return everyone, None
        obey = guard(self.regs) & everyone
        rest = everyone & ~obey
        return (obey if obey.any() else None), (rest if rest.any() else None)

    def _branch(self, fragment, at, target, fragments):
        obey, rest = self._taken(fragment, at)
        if rest is None:
            fragment.position = target
        elif obey is None:
            fragment.position = at + 1
        else:
            fragment.position, fragment.mask = at + 1, rest
            fragments.append(Fragment(target, obey))

    def _exit(self, fragment, at, fragments):
        obey, rest = self._taken(fragment, at)
        if obey is not None:
            self.exited |= obey
        if rest is None:
            fragments.remove(fragment)
        else:
            fragment.position, fragment.mask = at + 1, rest

    def _merge(self, fragments):
        by_place = {}
        for f in list(fragments):
            at_barrier = f.waiting is not None and f.waiting != "warp"
            key = (f.position, f.waiting if at_barrier else None)
            other = by_place.setdefault(key, f)
            if other is not f:
                other.mask = other.mask | f.mask
                other.waiting = f.waiting if at_barrier else None
                fragments.remove(f)
        if len(fragments) == 1 and fragments[0].mask is not None and fragments[0].mask.all():
            fragments[0].mask = None

    def _release(self, fragments):
        """Nobody can move: open the barrier that everybody reached, or report a deadlock."""
        stuck = [f for f in fragments if f.waiting == "warp"]
        if stuck:
            lane = int(np.flatnonzero(stuck[0].mask)[0])
            raise SyncError(f"warp-wide instruction reached by only part of a warp (thread {lane} among them)").at(
                f"{self.program.instrs[stuck[0].position].describe()}, CTA {self.ctaid}"
            )
        barriers = {f.waiting for f in fragments}
        if len(barriers) > 1:
            opened = self._partial_barrier(fragments)
            if not opened:
                raise SyncError(f"threads wait at different barriers: {sorted(map(str, barriers))}").at(
                    f"CTA {self.ctaid}"
                )
        else:
            opened = fragments
        self.copies.still_in_flight()
        self.trace.end_epoch(self)
        self.copies.still_in_flight()
        for f in opened:
            f.waiting, f.position = None, f.position + 1
        if len(fragments) > 1:
            self._merge(fragments)

    def _partial_barrier(self, fragments):
        """Fragments at a barrier with a thread count (bar.sync id, count) that is complete."""
        for barrier in {f.waiting for f in fragments}:
            group = [f for f in fragments if f.waiting == barrier]
            arrived = sum(int(f.mask.sum()) for f in group)
            if len(barrier[1]) == 2 and arrived >= barrier[1][1]:
                return group
        return []
