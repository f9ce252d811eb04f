"""One prompt, several answers."""

from tpuinfer.engine.choices import split
from tpuinfer.engine.request import SamplingParams
from tpuinfer.testing.constraint import FakeConstraint


def test_one_answer_keeps_the_id() -> None:
    params = SamplingParams(seed=5, prompt_logprobs=2)
    (only,) = split("r", [1, 2], params, shown_controls=(7,))
    assert (only.request_id, only.choice, only.constraint) == ("r", 0, None)
    assert (only.params, only.prompt_token_ids, only.shown_controls) == (params, [1, 2], (7,))


def test_several_share_a_seed_and_score_the_prompt_once() -> None:
    several = split("r", [1], SamplingParams(n=3, prompt_logprobs=0))
    assert [one.request_id for one in several] == ["r-0", "r-1", "r-2"]
    assert [one.choice for one in several] == [0, 1, 2]
    assert [one.params.prompt_logprobs for one in several] == [0, None, None]
    (seed,) = {one.params.seed for one in several}
    assert seed is not None
    assert {one.params.n for one in several} == {1}
    (again,) = {one.params.seed for one in split("r", [1], SamplingParams(n=3))}
    assert again != seed  # but once in 2**32 times


def test_each_has_a_constraint_of_its_own() -> None:
    made = [
        one.constraint
        for one in split(
            "r", [1], SamplingParams(n=2), constraint=lambda: FakeConstraint(lambda _: [1])
        )
    ]
    assert None not in made
    assert made[0] is not made[1]


def test_all_of_a_background_prompt_are_background_requests() -> None:
    assert [one.background for one in split("r", [1], SamplingParams(n=2), background=True)] == [
        True,
        True,
    ]
    assert not split("r", [1], SamplingParams())[0].background
