"""What launches ask of the compiler."""

from __future__ import annotations

import torch

# Without a bound of its own ptxas may spill a few registers so that one more block fits a multiprocessor, as that of
# Triton 3.6 does. 255 are all that a thread can have, and eight warps of so many fill a multiprocessor. The compiler
# for AMD's GPUs has no such option.
NO_SPILLS: dict[str, int] = {} if torch.version.hip else {"maxnreg": 255}
