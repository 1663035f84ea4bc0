"""Soft prompts: where they start, and the spaces they are searched in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt import space as sp
from jaxalign.surveys.names import group_name

KEY = jax.random.key(7)
V, D = 200, 12
decode = jax.jit(sp.decode)
populate = jax.jit(sp.initial_population, static_argnums=2)
EMBED = 0.3 * jax.random.normal(jax.random.key(1), (V, D)) + 0.1


def config(**fields) -> sp.SoftPromptConfig:
    return sp.SoftPromptConfig(**{"length": 4, **fields})


def space(**fields) -> sp.Space:
    c = config(**fields)
    return sp.make_space(c, sp.initial_prompt(c, EMBED, [3, 5, 8], KEY), EMBED)


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"length": 0}, "`length` 0"),
        ({"spread": 0.0}, "`spread` 0.0"),
        ({"spread": float("nan")}, "`spread` nan"),
        ({"projection_dims": 0}, "`projection_dims` 0"),
        ({"projection": "principal", "projection_dims": 7}, "`projection_dims` 7"),
        ({"projection_seed": -1}, "`projection_seed` -1"),
        ({"vocabulary_top": 0}, "`vocabulary_top` 0"),
        ({"text": "From {Country}."}, "{Country}"),
        ({"text": " "}, "`text` is empty"),
    ],
)
def test_impossible_settings_are_refused(fields, says):
    with pytest.raises(UserError, match=says) as caught:
        config(**fields)
    assert "\n" not in str(caught.value)


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(sp.SoftPromptConfig, args=["--help"])
    lines = " ".join(capsys.readouterr().out.split())
    for words in (
        "embedding vectors added",
        "as in PEFT",
        "Black-Box Tuning",
        "root mean square",
    ):
        assert words in lines
    assert tyro.cli(sp.SoftPromptConfig, args=[]) == sp.SoftPromptConfig()


def test_country_fills_the_text():
    text = "In {country}, {country}: {demonym}, from {article_country}"
    assert sp.prompt_text(text, group_name("NLD")) == (
        "In Netherlands, Netherlands: Dutch, from the Netherlands"
    )
    with pytest.raises(UserError, match="`text`: night owls has no demonym"):
        sp.prompt_text(text, group_name("night owls"))
    with pytest.raises(UserError, match=r"`text`: \{contry\} is not filled in; .*\{country\}"):
        config(text="In {contry}")


# --- starts ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 9), ids=st.lists(st.integers(0, V - 1), min_size=1, max_size=9))
def test_text_is_cut_or_repeated(length, ids):
    prompt = sp.initial_prompt(config(length=length), EMBED, ids, KEY)
    assert prompt.dtype == jnp.float32
    expected = (ids * length)[:length]
    np.testing.assert_array_equal(prompt, np.asarray(EMBED)[expected])


@pytest.mark.parametrize("ids", [[], [0, V], [-1]])
def test_text_of_another_tokenizer_is_refused(ids):
    with pytest.raises(UserError, match="initial text"):
        sp.initial_prompt(config(), EMBED, ids, KEY)


def test_vocabulary_start_takes_distinct_low_rows():
    c = config(initialisation="vocabulary", length=10, vocabulary_top=10)
    prompt = sp.initial_prompt(c, EMBED, [], KEY)
    rows = [int(np.flatnonzero((np.asarray(EMBED) == p).all(1))[0]) for p in np.asarray(prompt)]
    assert sorted(rows) == list(range(10))
    longer = sp.initial_prompt(config(initialisation="vocabulary", length=V + 1), EMBED, [], KEY)
    assert longer.shape == (V + 1, D)


def test_gaussian_start_has_the_tables_moments():
    table = EMBED * jnp.linspace(0.5, 2, D)[None] + jnp.linspace(-1, 1, D)[None]
    c = config(initialisation="gaussian", length=4000)
    prompt = np.asarray(sp.initial_prompt(c, table.astype(jnp.bfloat16), [], KEY))
    assert prompt.dtype == np.float32
    np.testing.assert_allclose(prompt.mean(0), table.mean(0), atol=0.05)
    np.testing.assert_allclose(prompt.std(0), table.std(0), rtol=0.05)


@pytest.mark.parametrize("initialisation", ["vocabulary", "gaussian"])
def test_start_depends_on_its_own_country_only(initialisation):
    c = config(initialisation=initialisation)
    draws = {
        code: np.asarray(sp.initial_prompt(c, EMBED, [], sp.group_key(KEY, code)))
        for code in ("USA", "CHN")
    }
    alone = sp.initial_prompt(c, EMBED, [], sp.group_key(jax.random.key(7), "CHN"))
    np.testing.assert_array_equal(draws["CHN"], alone)
    assert not np.array_equal(draws["USA"], draws["CHN"])


# --- spaces ----------------------------------------------------------------------------------


def test_full_space_is_start_plus_scaled_z():
    s = space()
    assert s.dims == 4 * D
    z = jax.random.normal(KEY, (3, 5, s.dims))
    prompts = decode(s, z)
    assert prompts.shape == (3, 5, 4, D)
    assert prompts.dtype == jnp.float32
    rms = float(jnp.sqrt(jnp.mean(EMBED**2)))
    np.testing.assert_allclose(
        prompts, s.start[None, None] + 0.5 * rms * z.reshape(3, 5, 4, D), atol=1e-6
    )
    np.testing.assert_array_equal(sp.decode(s, jnp.zeros(s.dims)), s.start)


def subspace(dims):
    """Settings of the full space, or of a random projection to `dims`."""
    return {} if dims is None else {"projection": "random", "projection_dims": dims}


@pytest.mark.long
@pytest.mark.parametrize("dims", [None, 5, 30])
def test_unit_variance_displaces_by_scale(dims):
    c = config(**subspace(dims), length=16, spread=0.7)
    start = sp.initial_prompt(c, EMBED, [1, 2], KEY)
    s = sp.make_space(c, start, EMBED)
    np.testing.assert_allclose(s.scale, 0.7 * np.sqrt(np.mean(np.asarray(EMBED) ** 2)), rtol=1e-5)
    z = populate(s, KEY, 401)[1:]
    moved = (np.asarray(decode(s, z)) - np.asarray(start)) / float(s.scale)
    assert abs(np.sqrt(np.mean(moved**2)) - 1) < 0.12
    assert abs(moved.mean()) < 0.02


FROZEN_PROJECTION = [0.4098871, -0.3700106, 0.2602081, 0.1304727]


def test_projection_comes_from_its_seed():
    random = {"projection": "random", "projection_dims": 6}
    a, b, c = space(**random), space(**random), space(**random, projection_seed=1)
    np.testing.assert_array_equal(a.matrix, b.matrix)
    assert not np.array_equal(a.matrix, c.matrix)
    # Frozen: another generator would silently turn saved search vectors into other prompts.
    np.testing.assert_allclose(np.asarray(a.matrix)[[0, 5], 0, :2].ravel(), FROZEN_PROJECTION, 1e-5)
    z = jnp.arange(6.0)
    by_hand = a.start + a.scale * jnp.einsum("z,zmd->md", z, a.matrix, precision="highest")
    np.testing.assert_allclose(decode(a, z), by_hand, atol=1e-5)


def test_principal_directions_are_the_tables():
    """Against numpy's singular values of the centred table; unit variance moves by `scale`."""
    k = 2
    s = space(projection="principal", projection_dims=4 * k)
    centred = np.asarray(EMBED, np.float64) - np.asarray(EMBED, np.float64).mean(0)
    _, deviations, directions = np.linalg.svd(centred / np.sqrt(len(centred)), full_matrices=False)
    expected = deviations[:k, None] * directions[:k] * np.sqrt(D) / np.linalg.norm(deviations[:k])
    for m in range(4):
        for i in range(k):
            row = np.asarray(s.matrix[m * k + i])
            sign = np.sign(row[m] @ expected[i])
            np.testing.assert_allclose(row[m], sign * expected[i], atol=1e-4)
            assert not np.delete(row, m, axis=0).any(), "a direction moves one token only"
            assert row[m][np.abs(row[m]).argmax()] > 0
    np.testing.assert_allclose(np.sum(np.square(s.matrix)) / (4 * D), 1, rtol=1e-4)


def test_projection_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="`projection_dims` 48"):
        space(projection="random", projection_dims=48)
    for s in (space(), space(projection="random", projection_dims=6)):
        with pytest.raises(UserError, match=f"5 numbers .* {s.dims}"):
            sp.decode(s, jnp.zeros(5))


@pytest.mark.long
@pytest.mark.parametrize("dims", [None, 20])
def test_members_devices_and_countries_do_not_change_a_bit(dims, devices):
    c = config(**subspace(dims), length=16)
    starts_C = [sp.initial_prompt(c, EMBED, ids, KEY) for ids in ([1], [2, 3], [4])]
    spaces = [sp.make_space(c, start, EMBED) for start in starts_C]
    together = sp.make_space(c, jnp.stack(starts_C), EMBED)
    z_CxExZ = jax.random.normal(KEY, (3, 32, together.dims))
    prompts = np.asarray(decode(together, z_CxExZ))
    for i, alone in enumerate(spaces):
        np.testing.assert_array_equal(decode(alone, z_CxExZ[i]), prompts[i])
        np.testing.assert_array_equal(decode(alone, z_CxExZ[i, 5]), prompts[i, 5])
        np.testing.assert_array_equal(decode(alone, z_CxExZ[i, 4:8]), prompts[i, 4:8])
    mesh = jax.make_mesh((8,), ("members",), axis_types=(AxisType.Auto,), devices=devices)
    sharded = jax.device_put(z_CxExZ, NamedSharding(mesh, PartitionSpec(None, "members")))
    np.testing.assert_array_equal(decode(together, sharded), prompts)
    axes = sp.Space(0, None, None)
    vmapped = jax.jit(jax.vmap(sp.decode, (axes, 0)))
    np.testing.assert_array_equal(vmapped(together, z_CxExZ), prompts)


def test_first_population():
    s = space(projection="random", projection_dims=6)
    z_ExZ = np.asarray(populate(s, KEY, 500))
    assert z_ExZ.shape == (500, 6)
    assert z_ExZ.dtype == np.float32
    np.testing.assert_array_equal(sp.decode(s, z_ExZ[0]), s.start)
    assert abs(z_ExZ[1:].std() - 1) < 0.05
    np.testing.assert_array_equal(sp.initial_population(s, KEY, 5), z_ExZ[:5])
    other = sp.initial_population(s, sp.group_key(KEY, "IND"), 5)
    assert not np.array_equal(other[1:], z_ExZ[1:5])
    with pytest.raises(UserError, match="`population` 0"):
        sp.initial_population(s, KEY, 0)
