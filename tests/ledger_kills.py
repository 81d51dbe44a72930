"""A client killed again and again while it reserves, trains, keeps, settles and gives: ``ledger_kills.py DIR``.

The training is a few milliseconds of nothing, and an answer is a random word. Prints what was given and what the ledger
holds as one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from aecnn.training.privacy.accounting import Mechanism, epsilon_of
from client.files import write_durably
from client.ledger import About, Cost, Ledger, Limit

KILLS = 60
LONGEST_S = 0.1  # until a kill; a few rounds take about as long
COMPOSED = 170  # rounds whose ε is known before the first life: kills are to fall into the ledger, not the accountant
STEP = Mechanism(noise_multiplier=40.0, sample_rate=1.0, steps=1)
LIMIT = Limit(max_epsilon=1e3, delta=1e-5)
PATIENTS = [f"patient-{number}" for number in range(20)]


def serve(folder: Path, life: int) -> None:
    """Answers one round after another, each as `client.desk` does, until it is killed."""
    kept = folder / f"replies-{life}"
    kept.mkdir(exist_ok=True)
    ledger = Ledger.open(folder / "ledger")
    for number in range(1, 10_000):
        about = About(f"client-{life}", "0" * 16, "run", "train", number, "request")
        reply = kept / str(number)
        if reply.exists():
            content = reply.read_text()
            ledger.settle_again(about, content=content)
        else:
            reservation = ledger.reserve([Cost("train", PATIENTS, STEP)], about, LIMIT)
            for _ in range(3):
                time.sleep(0.001)
            content = os.urandom(8).hex()
            write_durably(reply, [content.encode()])
            ledger.settle(reservation, content=content)
        if (folder / "given").exists() and f"{life} {number} " in (folder / "given").read_text():
            continue
        descriptor = os.open(folder / "given", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{life} {number} {content}\n".encode())
        os.fsync(descriptor)
        os.close(descriptor)


def state(folder: Path) -> dict:
    """What was given, and what the ledger holds."""
    given = (
        [line.split() for line in (folder / "given").read_text().splitlines()] if (folder / "given").exists() else []
    )
    charges = Ledger.open(folder / "ledger").charges()
    return {
        "given": [content for _, _, content in given],
        "paid": [charge.content for charge in charges if charge.content is not None],
        "charges": len(charges),
        "steps": sum(charge.mechanism.steps for charge in charges),
    }


def main(folder: Path) -> None:
    """Kills a client `KILLS` times; now and then it loses its memory with its life."""
    randomness = random.Random(7)
    Ledger.create(folder / "ledger")
    for steps in range(1, COMPOSED + 1):
        for accountant in ("rdp", "prv"):
            epsilon_of([replace(STEP, steps=steps)], delta=LIMIT.delta, accountant=accountant)
    life, states = 1, []
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            serve(folder, life)
            os._exit(1)
        time.sleep(randomness.uniform(0.0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the client ended by itself: {status}"
        states.append(state(folder))
        life += randomness.random() < 0.1
    print(json.dumps(states))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
