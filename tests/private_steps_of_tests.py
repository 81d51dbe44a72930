"""What the tests of private steps train: random images, small settings, and steps of injected entropy."""

import numpy as np
import torch

from aecnn.config import TrainingConfig
from aecnn.privacy_config import PrivacyConfig
from aecnn.training.loop import build_optimizer
from aecnn.training.privacy.promise import Promise
from aecnn.training.privacy.step import PrivateStep
from entropy_of_tests import SeededEntropy

CPU = torch.device("cpu")
SIZE_PX = 64


def random_images(count, *, seed=0, size_px=SIZE_PX):
    """Random images [count, 1, S, S] with targets [count, 14]."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, size_px, size_px, generator=random)
    return images, (torch.rand(count, 14, generator=random) < 0.3).float()


def reader_of_random_images(count, *, seed=0):
    images, targets = random_images(count, seed=seed)
    return lambda rows: (images[torch.from_numpy(rows)], targets[torch.from_numpy(rows)])


def a_training(**changes):
    return TrainingConfig(
        **(
            {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-3, "batch_size": 4, "local_steps": 1}
            | changes
        )
    )


def a_promise(*, sigma=1.0, clip=1.0, sample_rate=0.5, patients=20, steps=1, gradients="loop", images_per_patient=1):
    config = PrivacyConfig(
        noise_multiplier=sigma or 1.0,
        max_grad_norm=clip,
        sample_rate=sample_rate,
        gradients=gradients,
        images_per_patient=images_per_patient,
        total_steps=steps,
    )
    return Promise(config, patients, delta=1e-5, noise_multiplier=sigma, steps_per_round=steps)


def a_step(model, training=None, promise=None, *, seed=1):
    training, promise = training or a_training(), promise or a_promise()
    return PrivateStep(model, build_optimizer(model, training), training, promise, entropy=SeededEntropy(seed))


def rows_of(*patients):
    return [np.array(rows, dtype=np.intp) for rows in patients]


def parameters_of(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_all_close(found, wanted, *, rtol=1e-4, atol=1e-6):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=rtol, atol=atol)


def released_sum(model, sampled, read, *, clip, gradients="loop", entropy=None):
    """What a step would release were there no noise, as a vector: the sum over patients of clipped gradients."""
    promise = a_promise(sigma=0.0, clip=clip, sample_rate=1.0, patients=1, gradients=gradients)
    training, caught = a_training(weight_decay=0.0), []
    step = PrivateStep(model, build_optimizer(model, training), training, promise, entropy=entropy or SeededEntropy(1))
    handle = step._optimizer.register_step_pre_hook(
        lambda optimizer, *_: caught.extend(p.grad.double().flatten() for p in optimizer.param_groups[0]["params"])
    )
    step.take(sampled, read)
    handle.remove()
    return torch.cat(caught)
