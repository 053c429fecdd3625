"""Log of one CTA's memory accesses, handed to the statistics and the race check in batches."""

from collections import namedtuple

Access = namedtuple("Access", "space kind instr addresses size mask segment values warp_epoch")


class Trace:
    """kind is 'read', 'write' or 'atomic'; size is the bytes per thread; mask None means all."""

    def __init__(self, stats, races=None):
        self.stats, self.races = stats, races
        self.to_count, self.to_race = [], []
        self.warp_epoch = 0  # advanced by bar.warp.sync

    def access(self, space, kind, instr, addresses, size, mask, segment, values=None):
        entry = Access(space, kind, instr, addresses, size, mask, segment, values, self.warp_epoch)
        self.to_count.append(entry)
        if self.races is not None:
            self.to_race.append(entry)

    def count_access(self, space, kind, instr, addresses, size, mask, segment):
        self.to_count.append(Access(space, kind, instr, addresses, size, mask, segment, None, 0))

    def race_access(self, space, kind, instr, addresses, size, mask, segment, values=None):
        if self.races is not None:
            self.to_race.append(Access(space, kind, instr, addresses, size, mask, segment, values, self.warp_epoch))

    def end_epoch(self, cta):
        """Called at every CTA barrier and at the end of the CTA."""
        if self.to_count:
            self.stats.count_accesses(self.to_count)
        if self.to_race:
            self.races.check_epoch(self.to_race, cta)
        self.to_count, self.to_race, self.warp_epoch = [], [], 0
