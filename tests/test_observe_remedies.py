"""Remedies: each does what it says, to the head that it names, and to no other; held to its effect in numbers."""

import copy
import math
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import clearhead as ch
from clearhead.errors import InputError
from clearhead.nn import maps
from clearhead.observe.calls import Call
from clearhead.observe.health.remedies import LowerLearningRate, QKClip, StopWithLastGood, entropy_floor
from clearhead.observe.health.reparam import qk_norm, sigma_reparam
from clearhead.observe.health.rules import Finding, check
from clearhead.observe.paths import module_at
from clearhead.observe.projections import layout, query_key, recognised

HEADS, WIDTH, N = 4, 32, 7


def hugging_face(kind, **more):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": 48}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, attn_implementation="eager", **{**sizes, **more})
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}Model")(config).double().eval()


def log_weights_of_model(model):
    tokens = torch.arange(3, 3 + N)[None]
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    out = model(tokens, output_attentions=True, **more)
    return (out.encoder_attentions if model.config.is_encoder_decoder else out.attentions)[0].log()


def bert():
    model = hugging_face("Bert", max_position_embeddings=16)
    return model.encoder.layer[0].attention.self, lambda: log_weights_of_model(model)


def distilbert():
    model = hugging_face("DistilBert", dim=WIDTH, n_heads=HEADS, n_layers=1, hidden_dim=48)
    return model.transformer.layer[0].attention, lambda: log_weights_of_model(model)


def gpt2():
    model = hugging_face("GPT2", n_embd=WIDTH, n_head=HEADS, n_layer=1)
    return model.h[0].attn, lambda: log_weights_of_model(model)


def llama():
    model = hugging_face("Llama", num_key_value_heads=2)
    return model.layers[0].self_attn, lambda: log_weights_of_model(model)


def phi3():
    model = hugging_face("Phi3", num_key_value_heads=2, pad_token_id=0)
    return model.layers[0].self_attn, lambda: log_weights_of_model(model)


def gpt_neox():
    model = hugging_face("GPTNeoX")
    return model.layers[0].attention, lambda: log_weights_of_model(model)


def bloom():
    model = hugging_face("Bloom", n_head=HEADS, n_layer=1)
    return model.h[0].self_attention, lambda: log_weights_of_model(model)


def modern_bert():
    model = hugging_face("ModernBert", pad_token_id=0)
    return model.layers[0].attn, lambda: log_weights_of_model(model)


def bart():
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 48))}
    heads = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
    model = hugging_face("Bart", d_model=WIDTH, **sizes, **heads)
    return model.encoder.layers[0].self_attn, lambda: log_weights_of_model(model)


def vit():
    model = hugging_face("ViT", image_size=8, patch_size=4)
    pixels = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    attention = next(module for module in model.modules() if recognised(module))
    return attention, lambda: model(pixels, output_attentions=True).attentions[0].log()


def clearhead(**more):
    torch.manual_seed(0)
    module, x = ch.nn.SelfAttention(WIDTH, HEADS, **more).double(), torch.randn(2, N, WIDTH).double()
    return module, lambda: module.map(x).weights().log()


def torch_mha(**more):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **more).double()
    x, y = torch.randn(2, N, WIDTH).double(), torch.randn(2, N, module.kdim).double()
    nn.init.normal_(module.in_proj_bias)
    return module, lambda: module(x, y, y, average_attn_weights=False)[1].log()


ATTENTIONS = {
    "clearhead": clearhead,
    "clearhead grouped": lambda: clearhead(kv_heads=2),
    "clearhead rotary": lambda: clearhead(positions=ch.nn.Rotary(WIDTH // HEADS)),
    "torch": torch_mha,
    "torch, widths apart": lambda: torch_mha(kdim=20, vdim=20),
    "torch, one more key": lambda: torch_mha(add_bias_kv=True, add_zero_attn=True),
    "BERT": bert,
    "DistilBERT": distilbert,
    "GPT-2": gpt2,
    "Llama, grouped": llama,
    "Phi-3, fused and grouped": phi3,
    "GPT-NeoX": gpt_neox,
    "ModernBERT": modern_bert,
    "BART": bart,
    "ViT": vit,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_scaling_a_head_scales_its_logits_and_no_others(name):
    module, log_weights = ATTENTIONS[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)  # small initial weights would make every comparison easy
        before = log_weights()
        query_key(module, 2).scale(0.3)
        after = log_weights()
    # logits up to a constant of each row, where both keys are seen
    before, after = (x - x[..., :1] for x in (before, after))
    seen = before.isfinite()
    factor = torch.ones(HEADS).double()
    factor[2] = 0.3
    expected = before * factor[:, None, None]
    assert torch.equal(seen, after.isfinite())
    assert torch.allclose(after[seen], expected[seen], rtol=1e-5, atol=1e-5), "some softmaxes are in float32"
    assert (before[:, 2][seen[:, 2]].abs() > 0.05).any(), "a logit of 0 says nothing"


def test_bloom_scales_the_products_beside_its_position_bias():
    module, log_weights = bloom()
    with torch.no_grad():
        before = log_weights()
        query_key(module, 1).scale(0.0)
        bias = log_weights()[0, 1]
        assert not torch.allclose(before[0, 1][3], bias[3])
        # ALiBi alone is left: the same step from each key to the next
        steps = bias[N - 1].diff()
        assert torch.allclose(steps, steps[:1].expand(N - 1), atol=1e-9)
        assert torch.equal(log_weights()[0, 0], before[0, 0])


def test_shared_keys_leave_the_other_heads_alone():
    module, _ = clearhead(kv_heads=2)
    key = module.key.weight.clone()
    found = query_key(module, 3)
    assert found.shared
    found.scale(0.5)
    assert torch.equal(module.key.weight, key)
    assert not query_key(clearhead()[0], 3).shared


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 3), "Linear has no query and key projections that are known"),
        (clearhead(qk_norm=True)[0], r"normalises queries and keys after projecting them \(query_norm\)"),
    ],
)
def test_what_cannot_be_scaled_is_refused_in_one_line(module, message):
    with pytest.raises(InputError, match=message) as error:
        query_key(module, 0)
    assert "\n" not in str(error.value)


def test_refusals_say_what_is_needed():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(6, 6), nn.Linear(6, 6)

    with pytest.raises(InputError, match="Mine does not say how many heads it has: give num_heads"):
        query_key(Mine(), 0)
    assert len(query_key(Mine(), 1, num_heads=3).query[0]) == 2
    with pytest.raises(InputError, match="6 rows, which 4 heads do not divide"):
        query_key(Mine(), 0, num_heads=4)
    with pytest.raises(InputError, match="head 3 is outside 0 … 2 of Mine"):
        query_key(Mine(), 3, num_heads=3)
    mine = Mine()
    mine.q_norm = nn.LayerNorm(2)
    with pytest.raises(InputError, match="q_norm"):
        query_key(mine, 0, num_heads=3)


def test_fused_weights_in_an_unknown_order_are_refused():
    class FalconAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query_key_value, self.num_heads = nn.Linear(8, 24), 2

    class Mine(FalconAttention):
        pass

    for kind in (FalconAttention, Mine):
        with pytest.raises(InputError, match="in an order that is not known"):
            query_key(kind(), 0)


def model_and_calls(scale=40.0, head=1, **more):
    torch.manual_seed(0)
    model = ch.nn.Encoder(ch.nn.EncoderLayer(ch.nn.SelfAttention(WIDTH, HEADS, **more)), 2)
    x = torch.randn(3, 12, WIDTH)
    attention = model.layers[1].attention
    with torch.no_grad():
        attention.query.weight.unflatten(0, (HEADS, -1))[head] *= scale

    def watched():
        return [Call(name, "self", "test", tuple(A.shape), A.statistics()) for name, A in maps(model, x).items()]

    return model, watched


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
def test_a_clipped_head_is_within_the_limit_and_the_others_are_what_they_were(kv_heads):
    model, watched = model_and_calls(kv_heads=kv_heads)
    calls = watched()
    logits = {call.name: call.statistics.max_logit.amax((0, 2)) for call in calls}
    assert logits["layers.1.attention"][1] > 20 > logits["layers.0.attention"].max()
    lines = QKClip(20.0).act(model=model, findings=check(calls), calls=calls)
    assert len(lines) == 1
    assert lines[0].startswith("QK-clip: layers.1.attention head 1: ")
    after = {call.name: call.statistics.max_logit.amax((0, 2)) for call in watched()}
    assert 20 * (1 - 1e-4) <= after["layers.1.attention"][1] <= 20 * (1 + 1e-5)
    kept = [head for head in range(HEADS) if head != 1]
    assert torch.allclose(after["layers.1.attention"][kept], logits["layers.1.attention"][kept], rtol=1e-5)
    assert torch.equal(after["layers.0.attention"], logits["layers.0.attention"])
    assert QKClip(20.0 * 1.001).act(model=model, calls=watched()) == []


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_the_line_says_what_was_measured_and_done_under_a_soft_cap_too(softcap):
    """A soft cap bends logits: scaled products do not bring them down to the limit, and nothing says that they do."""
    model, watched = model_and_calls(mechanism=ch.Softmax(softcap=softcap))
    attention = model.layers[1].attention
    before, calls = query_key(attention, 1), watched()
    weights = [x.clone() for x in (*before.query, *before.key)]
    measured = float(calls[1].statistics.max_logit[:, 1].max())
    (line,) = QKClip(20.0).act(model=model, calls=calls)
    said, factor = re.fullmatch(
        r"QK-clip: layers\.1\.attention head 1: largest logit (\S+), so its products q · k are scaled by (\S+)", line
    ).groups()
    assert float(said) == pytest.approx(measured, rel=1e-3)
    after = query_key(attention, 1)
    for old, new in zip(weights, (*after.query, *after.key), strict=True):
        torch.testing.assert_close(new, old * float(factor) ** 0.5, rtol=1e-2, atol=0)
    largest = float(watched()[1].statistics.max_logit[:, 1].max())
    assert largest == pytest.approx(20, rel=1e-4) if softcap is None else 20.1 < largest < measured


def test_a_head_that_cannot_be_clipped_is_named_once_and_the_run_goes_on():
    model, watched = model_and_calls()
    clip, before = QKClip(20.0), watched()
    sigma_reparam(model.layers[1].attention, keep=True)
    lines = clip.act(model=model, calls=before)
    assert len(lines) == 1
    assert "layers.1.attention cannot be clipped" in lines[0]
    assert "parametrised" in lines[0]
    assert clip.act(model=model, calls=before) == []
    assert QKClip(1.0).act(model=model, calls=[]) == []
    with pytest.raises(InputError, match="limit is 0"):
        QKClip(0.0)


def test_a_path_that_does_not_exist_is_told_with_the_nearest():
    model, _ = model_and_calls()
    assert module_at(model, "Encoder") is model
    with pytest.raises(InputError, match=r"no module 'layers\.1\.attentoin'; did you mean 'layers\.1\.attention'"):
        module_at(model, "layers.1.attentoin")


def test_an_entropy_floor_is_the_mean_shortfall_and_its_gradient_raises_entropy():
    torch.manual_seed(0)
    q = (4 * torch.randn(2, 3, 9, 8)).requires_grad_()
    k = torch.randn(2, 3, 9, 8, requires_grad=True)

    def calls(q):
        A = ch.Softmax(ch.causal())(q, k)
        return [Call("a", "self", "test", tuple(A.shape), A.statistics())]

    loss = entropy_floor(calls(q), 0.5)
    weights = (q.double() @ k.double().mT / math.sqrt(8)).masked_fill(~torch.ones(9, 9).bool().tril(), -math.inf)
    p = weights.softmax(-1)
    share = -(p * p.clamp(min=1e-300).log()).sum(-1)[:, :, 1:] / torch.arange(2, 10).log()
    expected = (0.5 - share).relu().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, q)
    (wanted,) = torch.autograd.grad(expected, q)
    assert gradient.isfinite().all()
    assert torch.allclose(gradient, wanted, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    with torch.no_grad():
        moved = (q - 5 * gradient).requires_grad_()
    assert entropy_floor(calls(moved), 0.5) < loss


def test_the_floor_leaves_padding_out_and_asks_for_gradients():
    torch.manual_seed(0)
    q, k = 3 * torch.randn(2, 3, 9, 8, requires_grad=True), torch.randn(2, 3, 9, 8)
    A = ch.Softmax()(q, k)
    padding = torch.arange(9) >= torch.tensor([9, 5])[:, None]
    call = Call("a", "self", "test", tuple(A.shape), A.statistics(), padding=padding)
    short = (0.6 - call.statistics.normalized_entropy).relu()
    expected = torch.cat([short[0].flatten(), short[1, :, :5].flatten()]).mean()
    assert entropy_floor([call], 0.6).item() == pytest.approx(expected.item(), rel=1e-5)
    lonely = ch.Softmax()(q[:, :, :1], k[:, :, :1])
    one_key = Call("a", "self", "test", tuple(lonely.shape), lonely.statistics())
    assert entropy_floor([one_key]).item() == 0
    with torch.no_grad():
        still = Call("a", "self", "test", tuple(A.shape), A.statistics())
    with pytest.raises(InputError, match="carry no gradient: write watch"):
        entropy_floor([still])
    with pytest.raises(InputError, match="no calls"):
        entropy_floor([])


def sigma_of(weight):
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


@pytest.mark.parametrize("name", ["clearhead", "torch", "torch, widths apart", "BERT", "GPT-2", "GPT-NeoX"])
def test_sigma_reparam_normalises_queries_and_keys_each(name):
    module, log_weights = ATTENTIONS[name]()
    found = layout(module)

    def sigmas():
        now = layout(module)
        rows = [[part.weight[part.rows(head)] for head in range(HEADS)] for part in (now.query, now.key, found.value)]
        return [sigma_of(torch.cat(heads)) for heads in rows[:2]]

    before = log_weights()
    kept = copy.deepcopy(module)
    changed = sigma_reparam(module)
    assert changed
    assert sigmas() == pytest.approx([1.0, 1.0], rel=1e-6)
    assert not torch.allclose(log_weights(), before)
    sigma_reparam(kept, keep=True)
    now = layout(kept)
    assert torch.allclose(now.query.weight, found.query.weight, rtol=1e-6), "with keep nothing changes at first"
    values = [part.weight for part in (layout(module).value, found.value)]
    rows = torch.cat([torch.arange(len(values[1]))[found.value.rows(head)] for head in range(HEADS)])
    assert torch.equal(values[0][rows], values[1][rows]), "values are no part of it"
    with pytest.raises(InputError, match="parametrised already"):
        sigma_reparam(module)


def test_sigma_reparam_follows_the_weight_in_training_and_trains_gamma():
    torch.manual_seed(0)
    model = ch.nn.SelfAttention(WIDTH, HEADS)
    parameters = {id(p) for p in model.parameters()}
    assert sigma_reparam(model) == ["query.weight", "key.weight"]
    assert parameters <= {id(p) for p in model.parameters()}, "an optimizer made before still moves the weights"
    gammas = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert [p.tolist() for p in gammas] == [[1.0], [1.0]]
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    x = torch.randn(4, 9, WIDTH)
    for _ in range(60):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for _ in range(60):
        model(x)
    assert [sigma_of(layer.weight) for layer in (model.query, model.key)] == pytest.approx(
        [abs(gamma.item()) for gamma in gammas], rel=1e-3
    )
    assert all(gamma.item() != 1 for gamma in gammas)
    model.eval()
    assert torch.equal(model.query.weight, model.query.weight), "in evaluation nothing moves"


def test_sigma_reparam_of_all_layers_is_the_papers():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(WIDTH, HEADS, 48)
    assert sorted(sigma_reparam(model, "all")) == [
        "linear1.weight",
        "linear2.weight",
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
    ]
    parts = [*model.self_attn.in_proj_weight.chunk(3), model.linear1.weight, model.linear2.weight]
    assert [sigma_of(part) for part in parts] == pytest.approx([1.0] * 5, rel=1e-5)
    with pytest.raises(InputError, match="write 'query_key' or 'all'"):
        sigma_reparam(model, "some")
    with pytest.raises(InputError, match="no projections"):
        sigma_reparam(nn.ReLU())


def test_qk_norm_bounds_logits_and_needs_a_place():
    model, watched = model_and_calls()
    assert qk_norm(model) == ["layers.0.attention", "layers.1.attention"]
    assert max(float(call.statistics.max_logit.max()) for call in watched()) <= math.sqrt(WIDTH / HEADS) * 1.001
    assert qk_norm(model) == []
    wide = qk_norm(double := ch.nn.SelfAttention(WIDTH, HEADS).double())
    assert wide == [""]
    assert double.query_norm.weight.dtype == torch.float64
    with pytest.raises(InputError, match=r"no attention with places for norms: apply nn\.RMSNorm"):
        qk_norm(nn.MultiheadAttention(8, 2))


ALARM = Finding("entropy collapse", "layers.0", 1, 0.0, 0.02, None, "", "alarm")
NOTE = Finding("attention sink", "layers.0", 1, 0.5, 0.3, None, "", "note")


class Recording(torch.optim.SGD):
    """SGD that remembers the rate of each step."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.rates = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


@pytest.mark.parametrize("kind", ["none", "lambda", "step", "one cycle"])
def test_a_lower_rate_is_the_schedules_times_the_scale(kind):
    def train(remedy):
        model = nn.Linear(3, 3)
        optimizer = Recording(model.parameters(), 0.1)
        schedules = {
            "none": lambda: None,
            "lambda": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
            "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7),
            "one cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=12),
        }
        scheduler, lines = schedules[kind](), []
        for step in range(10):
            found = [ALARM] if step in (3, 4, 7) else [NOTE]
            lines += [] if remedy is None else remedy.act(model=model, optimizer=optimizer, findings=found)
            model(torch.ones(3)).sum().backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return optimizer.rates, lines

    plain, _ = train(None)
    lowered, lines = train(LowerLearningRate(0.5, wait=2))
    scale = [1.0] * 3 + [0.5] * 4 + [0.25] * 3
    assert lowered == pytest.approx([rate * share for rate, share in zip(plain, scale, strict=True)], rel=1e-9)
    assert len(lines) == 2
    assert "entropy collapse in layers.0" in lines[0]


def test_a_lower_rate_has_a_floor_and_goes_through_a_checkpoint():
    optimizer = Recording(nn.Linear(3, 3).parameters(), 1.0)
    remedy = LowerLearningRate(0.1, wait=1, lowest=0.05)
    for _ in range(9):
        remedy.act(model=nn.Linear(1, 1), optimizer=optimizer, findings=[ALARM])
    assert remedy.scale == 0.05
    again = LowerLearningRate(0.1)
    again.load_state_dict(remedy.state_dict())
    fresh = Recording(nn.Linear(3, 3).parameters(), 1.0)
    again.attach(fresh)
    fresh.step()
    again.detach()
    fresh.step()
    assert fresh.rates == [0.05, 1.0]
    with pytest.raises(InputError, match="needs the optimizer"):
        remedy.act(model=nn.Linear(1, 1))


def test_the_last_good_weights_come_back():
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    remedy = StopWithLastGood(patience=2)
    good = None
    for step, found in enumerate([[], [NOTE], [ALARM], [], [ALARM], [ALARM]]):
        if step == 3:
            good = copy.deepcopy(model.state_dict())
        lines = remedy.act(model=model, findings=found)
        assert remedy.stop == (step == 5)
        with torch.no_grad():
            model.weight += 1 if step < 5 else 0
    assert len(lines) == 1
    assert "entropy collapse in layers.0" in lines[0]
    assert torch.equal(model.weight, good["weight"])
    assert remedy.act(model=model, findings=[ALARM]) == []


def test_weights_that_are_not_finite_are_never_kept():
    model = nn.Linear(4, 4)
    remedy, good = StopWithLastGood(patience=1), model.weight.detach().clone()
    assert remedy.act(model=model) == []
    with torch.no_grad():
        model.weight[1, 2] = math.nan
    assert "not finite" in remedy.act(model=model)[0]
    assert torch.equal(model.weight, good)
    at_once = StopWithLastGood(patience=1)
    assert "no good weights were seen" in at_once.act(model=model, findings=[ALARM])[0]
    chosen = StopWithLastGood(patience=1, rules=["not finite"])
    assert chosen.act(model=model, findings=[ALARM]) == []
    assert not chosen.stop


TWO = """
import sys, torch, torch.distributed as dist
import clearhead as ch
from clearhead.observe.calls import Call
from clearhead.observe.health.remedies import QKClip
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
model = ch.nn.SelfAttention(16, 2)
torch.manual_seed(rank)
A = model.map((30 if rank else 1) * torch.randn(2, 9, 16))
calls = [Call("SelfAttention", "self", "test", tuple(A.shape), A.statistics())]
print(float(calls[0].statistics.max_logit.max()) > 50, QKClip(50.0).act(model=model, calls=calls))
torch.save(model.state_dict(), sys.argv[2] + str(rank))
dist.destroy_process_group()
"""


def test_processes_clip_alike_by_the_largest_logit_of_any(tmp_path):
    start = [sys.executable, "-c", TWO]
    running = [
        subprocess.Popen([*start, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0].startswith("False ['QK-clip: SelfAttention head 0: ")
    assert said[1].startswith("True")
    assert said[0].partition(" ")[2] == said[1].partition(" ")[2]
    weights = [torch.load(tmp_path / f"meet{rank}", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
