"""Makes privacy-plan.png: what `aecnn plan-privacy --plot` draws for a hospital of a thousand patients.

Run from the repository root: ``.venv/bin/python docs/pictures/privacy.py``. The other picture of docs/privacy.md comes
from benchmarks/small_hospitals.py.
"""

from pathlib import Path

from aecnn.commands.privacy_outlook import Question, outlook
from aecnn.commands.privacy_screen import draw_outlook

PLAN = Question(patients=1_000, sample_rate=0.05, steps=400, rounds=10, epsilon=8.0)


if __name__ == "__main__":
    draw_outlook(outlook(PLAN), Path(__file__).with_name("privacy-plan.png"))
