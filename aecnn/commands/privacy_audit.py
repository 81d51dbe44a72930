"""The command `audit-privacy`: an attack on one's own training, against the privacy it claims."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from aecnn.config import SimulationConfig, load_config, locate_config
from aecnn.console import JsonOption, print_json, progress_bar, say
from aecnn.errors import ConfigError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch alone takes seconds
    from aecnn.data.source import LoadedImages

EXIT_CLAIM_REFUTED = 1
IMAGES_PER_CANARY = 4


@dataclass(frozen=True)
class Audit:
    """What an audit found; adjacency: one patient is added or removed."""

    claimed_epsilon: float
    epsilon_at_least: float  # with 95 % confidence
    delta: float
    noise_multiplier: float
    sample_rate: float
    num_steps: int
    num_canaries: int  # over all repeats
    num_guesses: int
    num_correct: int
    auroc_with_privacy: float
    auroc_without_privacy: float

    @property
    def holds(self) -> bool:
        """Whether the attack leaves the claim standing."""
        return self.epsilon_at_least <= self.claimed_epsilon


def audit_privacy(
    config: Annotated[Path, typer.Argument(help="YAML of a simulation with training.privacy: configs/audit.yaml.")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override one value: --set training.privacy.epsilon=4. Repeatable."
        ),
    ] = None,
    canaries: Annotated[int, typer.Option(min=8, max=5000, help="Canary patients, each in with probability ½.")] = 80,
    repeats: Annotated[int, typer.Option(min=1, help="Trainings from the start; their guesses count together.")] = 1,
    json_: JsonOption = False,
) -> None:
    """Attack a private training: a lower bound on its ε, and how well an attacker tells who took part.

    Canary patients (noise with findings at random, 4 images each) join the training patients, each with probability ½.
    The attacker knows all images and sees every step's noised gradient, which is more than a centre sees, and guesses
    who was there. The same attack without privacy shows what the noise is for.

    Exit codes: 0 the claim stands (no proof that it is true), 1 it is refuted, 2 the input is faulty.
    """
    settings = load_config(locate_config(str(config)), SimulationConfig, overrides=set_ or [])
    if settings.training.privacy is None:
        raise ConfigError(config, ["training.privacy is not given, so there is no claim to attack: add the section"])
    found = _audit(settings, num_canaries=canaries, repeats=repeats)
    if json_:
        print_json(asdict(found) | {"holds": found.holds})
    else:
        _show(found, Console())
    if not found.holds:
        raise typer.Exit(EXIT_CLAIM_REFUTED)


def _audit(settings: SimulationConfig, *, num_canaries: int, repeats: int) -> Audit:
    import numpy as np
    import torch

    from aecnn.model.joint import build_model
    from aecnn.training.device import resolve_device
    from aecnn.training.privacy.audit import attack, claimed_epsilon, without_privacy
    from aecnn.training.privacy.canaries import with_canaries
    from aecnn.training.privacy.entropy import SystemEntropy
    from aecnn.training.privacy.promise import promise_of

    data = _training_images(settings)
    canaries = with_canaries(
        data,
        np.arange(len(data.manifest)),
        num_canaries=num_canaries,
        images_per_canary=IMAGES_PER_CANARY,
        random=np.random.default_rng(settings.seed),
    )
    plan, num_rounds = settings.plan, settings.federation.num_rounds
    promise = promise_of(plan, declared_patients=canaries.num_ordinary_patients + num_canaries // 2)
    if promise is None:
        raise ConfigError("aecnn audit-privacy", ["training.privacy is not given"])
    torch.set_num_threads(settings.training.num_threads)
    steps = num_rounds * promise.steps_per_round
    with progress_bar("attacking") as (progress, task):
        progress.update(task, total=2 * repeats * steps)
        private, plain = (
            attack(
                lambda: build_model(plan.model, seed=settings.seed, input_size_px=plan.images.input_size_px),
                canaries,
                chosen,
                given,
                num_rounds=num_rounds,
                num_runs=repeats,
                seed=settings.seed,
                entropy=SystemEntropy(),
                device=resolve_device("auto"),
                on_step=lambda: progress.advance(task),
            )
            for chosen, given in ((plan, promise), (without_privacy(plan, promise), None))
        )
    return Audit(
        claimed_epsilon=claimed_epsilon(promise, num_rounds=num_rounds),
        epsilon_at_least=private.epsilon_at_least(delta=promise.delta),
        delta=promise.delta,
        noise_multiplier=promise.noise_multiplier,
        sample_rate=promise.config.sample_rate,
        num_steps=steps,
        num_canaries=num_canaries * repeats,
        num_guesses=private.num_guesses,
        num_correct=private.num_correct,
        auroc_with_privacy=private.auroc,
        auroc_without_privacy=plain.auroc,
    )


def _training_images(settings: SimulationConfig) -> "LoadedImages":
    from aecnn.data.manifest import read_split
    from aecnn.data.phantom import write_phantom
    from aecnn.data.source import load_images

    with progress_bar("reading images") as (progress, task):

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if settings.data.phantom is not None:
            write_phantom(settings.data.root, settings.data.phantom, on_progress=tell)
        manifest = read_split(settings.data, "train_val")
        return load_images(manifest, settings.data, size_px=settings.images.size_px, on_progress=tell)


def _show(found: Audit, console: Console) -> None:
    say(
        console,
        f"Claimed: ε {found.claimed_epsilon:.2f} at δ {found.delta:g}, one patient added or removed "
        f"({found.num_steps} steps, q {found.sample_rate:g}, noise multiplier {found.noise_multiplier:.3g}).",
    )
    say(
        console,
        f"Attacked: {found.num_correct} of {found.num_guesses} guesses about {found.num_canaries} canary patients are "
        f"right, so ε is at least {found.epsilon_at_least:.2f} (95 % confidence).",
    )
    say(
        console,
        f"Who took part is told with AUROC {found.auroc_with_privacy:.2f} with privacy, and "
        f"{found.auroc_without_privacy:.2f} without (0.5: chance).",
    )
    if found.holds:
        say(console, "[green]The claim stands[/] against this attack, which is no proof of it.")
    else:
        say(console, "[bold red]The claim is refuted:[/] more leaks than it allows. Do not train on patients with it.")
