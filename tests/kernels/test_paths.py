"""Each path gives the numbers of an oracle that shares no code with it, on inputs that bite."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import uadt
from tests.kernels.cases import (
    adversarial,
    assert_autocast_changes_nothing,
    assert_same,
    by_the_oracle,
    gradients,
    tokens,
)
from uadt import kernels
from uadt.kernels import eager, moments, native, plain, rows

PATHS = ["plain", "eager", "native"]
"""Those that run in any process; the compiler and Triton have tests of their own."""

SIZES = [1, 2, 17, 1000, 5003]  # below a vector, beside one, beside a block, several blocks


@pytest.fixture(autouse=True)
def compiler() -> None:
    """The C++ path is part of the contract: a machine without a compiler cannot test it."""
    try:
        native.prepare()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_every_statistic_against_the_oracle(path: str, vocab: int) -> None:
    ids = tokens(vocab)
    for name, logits in adversarial(vocab).items():
        for temperature in (1.0, 0.6) if name in ("plain", "some -inf") else (1.0,):
            expected = by_the_oracle(logits, ids, temperature)
            if name == "finfo.min as a mask":  # float32 cannot hold the sum of such logits
                expected = expected._replace(self_certainty=torch.full((6,), math.inf))
            got = kernels.statistics(logits, ids, temperature, path=path)
            if name == "finfo.min as a mask":
                got = got._replace(self_certainty=expected.self_certainty)
            assert_same(got, expected)


@pytest.fixture(params=[True, False], ids=["fused", "rounded twice"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a fused multiply-add, as far as the eager path believes."""

    def rounds_twice(device: torch.device) -> bool:
        assert device.type == "cpu"
        return False

    if not request.param:
        monkeypatch.setattr(eager, "_rounds_once", rounds_twice)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("vocab", SIZES)
def test_entropy_and_logprob_alone_against_the_oracle(vocab: int) -> None:
    ids = tokens(vocab)
    for name, logits in adversarial(vocab).items():
        # At 0.6, float32 could not hold the log-probability of a token that finfo.min masks.
        temperature = 1.0 if name == "finfo.min as a mask" else 0.6
        expected = by_the_oracle(logits, ids, temperature)
        entropy, logprob = kernels.entropy_and_logprob(logits, ids, temperature, path="eager")
        assert logprob is not None
        assert_same(expected._replace(entropy=entropy, logprob=logprob), expected)
        # Alone, and after a row that is like none of the others.
        first = torch.full_like(logits[:1], -math.inf)
        again, _ = kernels.entropy_and_logprob(
            torch.cat([first, logits]), None, temperature, path="eager"
        )
        torch.testing.assert_close(again[1:], entropy, atol=1e-6, rtol=0, equal_nan=True, msg=name)


@pytest.mark.usefixtures("processor")
def test_logits_at_the_ends_of_float32() -> None:
    ends = torch.finfo(torch.float32)
    rows_of = torch.zeros(5, 1000)
    rows_of[0] = ends.min  # all alike, so ln 1000
    rows_of[1, 7] = ends.max  # certain
    rows_of[2] = 1e30  # a shift by the largest, if rounded, is wrong by 1e23
    rows_of[3, ::2] = ends.min  # half of them
    rows_of[4] = ends.max
    ids = torch.full((5,), 7)
    for temperature in (1.0, 0.5):
        x = rows_of.clone().requires_grad_()
        entropy, logprob = kernels.entropy_and_logprob(x, ids, temperature, path="eager")
        expected = torch.tensor([1000.0, 1.0, 1000.0, 500.0, 1000.0]).log()
        torch.testing.assert_close(entropy.detach(), expected, atol=1e-6, rtol=0)
        assert logprob is not None
        torch.testing.assert_close(logprob.detach(), -expected, atol=1e-6, rtol=0)
        logprob.sum().backward()
        assert x.grad is not None
        # d log p_7 / d x_v = ([v = 7] - p_v) / T
        p = torch.full((5, 1000), 0.001)
        p[1] = torch.arange(1000) == 7
        p[3] = (torch.arange(1000) % 2) / 500.0
        onehot = (torch.arange(1000) == 7).float()
        torch.testing.assert_close(x.grad, (onehot - p) / temperature, atol=2e-7, rtol=0)


@pytest.mark.parametrize("path", ["eager", "native"])
def test_the_goal_on_exactness_at_the_size_of_a_real_vocabulary(path: str) -> None:
    # Entropy and log-probability within 1e-6 nats of float64, at any offset up to 1e4.
    base = 3.0 * torch.randn(4, 151_936, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 151_935, 77_777, 4])
    masked = base.index_fill(1, torch.arange(0, 151_936, 3), -math.inf)
    for logits in (base, base + 1e3, base + 1e4, masked, base.bfloat16()):
        exact = plain.statistics(logits.double(), ids, 1.0)
        entropy, logprob = kernels.entropy_and_logprob(logits, ids, 1.0, path=path)
        assert logprob is not None
        assert exact.logprob is not None
        assert (entropy - exact.entropy).abs().max() <= 1e-6
        finite = exact.logprob.isfinite()
        assert (logprob - exact.logprob)[finite].abs().max() <= 1e-6
        assert torch.equal(logprob[~finite].double(), exact.logprob[~finite])


@pytest.mark.parametrize("vocab", [1, 17, 5003])
@pytest.mark.parametrize("path", ["eager", "native"])
def test_gradients_of_each_statistic_equal_those_of_the_plain_path_in_float64(
    path: str, vocab: int
) -> None:
    ids = tokens(vocab)
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()
    for name, logits in adversarial(vocab).items():
        if name in ("certain", "finfo.min as a mask", "rising"):
            continue
        expected = gradients(logits.double(), ids, 0.7, "plain", weights)
        got = gradients(logits, ids, 0.7, path, weights)
        rounding = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[logits.dtype]
        for a, b in zip(got, expected, strict=True):
            assert a.isfinite().all()
            scale = float(b.abs().max().clamp(min=1.0))
            torch.testing.assert_close(a.double(), b, atol=5 * rounding * scale, rtol=rounding)


@pytest.mark.parametrize("path", PATHS)
def test_a_forbidden_token_gets_no_gradient_and_a_broken_row_none_at_all(path: str) -> None:
    logits = adversarial(1000)["broken rows"].requires_grad_()
    entropy, _ = kernels.entropy_and_logprob(logits, None, 1.0, path=path)
    entropy[entropy.isfinite()].sum().backward()
    grad = logits.grad
    assert grad is not None
    assert grad[logits == -math.inf].eq(0.0).all()
    assert grad[1:5].eq(0.0).all()  # rows 1 to 4 are no distributions
    assert grad[0].abs().max() > 0.0


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_moments_of_any_parts_merge_to_those_of_the_whole(data: st.DataObject) -> None:
    number = st.floats(-50, 50, width=32) | st.just(-math.inf)
    row = data.draw(st.lists(number, min_size=2, max_size=40))
    cut = data.draw(st.integers(1, len(row) - 1))
    x = torch.tensor([row])
    whole = eager.moments(x, 0.8, full=True)
    parts = [eager.moments(p, 0.8, full=True) for p in (x[:, :cut], x[:, cut:])]
    for order in (parts, parts[::-1]):
        stacked = moments.Moments(*(torch.stack(m, dim=-1) for m in zip(*order, strict=True)))
        merged = moments.merge(stacked, 0.8)
        if bool(moments.is_broken(whole).any()):
            assert moments.is_broken(merged).all()
            continue
        for a, b in zip(merged, whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=2e-6)


def test_merging_by_hand() -> None:
    # Logits (0, ln 2 | ln 4): left top ln 2, s = 1/2 + 1; right top ln 4, s = 1.
    left = eager.moments(torch.tensor([[0.0, math.log(2)]]), 1.0, full=True)
    right = eager.moments(torch.tensor([[math.log(4)]]), 1.0, full=True)
    pairs = zip(left, right, strict=True)
    m = moments.merge(moments.Moments(*(torch.stack(p, dim=-1) for p in pairs)), 1.0)
    # Weights 1/2 and 1: s = 3/4 + 1; q = 1/16 + 1/4 + 1; u = -ln 4 - ln 2.
    assert float(m.total) == pytest.approx(1.75)
    assert float(m.squares) == pytest.approx(21 / 16)
    assert float(m.drop) == pytest.approx(-math.log(8))
    # t = 1/4 (-ln 4) + 1/2 (-ln 2) = -ln 2
    assert float(m.first) == pytest.approx(-math.log(2))
    assert float(m.possible) == 3


@pytest.mark.parametrize("path", ["eager", "native"])
def test_any_strides_any_leading_axes_and_no_copy(path: str) -> None:
    whole = torch.randn(3, 5, 700)
    ids = torch.randint(0, 700, (3, 5))
    views: list[tuple[Tensor, Tensor]] = [
        (whole[:, :-1], ids[:, 1:]),  # the usual shift
        (whole.transpose(0, 1), ids.t()),
        (whole[..., ::2], ids // 2),
        (whole.permute(2, 1, 0)[:4], torch.zeros(4, 5, dtype=torch.long)),
        (whole[0, 0], ids[0, 0]),
        (whole[:1, :1].expand(3, 5, 700), ids),
    ]
    for logits, y in views:
        expected = plain.statistics(logits.double(), y, 1.0)
        assert_same(kernels.statistics(logits, y, 1.0, path=path), expected)
        x = logits.detach().requires_grad_()
        kernels.statistics(x, y, 1.0, path=path).entropy.sum().backward()
        z = logits.detach().double().requires_grad_()
        plain.statistics(z, y, 1.0).entropy.sum().backward()
        assert x.grad is not None
        assert z.grad is not None
        torch.testing.assert_close(x.grad.double(), z.grad, atol=1e-6, rtol=1e-5)
    assert [len(s) for s in rows.slabs(whole[:, :-1])] == [4, 4, 4]
    assert all(s.data_ptr() == whole[i].data_ptr() for i, s in enumerate(rows.slabs(whole[:, :-1])))


@pytest.mark.parametrize("path", PATHS)
def test_autocast_changes_no_digit(path: str) -> None:
    assert_autocast_changes_nothing(path)


@pytest.mark.parametrize("path", PATHS)
def test_what_is_made_on_the_way_is_made_on_the_device_of_the_logits(path: str) -> None:
    # A default device that holds no numbers stands for any other than that of the logits.
    ids, weights = tokens(700), torch.ones(6, 6, dtype=torch.float64)
    logits = adversarial(700)["some -inf"]
    expected = kernels.statistics(logits, ids, 0.7, path=path)
    x = logits.clone().requires_grad_()
    with torch.device("meta"):
        got = kernels.statistics(x, ids, 0.7, path=path)
        torch.stack([v for v in got if v is not None]).nan_to_num(neginf=0.0).sum().backward()
    assert_same(got, expected)
    assert x.grad is not None
    assert torch.allclose(
        x.grad, gradients(logits, ids, 0.7, path, weights)[-1], atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("path", ["eager", "native"])
def test_minus_inf_in_one_tile_of_several_changes_no_other_row(path: str) -> None:
    # Rows share a tile, and a row has two: -inf in one of them must not touch the rest.
    logits = torch.randn(4, 600_000, generator=torch.Generator().manual_seed(2))
    clean = kernels.statistics(logits, None, 1.0, path=path)
    logits[1, 5:300_000:3] = -math.inf
    logits[2, 599_990:] = -math.inf
    got = kernels.statistics(logits, None, 1.0, path=path)
    exact = plain.statistics(logits.double(), None, 1.0)
    for a, b, c in zip(got, exact, clean, strict=True):
        if a is not None and b is not None and c is not None:
            torch.testing.assert_close(a.double(), b, atol=3e-6, rtol=1e-5)
            assert torch.equal(a[[0, 3]], c[[0, 3]])
    alone, _ = kernels.entropy_and_logprob(logits, None, 1.0, path=path)
    torch.testing.assert_close(alone.double(), exact.entropy, atol=1e-6, rtol=0)


@pytest.mark.parametrize("path", PATHS)
def test_nothing_in_nothing_out(path: str) -> None:
    for shape in ((0, 5), (2, 0, 5)):
        logits = torch.zeros(shape, requires_grad=True)
        wish = None if path != "plain" else path  # no path is asked for nothing
        s = kernels.statistics(logits, torch.zeros(shape[:-1], dtype=torch.long), 1.0, path=wish)
        assert s.entropy.shape == shape[:-1]
        s.entropy.sum().backward()


@pytest.mark.parametrize("path", ["eager", "native"])
def test_the_second_derivative_is_refused_in_words(path: str) -> None:
    logits = torch.randn(2, 300, requires_grad=True)
    entropy = kernels.statistics(logits, None, 1.0, path=path).entropy.sum()
    (grad,) = torch.autograd.grad(entropy, logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; set UADT_KERNELS=plain"):
        grad.square().sum().backward()


def test_the_plain_path_has_a_second_derivative() -> None:
    logits = torch.randn(2, 30, dtype=torch.float64, requires_grad=True)

    def entropy(x: Tensor) -> Tensor:
        return plain.statistics(x, None, 1.0).entropy

    assert torch.autograd.gradgradcheck(entropy, logits)


@pytest.mark.parametrize("path", ["eager", "native"])
def test_no_grad_keeps_nothing(path: str) -> None:
    logits = torch.randn(2, 300, requires_grad=True)
    with torch.no_grad():
        assert not kernels.statistics(logits, None, 1.0, path=path).entropy.requires_grad


@pytest.mark.parametrize("path", ["eager", "native"])
def test_the_numbers_of_a_row_do_not_depend_on_its_neighbours(path: str) -> None:
    logits = torch.cat([torch.randn(9, 4000), torch.full((1, 4000), -math.inf)])
    logits[4, ::2] = -math.inf
    together = kernels.statistics(logits, None, 1.0, path=path).entropy
    for i in range(10):
        alone = kernels.statistics(logits[i : i + 1], None, 1.0, path=path).entropy
        torch.testing.assert_close(together[i : i + 1], alone, equal_nan=True, atol=2e-6, rtol=0)


@pytest.mark.parametrize("path", ["plain", "eager", "native"])
def test_nested_logits_give_nested_statistics(path: str) -> None:
    values, lengths = torch.randn(5, 64), torch.tensor([0, 2, 5])  # 2 and 3 tokens
    ids = torch.tensor([1, 2, 3, 4, 5])
    logits = torch.nested.nested_tensor_from_jagged(values, lengths)
    nested_ids = torch.nested.nested_tensor_from_jagged(ids, lengths)
    got = kernels.statistics(logits, nested_ids, 1.0, path=path)
    expected = plain.statistics(values, ids, 1.0)
    assert got.entropy.is_nested
    first, second = got.entropy.unbind()
    torch.testing.assert_close(torch.cat([first, second]), expected.entropy)
    assert got.logprob is not None
    torch.testing.assert_close(torch.cat(list(got.logprob.unbind())), expected.logprob)


@pytest.mark.parametrize("path", ["plain", "eager"])
def test_a_nested_tensor_with_holes_keeps_them(path: str) -> None:
    # Rows of 2 and 3 tokens in a buffer of 6: the third row of the buffer belongs to nobody.
    values, ids = torch.randn(6, 64, requires_grad=True), torch.tensor([1, 2, -1, 3, 4, 5])
    logits = torch.nested.nested_tensor_from_jagged(
        values, torch.tensor([0, 3, 6]), torch.tensor([2, 3])
    )
    nested_ids = torch.nested.nested_tensor_from_jagged(ids, *jagged(logits))
    got = kernels.statistics(logits, nested_ids, 1.0, path=path)
    expected = plain.statistics(values, ids, 1.0)
    assert got.entropy.shape == logits.shape[:-1]
    assert got.logprob is not None
    assert expected.logprob is not None
    for a, b in ((got.entropy, expected.entropy), (got.logprob, expected.logprob)):
        first, second = a.unbind()
        torch.testing.assert_close(first, b[:2])
        torch.testing.assert_close(second, b[3:])


def jagged(nested: Tensor) -> tuple[Tensor, Tensor | None]:
    return nested.offsets(), nested.lengths()  # pyright: ignore


def test_the_public_functions_take_nested_tensors_with_holes(shapes_unchecked: None) -> None:
    values, ids = torch.randn(6, 64), torch.arange(6)
    logits = torch.nested.nested_tensor_from_jagged(
        values, torch.tensor([0, 3, 6]), torch.tensor([2, 3])
    )
    nested_ids = torch.nested.nested_tensor_from_jagged(ids, *jagged(logits))
    got = uadt.token_statistics(logits, nested_ids)
    second = got.entropy.unbind()[1]
    torch.testing.assert_close(second, uadt.token_entropy(values)[3:])


def test_nested_tensors_that_are_refused_say_what_is_taken() -> None:
    rows_of = [torch.randn(2, 8), torch.randn(3, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is refused here
        strided = torch.nested.nested_tensor(rows_of)
    with pytest.raises(ValueError, match=r"logits must be nested with layout=torch\.jagged"):
        kernels.statistics(strided, None, 1.0)
    with pytest.raises(ValueError, match=r"hidden must be nested with layout=torch\.jagged"):
        kernels.linear_statistics(strided, torch.randn(5, 8), None, None, 1.0)
    logits = torch.nested.nested_tensor(rows_of, layout=torch.jagged)
    ids = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.arange(3)], layout=torch.jagged)
    for wrong in (ids, torch.arange(5)):
        with pytest.raises(ValueError, match="with the very offsets tensor of logits"):
            kernels.statistics(logits, wrong, 1.0)
    with pytest.raises(ValueError, match="must be ragged along its second axis"):
        kernels.statistics(logits.transpose(1, 2), None, 1.0)


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UADT_KERNELS", raising=False)
    large, small = torch.zeros(4, 20_000), torch.zeros(4, 20)
    assert kernels.choose(large) == "eager"
    assert kernels.choose(large.bfloat16()) == "eager"
    assert kernels.choose(small) == "plain"
    assert kernels.choose(large.double()) == "plain"
    assert kernels.choose(torch.zeros(0, 20_000)) == "plain"
    assert kernels.choose(torch.zeros(4, 20_000, device="meta")) == "plain"
    assert kernels.choose(small, small) == "eager"  # a product's size is not that of its factors
    monkeypatch.setenv("UADT_KERNELS", "native")
    assert kernels.choose(large) == "native"
    monkeypatch.setenv("UADT_KERNELS", "plain")
    assert kernels.choose(large) == "plain"
    monkeypatch.setenv("UADT_KERNELS", "fast")
    with pytest.raises(ValueError, match=r"UADT_KERNELS must be auto or one of .*, got 'fast'"):
        kernels.choose(large)


def test_a_path_that_cannot_run_says_why_and_another_is_taken() -> None:
    # In a process of its own: the answer is remembered.
    code = (
        "import warnings, torch, uadt.kernels as k\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    assert k.choose(torch.zeros(4, 20_000)) == 'eager'\n"
        "    assert k.choose(torch.zeros(4, 20_000)) == 'eager'\n"
        "print(len(seen), seen[0].message)\n"
    )
    environment = {"UADT_KERNELS": "native", "CXX": "/no/such/compiler", "PATH": "", "HOME": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("1 UADT_KERNELS=native is not used: "), done.stderr
    assert "/no/such/compiler" in done.stdout


def test_transforms_of_torch_func_take_the_plain_path() -> None:
    logits = torch.randn(3, 20_000)

    def entropy(x: Tensor) -> Tensor:
        return kernels.statistics(x, None, 1.0).entropy.sum()

    grad = torch.func.grad(entropy)(logits)
    x = logits.clone().requires_grad_()
    entropy(x).backward()
    assert x.grad is not None
    torch.testing.assert_close(grad, x.grad, atol=1e-6, rtol=1e-5)
