"""How a search is computed: chosen once, and kept by a run that goes on."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.soft_prompt.program import How, choose_how
from experiments.soft_prompt.study import Config, read_study
from jaxalign.errors import UserError
from jaxalign.sharding import make_mesh


@pytest.fixture(scope="module")
def study():
    return read_study(Config())


def test_a_new_run_takes_what_keeps_the_device_busy(study, capsys):
    assert choose_how(Config(), study, make_mesh(), {}) == How(4, "xla", fixed=False)
    assert "attention by xla: cpu has xla alone" in capsys.readouterr().out
    assert choose_how(Config(chunk=3), study, make_mesh(), {}) == How(3, "xla", fixed=False)


def test_a_run_that_goes_on_keeps_what_it_began_with(study, capsys):
    began = {"chunk": 7, "attention": "xla", "model_sha256": "…"}
    assert choose_how(Config(), study, make_mesh(), began) == How(7, "xla", fixed=True)
    assert "attention by xla: as this run began" in capsys.readouterr().out


def test_a_kernel_that_is_not_here_any_more_is_refused(study):
    with pytest.raises(UserError, match="--attention splash: cpu has xla alone"):
        choose_how(Config(), study, make_mesh(), {"chunk": 7, "attention": "splash"})


def test_asked_for_what_this_device_lacks(study):
    with pytest.raises(UserError, match="--attention pallas"):
        choose_how(dataclasses.replace(Config(), attention="pallas"), study, make_mesh(), {})
