"""Several threads of one process train and predict as each would alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ndvit import ViTClassifier
from ndvit.network.committee import first_transformer
from ndvit.network.fast import only_read_tokens
from tinyruns import fit_tiny, tensors, toy

DROPOUT = {"depth": 1, "embed_dim": 16, "num_heads": 2, "drop_rate": 0.3}


def classifier(seed):
    return ViTClassifier("basic", model="vit_pico", steps=6, random_state=seed, options=DROPOUT)


def in_threads(function, arguments):
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(function, arguments))


def test_classifiers_fitted_in_threads_equal_those_fitted_alone(capfd):
    data = toy()
    alone = [classifier(seed).fit(*data).predict_proba(data[0]) for seed in (0, 1)]
    state = torch.get_rng_state()
    together = in_threads(lambda seed: classifier(seed).fit(*data).predict_proba(data[0]), (0, 1, 0))
    for seed, answers in zip((0, 1, 0), together):
        np.testing.assert_array_equal(answers, alone[seed])
    assert not np.allclose(alone[0], alone[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")  # no message of Lightning either


def test_runs_in_threads_equal_those_alone():
    options = {"steps": 4, "drop_rate": 0.3}
    alone = tensors(fit_tiny(toy(), **options))
    for trained in in_threads(lambda _: fit_tiny(toy(), **options), range(3)):
        assert all(torch.equal(tensors(trained)[name], value) for name, value in alone.items())


def test_predictions_in_threads_share_a_model():
    x, y = toy()
    fitted = classifier(0).fit(x, y)
    alone = fitted.predict_proba(x)
    for answers in in_threads(lambda _: fitted.predict_proba(x), range(12)):
        np.testing.assert_array_equal(answers, alone)
    assert not first_transformer(fitted.model_.network).skip_unread_tokens


def test_the_last_thread_restores_what_is_computed():
    network = first_transformer(classifier(0).fit(*toy()).model_.network)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with only_read_tokens(network):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with only_read_tokens(network):
        thread.start()
        assert inside.wait(10)
    assert network.skip_unread_tokens  # the other thread still needs it
    leave.set()
    thread.join(10)
    assert not network.skip_unread_tokens
