"""Loads, stores, atomics and asynchronous copies."""

import numpy as np

from . import numeric
from .errors import SyncError
from .numeric import TYPES
from .operands import items, type_of, unsupported
from .parse import Imm, Sink

SPACES = {
    "global": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "local": "local",
    "param": "param",
    "const": "global",
}
STRONG = {"relaxed", "acquire", "release", "acq_rel", "volatile", "mmio"}
ATOMIC_OPS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def _space(instr):
    """Named state space; a generic access is taken to be global."""
    for part in instr.parts[1:]:
        if part in SPACES:
            return SPACES[part]
        if part.startswith("shared::"):
            raise unsupported(instr, "clusters")
    return "global"


def _refuse_unknown_width(instr):
    if any(p in ("v8", "b128", "unified") for p in instr.parts):
        raise unsupported(instr)


def build_load(instr, ops):
    _refuse_unknown_width(instr)
    space, t = _space(instr), type_of(instr)
    if space == "param":
        return _build_param_load(instr, ops, t)
    raw = t if t.kind == "s" else TYPES[f"b{t.bits}"]
    targets = items(instr.operands[0])
    writes = [ops.writer(o, raw) for o in targets]
    address, item, count = ops.address(instr.operands[1]), t.bits // 8, len(targets)
    kind = "atomic" if STRONG.intersection(instr.parts) else "read"

    def step(cta, mask):
        regs = cta.regs
        where = address(regs)
        if space == "local":
            values, segment = cta.local.load(where + cta.local_base, mask, item, count)
        else:
            values, segment = cta.spaces[space].load(where, mask, item, count)
            cta.trace.access(space, kind, instr, where, item * count, mask, segment)
        for write, value in zip(writes, values):
            write(regs, mask, value.view(raw.dtype))

    return step


def _build_param_load(instr, ops, t):
    source = instr.operands[1]
    bits = ops.symbols.get(source.base.name)
    if bits is None or source.offset or len(items(instr.operands[0])) != 1:
        raise unsupported(instr, "only whole scalar parameters")
    raw = t if t.kind == "s" else TYPES[f"b{t.bits}"]
    read = ops.reader(Imm(bits), raw)
    write = ops.writer(items(instr.operands[0])[0], raw)
    return lambda cta, mask: write(cta.regs, mask, read(cta.regs))


def build_store(instr, ops):
    _refuse_unknown_width(instr)
    space, t = _space(instr), type_of(instr)
    raw = TYPES[f"b{t.bits}"]
    sources = items(instr.operands[1])
    reads = [ops.reader(o, raw) for o in sources]
    address, item = ops.address(instr.operands[0]), t.bits // 8
    kind = "atomic" if STRONG.intersection(instr.parts) else "write"

    def step(cta, mask):
        regs = cta.regs
        where, values = address(regs), [read(regs) for read in reads]
        if space == "local":
            cta.local.store(where + cta.local_base, mask, item, values)
            return
        segment = cta.spaces[space].store(where, mask, item, values)
        cta.trace.access(space, kind, instr, where, item * len(values), mask, segment, values)

    return step


def _combine(name, old, operands):
    b = operands[0]
    if name == "exch":
        return b
    if name == "cas":
        return np.where(old == b, operands[1], old)
    if name == "inc":
        return np.where(old >= b, old.dtype.type(0), old + old.dtype.type(1))
    if name == "dec":
        return np.where((old == 0) | (old > b), b, old - old.dtype.type(1))
    return {
        "add": np.add,
        "min": np.fmin,
        "max": np.fmax,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name](old, b)


def build_atomic(instr, ops):
    """atom and red. Threads that meet at one address are served in thread order."""
    space, t = _space(instr), type_of(instr)
    name = next((p for p in instr.parts[1:] if p in ATOMIC_OPS), None)
    if name is None or any(p in ("v2", "v4", "v8", "b128") for p in instr.parts):
        raise unsupported(instr)
    operands = list(instr.operands)
    target = Sink() if instr.parts[0] == "red" else operands.pop(0)
    raw, item = TYPES[f"b{t.bits}"], t.bits // 8
    address = ops.address(operands[0])
    reads = [ops.reader(o, t) for o in operands[1 : 3 if name == "cas" else 2]]
    write = ops.writer(target, raw)

    def step(cta, mask):
        regs = cta.regs
        where = address(regs)
        memory = cta.spaces[space]
        active = np.arange(where.size) if mask is None else np.flatnonzero(mask)
        arguments = [read(regs) for read in reads]
        result = np.zeros(where.size, raw.dtype)
        segment = None
        for lanes in _rounds(where, active):
            chosen = where[lanes]
            (old,), segment = memory.load(chosen, None, item, 1)
            new = _combine(name, numeric.decode(old, t), [a[..., lanes] for a in arguments])
            memory.store(chosen, None, item, [numeric.encode(new, t)])
            result[lanes] = old
        segment = memory.check(where, mask, item)
        cta.trace.access(space, "atomic", instr, where, item, mask, segment)
        write(regs, mask, result)

    return step


def _rounds(addresses, active):
    """Split the active threads into rounds in which every address occurs once, in thread order."""
    order = active[np.argsort(addresses[active], kind="stable")]
    sorted_addresses = addresses[order]
    new_run = np.r_[True, sorted_addresses[1:] != sorted_addresses[:-1]]
    starts = np.flatnonzero(new_run)
    rank = np.arange(order.size) - starts[np.cumsum(new_run) - 1]
    return [order[rank == r] for r in range(int(rank.max()) + 1)]


def build_async_copy(instr, ops):
    """cp.async, its commit_group, wait_group and wait_all.

    The source is read when the copy is issued and the destination is written when the copy
    is waited for, so a missing wait leaves stale shared memory behind.
    """
    if "bulk" in instr.parts or "mbarrier" in instr.parts or "reduce" in instr.parts:
        raise unsupported(instr)
    if "commit_group" in instr.parts:
        return lambda cta, mask: cta.copies.commit(mask)
    if "wait_group" in instr.parts:
        keep = instr.operands[0].value
        return lambda cta, mask: cta.copies.wait(keep, mask)
    if "wait_all" in instr.parts:
        return lambda cta, mask: cta.copies.wait_all(mask)
    if "shared" not in instr.parts and "shared::cta" not in instr.parts:
        raise unsupported(instr)
    target, source = ops.address(instr.operands[0]), ops.address(instr.operands[1])
    size = instr.operands[2].value
    hinted = any("cache_hint" in p for p in instr.parts)
    has_length = len(instr.operands) > (4 if hinted else 3)
    length = ops.reader(instr.operands[3], TYPES["u32"]) if has_length else ops.constant(size, np.uint32)

    def step(cta, mask):
        regs = cta.regs
        to, origin, valid = target(regs), source(regs), length(regs)
        values = [np.zeros(to.size, np.uint32) for _ in range(size // 4)]
        full = valid >= size
        wanted = full if mask is None else full & mask
        partial = (valid > 0) & ~full if mask is None else (valid > 0) & ~full & mask
        if partial.any():
            raise unsupported(instr, "copies of part of a chunk")
        if wanted.any():
            every = None if wanted.all() else wanted
            values, segment = cta.spaces["global"].load(origin, every, 4, size // 4)
            cta.trace.access("global", "read", instr, origin, size, every, segment)
        segment = cta.spaces["shared"].check(to, mask, size)
        cta.trace.access("shared", "write", instr, to, size, mask, segment, values)
        cta.copies.issue(instr, to, mask, size, values)

    return step


class AsyncCopies:
    """cp.async transfers in flight in one CTA; groups are the same for all its threads."""

    def __init__(self, shared, trace):
        self.shared, self.trace = shared, trace
        self.open, self.groups = [], []

    def issue(self, *copy):
        self.open.append(copy)

    def commit(self, mask):
        if mask is not None:
            raise SyncError("cp.async.commit_group by part of a CTA is not supported")
        self.groups.append(self.open)
        self.open = []

    def wait(self, keep, mask):
        if mask is not None:
            raise SyncError("cp.async.wait_group by part of a CTA is not supported")
        while len(self.groups) > keep:
            for copy in self.groups.pop(0):
                self._finish(copy)

    def wait_all(self, mask):
        self.commit(mask)
        self.wait(0, mask)

    def _finish(self, copy):
        instr, to, mask, size, values = copy
        segment = self.shared.store(to, mask, 4, values)
        self.trace.race_access("shared", "write", instr, to, size, mask, segment, values)

    def still_in_flight(self):
        """Log the pending writes again: they may land at any time up to their wait."""
        for group in self.groups + [self.open]:
            for instr, to, mask, size, values in group:
                segment = self.shared.check(to, mask, size)
                self.trace.race_access("shared", "write", instr, to, size, mask, segment, values)


def build_nothing(instr, ops):
    """Fences, prefetches and hints: one CTA at a time in program order needs none of them."""
    return lambda cta, mask: None


def build_create_policy(instr, ops):
    t = TYPES["b64"]
    write, zero = ops.writer(instr.operands[0], t), np.zeros(ops.threads, np.uint64)
    return lambda cta, mask: write(cta.regs, mask, zero)


BUILDERS = {
    "ld": build_load,
    "ldu": build_load,
    "st": build_store,
    "atom": build_atomic,
    "red": build_atomic,
    "cp": build_async_copy,
    "membar": build_nothing,
    "fence": build_nothing,
    "prefetch": build_nothing,
    "prefetchu": build_nothing,
    "nanosleep": build_nothing,
    "applypriority": build_nothing,
    "discard": build_nothing,
    "griddepcontrol": build_nothing,
    "setmaxnreg": build_nothing,
    "createpolicy": build_create_policy,
}
