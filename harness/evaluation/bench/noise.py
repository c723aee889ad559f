"""How far the numbers of a timing can be trusted: what two equal systems differ by, and what else the machine did.

Axes: R repeats, T texts, B blocks of calls, C calls of a block, S draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.bench.latency import BLOCK, Calls
from harness.evaluation.bench.machine import Machine

FLOOR, DRIFT, AGAIN, OTHERS = 5.0, 10.0, 10.0, 0.1  # three % from which a warning is due, and a share of the cores
_DRAWS, _SEED = 1000, 0
_FEW = 10  # blocks: fewer say nothing of how much blocks differ


class Watch:
    """The machine from now on: what others take of its cores."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._load = machine, machine.load()
        self._started, self._others = machine.now(), machine.others()

    def ended(self) -> dict[str, Any]:
        """``others_cores``: as many cores others kept busy meanwhile; ``load_before``: programs, ours included."""
        now, seconds = self._machine.others(), (self._machine.now() - self._started) / 1e9
        known = now is not None and self._others is not None and seconds > 0
        others = max(0.0, (now - self._others) / seconds) if known else None  # type: ignore[operator]
        return {"others_cores": others, "cores": self._machine.cores, "load_before": self._load}


def told(
    calls: Mapping[str, Calls], control: Calls, of: str, again: float | None, watched: dict[str, Any]
) -> dict[str, Any]:
    """What a reader must know before he believes a difference.

    Args:
        calls: of every system.
        control: of one of them once more, timed among the others under another name: A/A.
        of: which one.
        again: by how many % the throughput of a system changed at most when its best batch was timed again.
        watched: what ``Watch`` saw.

    Returns:
        "percent": medians that differ by less are equal here (95 % of draws of the two equal systems' blocks differ by
        no more; None of few calls), "control": {"system", "p50_ratio", "p99_ratio", "calls"}, "drift_percent": how much
        slower (or, below zero, faster) all systems were in the second half of the calls than in the first,
        "throughput_percent" (``again``), what ``Watch`` saw, and "warning": a sentence, or None where all is quiet.
    """
    one, two = calls[of].forward, control.forward
    ratios = {f"p{p}_ratio": float(np.percentile(two, p) / max(np.percentile(one, p), 1)) for p in (50, 99)}
    found = {"percent": floor(one, two), "control": {"system": of, **ratios, "calls": one.size},
             "drift_percent": drift(calls), "throughput_percent": again, **watched}  # fmt: skip
    return {**found, "warning": warning(found)}


def floor(one_RT: NDArray[np.int64], two_RT: NDArray[np.int64]) -> float | None:
    """By how many % the medians of two equal systems differ at most, in 95 % of draws of blocks with replacement."""
    one_BC, two_BC = _blocks(one_RT), _blocks(two_RT)
    if len(one_BC) < _FEW:
        return None
    chosen_SB = np.random.default_rng(_SEED).integers(0, len(one_BC), (_DRAWS, len(one_BC)))
    ratios = [np.nanmedian(two_BC[chosen]) / max(np.nanmedian(one_BC[chosen]), 1) for chosen in chosen_SB]
    return float(100 * np.percentile(np.abs(np.array(ratios) - 1), 95))


def _blocks(taken_RT: NDArray[np.int64]) -> NDArray[np.float64]:
    """The calls of each block as float_BC, with NaN where the last block of a repeat is short."""
    texts = taken_RT.shape[1]
    padded = np.full((len(taken_RT), -(-texts // BLOCK) * BLOCK), np.nan)
    padded[:, :texts] = taken_RT
    return padded.reshape(-1, BLOCK)


def drift(calls: Mapping[str, Calls]) -> float | None:
    """By how many % the second half of all calls took longer than the first, in the median; None of one repeat.

    Each call is told in parts of its text's geometric mean, so that halves of other texts can be compared.
    """
    halves: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    for found in calls.values():
        log_RT = np.log(np.maximum(found.total, 1))
        relative = (log_RT - log_RT.mean(axis=0)).ravel()  # a median would be one of few calls, and they no news
        halves[0].append(relative[: relative.size // 2])
        halves[1].append(relative[relative.size // 2 :])
        if len(log_RT) == 1:
            return None
    before, after = (float(np.median(np.concatenate(half))) for half in halves)
    return 100 * float(np.expm1(after - before))


def warning(found: Mapping[str, Any]) -> str | None:
    """One sentence on what was not quiet; None where everything was."""
    reasons = []
    if (others := found["others_cores"]) is not None and others > OTHERS * found["cores"]:
        reasons.append(f"other programs kept {others:.1f} of its {found['cores']} cores busy")
    if (found["percent"] or 0) > FLOOR:
        reasons.append(f"one and the same system, timed twice, differs by up to {found['percent']:.0f} % in its median")
    if abs(drifted := found["drift_percent"] or 0) > DRIFT:
        reasons.append(f"it became {abs(drifted):.0f} % {'slower' if drifted > 0 else 'faster'} meanwhile")
    if (found["throughput_percent"] or 0) > AGAIN:
        reasons.append(f"a throughput was {found['throughput_percent']:.0f} % off when it was timed again")
    if not reasons:
        return None
    return (
        f"the machine was not quiet while latency and throughput were timed: {'; '.join(reasons)}. Systems took turns, "
        "so ratios hold better than milliseconds; time them again when it is idle (--from bench)"
    )
