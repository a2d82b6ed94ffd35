"""Several processes, on one machine or many, that do one piece of work: ranks and leases."""

from mixer_probe.parallel.leases import Lease
from mixer_probe.parallel.ranks import Ranks, agree, alone, gather, ranks

__all__ = ["Lease", "Ranks", "agree", "alone", "gather", "ranks"]
