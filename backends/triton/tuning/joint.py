"""What computes the linears of a model in calls of so many rows, each charged with what really runs.

    T = product + codes / linears that share them          accepted where `profit` says so, beside floats

    codes      the seconds of the pass that makes them: by maxima of rows that it seeks, or that the product
               before brings, or by a known scale; or what that takes longer where it writes them itself

All begin on codes, each in the way that is the best with what it leaves to do behind. Those that do not pay
then are computed in floats, which may take away what others were spared; so it is repeated until all that are
left pay. Since nobody comes back, that is after as many turns as there are linears, at most.

What was tried and refused, as all candidates of a pass may be, takes for ever.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.backends.triton.decisions import DEFAULT, Linear
from qcompiler.backends.triton.engine.candidates import OURS, Candidate, candidate
from qcompiler.backends.triton.engine.onward import brings_maxima, hands_on
from qcompiler.backends.triton.engine.readings import FLOATS, ROWS, SCALE, Reading
from qcompiler.backends.triton.tuning.asked import (
    linears_in,
    may_hand_on,
    problem_of,
    quantizer_of,
    quantizers_of,
)
from qcompiler.backends.triton.tuning.families import FLOAT
from qcompiler.backends.triton.tuning.problem import Problem
from qcompiler.backends.triton.tuning.profit import Bucket, weighed
from qcompiler.backends.triton.tuning.schedules import Schedules

Readings = Mapping[Reading, int]
"""What the linears of a model read, and how often it has just that."""
Names = Mapping[Linear, str]
"""What computes each of them."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a linear's product: on codes by name, ours first; in floats; of ours to codes that go on."""

    on_codes: Mapping[str, float]
    in_float: float
    handing: float = 0.0


def names_at(readings: Readings, M: int, schedules: Schedules) -> dict[Linear, str]:
    """The candidate of each linear of which rows of these versions tell all that may run.

    Others run as they do without rows.
    """
    coded = {reading: count for reading, count in readings.items() if reading.by != FLOATS}
    linears = linears_in(coded)
    times = {one: found for one in linears if (found := times_of(one, coded, M, schedules)) is not None}
    passes = {
        problem: seconds
        for reading in coded for problem in quantizers_of(reading, M)
        if (seconds := seconds_of(problem, schedules)) is not None
    }  # fmt: skip
    model = Model(readings=coded, M=M, times=times, passes=passes)
    told = [linear for linear in times if model.is_told(linear)]
    names = {linear: DEFAULT[linear.format].choose(M) for linear in linears}
    names |= {linear: next(iter(times[linear].on_codes), FLOAT) for linear in told}
    while True:
        names |= {linear: model.best(linear, names) for linear in told}
        lost = [linear for linear in told if names[linear] != FLOAT and not model.pays(linear, names)]
        if not lost:
            return few_bits(readings, M, schedules) | {linear: names[linear] for linear in told}
        names |= dict.fromkeys(lost, FLOAT)


def few_bits(readings: Readings, M: int, schedules: Schedules) -> dict[Linear, str]:
    """The same of weights of few bits, which are there to save memory: floats would undo that.

    So they are what is left where all candidates were refused, and elsewhere nobody asks how long it takes.
    """
    found: dict[Linear, str] = {}
    for linear in linears_in({reading: 1 for reading in readings if reading.by == FLOATS}):
        seconds = seconds_of(problem_of(linear, M), schedules)
        if seconds is not None:
            found[linear] = FLOAT if seconds == math.inf else OURS[linear.format]
    return found


def times_of(linear: Linear, readings: Readings, M: int, schedules: Schedules) -> Times | None:
    """None where something was not measured with these versions, float included."""
    problem = problem_of(linear, M)
    best, ours = schedules.choice(problem), seconds_of(problem, schedules)
    if best is None or best.is_prior or math.isnan(best.ratio):
        return None
    in_float, is_peer = best.seconds * best.ratio, best.configuration is None and best.contender != FLOAT
    on_codes = {best.contender: best.seconds} if is_peer else {}
    if ours is None or ours == math.inf:
        return Times(on_codes=on_codes, in_float=in_float)
    goes_on = problem_of(linear, M, codes=may_hand_on(linear, readings))
    handing = seconds_of(goes_on, schedules)
    if handing is None:
        return None
    return Times(on_codes={OURS[linear.format]: ours, **on_codes}, in_float=in_float, handing=handing)


def seconds_of(problem: Problem, schedules: Schedules) -> float | None:
    """Of our own kernel, infinite where all that was tried is refused; None where these versions were not."""
    found = schedules.choice(problem, peers=False)
    if found is not None and not found.is_prior:
        return found.seconds
    return math.inf if schedules.refusals(problem) else None


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is read in calls of M rows, and what rows say of the products and passes in it.

    names, wherever they are given, say what computes each linear.
    """

    readings: Readings
    M: int
    times: Mapping[Linear, Times]
    passes: Mapping[Problem, float]

    def is_told(self, linear: Linear) -> bool:
        """Whether all passes that it may wait for were measured."""
        asked = (quantizers_of(reading, self.M) for reading in self.readings if linear in reading.readers)
        return all(problem in self.passes for problems in asked for problem in problems)

    def best(self, linear: Linear, names: Names) -> str:
        """The best way on codes, with what it leaves to do behind; floats stay floats."""
        on_codes = self.times[linear].on_codes

        def whole(name: str) -> float:
            return on_codes[name] + self.behind(linear, {**names, linear: name})

        return FLOAT if names[linear] == FLOAT else min(on_codes, key=whole, default=FLOAT)

    def pays(self, linear: Linear, names: Names) -> bool:
        """Whether its way on codes takes little enough beside floats, with what was to do before."""
        times = self.times[linear]
        bucket = Bucket(
            M=self.M, weight=1.0, few_bits=times.on_codes[names[linear]], in_float=times.in_float,
            quantize=self.before(linear, names),
        )  # fmt: skip
        return weighed(str(linear), [bucket], is_measured=True).is_accepted

    def before(self, linear: Linear, names: Names) -> float:
        """Its share of the seconds in which the codes are made that it reads: the mean over where it is."""
        total, calls = 0.0, 0
        for reading, count in self.readings.items():
            its = count * reading.readers.count(linear)
            if not its:
                continue
            sharing = sum(names[reader] != FLOAT for reader in reading.readers)
            total += its * self.making(reading, names) / max(sharing, 1)
            calls += its
        return total / calls

    def behind(self, linear: Linear, names: Names) -> float:
        """Seconds in which codes are made of its results; the mean, too."""
        calls = sum(count * reading.readers.count(linear) for reading, count in self.readings.items())
        return sum(
            count * self.making(reading, names) / calls
            for reading, count in self.readings.items()
            if reading.maker == linear
        )

    def making(self, reading: Reading, names: Names) -> float:
        """Seconds in which codes are made; none where nobody reads them, or nothing was measured."""
        readers, maxima = [computing(reader, names) for reader in reading.readers], False
        if not any(reader.reads_codes for reader in readers):
            return 0.0
        if reading.maker is not None:
            maker = computing(reading.maker, names)
            if reading.by == SCALE and hands_on(maker, readers):
                return self.longer(reading.maker, maker.name)
            maxima = reading.by == ROWS and brings_maxima(maker, readers)
        return self.passes.get(quantizer_of(reading, self.M, maxima=maxima), 0.0)

    def longer(self, linear: Linear, name: str) -> float:
        """Seconds that a product takes more where its result goes on as codes."""
        times = self.times.get(linear)
        if times is None or name not in times.on_codes:
            return 0.0
        return max(times.handing - times.on_codes[name], 0.0)


def computing(linear: Linear, names: Names) -> Candidate:
    its = candidate(names[linear], linear.format)
    assert its is not None
    return its
