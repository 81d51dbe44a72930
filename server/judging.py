"""The released model's figures: its pooled histograms go back to the hospitals once, for intervals by patient."""

import logging
from dataclasses import replace

import numpy as np

from aecnn.contract import PACKED, PLACE, POOLED, POOLED_IMAGES, WEIGHTS
from aecnn.evaluation.placements import PlacementSums
from server.admission import fault_of_placements, reasons_of
from server.exchange import Collected
from server.history import Event
from server.judgement import Judgement, judged_event
from server.run import Run, reasons
from server.status import iso_in
from server.wire import arrays_record, bytes_record

log = logging.getLogger(__name__)
_LEFT = "it has left the run"
_NOT_ASKED = "it was not asked, for another hospital's sums cannot come"


def judge_released(run: Run) -> Event | None:
    """Adds to the history how the released model was judged, and gives it; None where none is kept, as under privacy.

    Hospitals give the same answer to the same question, so a run that was interrupted here asks again.
    """
    content = run.store.judgement()
    if content is None:
        return None
    judgement = Judgement.unpacked(content)
    sums, unplaced = _placed(run, judgement)
    event = judged_event(judgement, sums, members=run.present(), unplaced=unplaced)
    run.append(event)
    return event


def _placed(run: Run, judgement: Judgement) -> tuple[dict[str, PlacementSums], dict[str, str]]:
    """The sums by hospital, and who gave none, with the reason; nobody is asked where one cannot be."""
    told, present = judgement.told, run.present()
    if not judgement.pooled.is_defined.any():
        return {}, {}
    gone = [name for name in told if name not in present]
    if gone:
        return {}, {name: _LEFT if name in gone else _NOT_ASKED for name in told}
    collected = _asked(run, judgement)
    sums: dict[str, PlacementSums] = {}
    for name, answer in sorted(collected.answers.items()):
        fault = fault_of_placements(
            answer,
            round_number=_round_number(run),
            accepted=run.accepted,
            counts=run.members[name].counts,
            histogram=judgement.given[name],
        )
        if fault is None and answer.placements is not None:
            sums[name] = PlacementSums.of_report(answer.placements)
        elif fault is not None:
            collected.refused[name] = fault
    why = reasons_of(collected.refused) | collected.left
    unplaced = {name: why.get(name, "it did not answer in time") for name in told if name not in sums}
    for reason in reasons(reasons_of(collected.refused), collected.missing, collected.left):
        log.warning("No interval by patient: %s", reason)
    return sums, unplaced


def _asked(run: Run, judgement: Judgement) -> Collected:
    number, timeout_s = _round_number(run), run.settings.federation.round_timeout_s
    arrays = {
        WEIGHTS: bytes_record({PACKED: run.store.candidate_weights()}),
        POOLED: arrays_record({POOLED_IMAGES: np.ascontiguousarray(judgement.pooled.placed)}),
    }
    envelopes = {name: run.envelope(PLACE, number, arrays=arrays) for name in judgement.told}
    status = replace(run.board.status, phase="closing", asked=tuple(judgement.told), answered=(), attempt=1)
    run.show(replace(status, deadline_at=iso_in(timeout_s)))
    return run.exchange.ask(
        envelopes,
        round_number=number,
        timeout_s=timeout_s,
        on_left=lambda name, reason: run.remove(name, reason, round_number=number),
        alongside=run.show_online,
    )


def _round_number(run: Run) -> int:
    """The number that closing messages carry."""
    return run.settings.federation.num_rounds + 1
