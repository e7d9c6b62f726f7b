"""CASTE, CASE and the AVMoE layer written down formula by formula, as the reference computes them.

For `modules.py` alone: the slow side of the comparison. Same parameters (these functions read our modules), same
numbers; but every token of every map, a loop over time, copies to `[B * L, C, T]` and `[BT, C, N, 1]`, captions
repeated over time, `[BT, heads, Q, S]` weights in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.case import AttentionUnit, Case, FeedForwardUnit, Projection
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.layers import DepthwiseOverTime, GroupedLinear, TokenBatchNorm
from caeav.model.adapters.moe import AvMoe, CrossExpert, UniExpert


def conv_over_time(x: Tensor, depthwise: DepthwiseOverTime, pointwise: nn.Linear, segments: int) -> Tensor:
    bt, tokens, channels = x.shape
    lines = x.view(-1, segments, tokens, channels).permute(0, 2, 3, 1).reshape(-1, channels, segments)
    lines = F.conv1d(lines, depthwise.weight.unsqueeze(1), depthwise.bias, padding=1, groups=channels)
    lines = F.conv1d(lines, pointwise.weight.unsqueeze(-1), pointwise.bias)
    return lines.view(-1, tokens, channels, segments).permute(0, 3, 1, 2).reshape(bt, tokens, channels)


def caste(m: Caste, own: Tensor, other: Tensor, segments: int) -> Tensor:
    gate = m.gate
    p, q = gate.self_proj(own.mean(1)), gate.other_proj(other.mean(1))
    cosine = (F.normalize(p, dim=-1) * F.normalize(q, dim=-1)).sum(-1, keepdim=True)
    z = gate.mlp_out(F.relu(gate.mlp_in(torch.cat([p, q, p - q, p * q], -1)))) + torch.cat(
        [cosine, -cosine], -1
    )
    w = torch.softmax(z, -1)

    frames = []
    for x in own.view(-1, segments, *own.shape[1:]).unbind(1):
        attn = m.spatial.attn
        a = torch.softmax(attn.score(x), dim=1)
        context = (a * attn.key(x)).sum(1, keepdim=True)
        frames.append(attn.out(attn.value(x) * context))
    o = torch.stack(frames, 1).flatten(0, 1)
    spatial = own + m.spatial.gamma * m.spatial.norm(o)

    h = conv_over_time(own, m.temporal.depthwise, m.temporal.pointwise, segments)
    temporal = own + m.temporal.gamma * m.temporal.norm(h)

    energy = own.square().sum(-1)
    index = energy.topk(max(1, int(own.shape[1] * m.topk_ratio)), dim=1).indices
    mask = torch.zeros_like(energy).scatter(1, index, 1.0).unsqueeze(-1)
    return m.gamma * mask * (w[:, :1, None] * spatial + w[:, 1:, None] * temporal)


def attention_unit(m: AttentionUnit, query: Tensor, source: Tensor) -> Tensor:
    n, _, channels = query.shape
    heads = m.attn.heads

    def split(x: Tensor) -> Tensor:
        return x.view(n, -1, heads, channels // heads).transpose(1, 2)

    q, k, v = split(m.attn.query(query)), split(m.attn.key(source)), split(m.attn.value(source))
    weights = torch.softmax(q @ k.transpose(-1, -2) / (channels // heads) ** 0.5, -1)
    weights = F.dropout(weights, m.attn.dropout, m.training)
    mixed = (weights @ v).transpose(1, 2).reshape(n, -1, channels)
    return m.norm(m.dropout(m.attn.out(mixed)) + query)


def ffn(m: FeedForwardUnit, x: Tensor) -> Tensor:
    return m.norm(m.dropout(m.fc_out(m.dropout(F.relu(m.fc_in(x))))) + x)


def project(m: Projection, x: Tensor) -> Tensor:
    return m.linear(m.norm(x))


def case(m: Case, v: Tensor, a: Tensor, vc: Tensor, ac: Tensor, segments: int) -> tuple[Tensor, ...]:
    """Captions `[B, W, C]` are repeated here, as the networks of the reference do."""
    vc, ac = vc.repeat_interleave(segments, 0), ac.repeat_interleave(segments, 0)
    part = m.get_submodule

    def unit(name: str, query: Tensor, source: Tensor) -> Tensor:
        module = part(name)
        assert isinstance(module, AttentionUnit)
        return attention_unit(module, query, source)

    v1, vc1 = unit("self_attn_visual", v, v), unit("self_attn_visual_caption", vc, vc)
    a1, ac1 = unit("self_attn_audio", a, a), unit("self_attn_audio_caption", ac, ac)
    v2, a2 = unit("caption_attn_visual", v1, vc1), unit("caption_attn_audio", a1, ac1)
    v3 = unit("cross_attn_visual", v2, m.audio_to_visual(a2))
    a3 = unit("cross_attn_audio", a2, m.visual_to_audio(v2))

    def finish(name: str, x: Tensor, x3: Tensor, c1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        feed, feed_caption = part(f"ffn_{name}"), part(f"ffn_{name}_caption")
        temporal = part(f"temporal_{name}")
        assert isinstance(feed, FeedForwardUnit) and isinstance(feed_caption, FeedForwardUnit)
        x4 = temporal.norm(conv_over_time(ffn(feed, x3), temporal.depthwise, temporal.pointwise, segments))
        c2 = ffn(feed_caption, c1)
        with torch.no_grad():
            fit = (F.normalize(x4.mean(1), dim=-1) * F.normalize(c2.mean(1), dim=-1)).sum(-1)
            g = torch.sigmoid(fit)[:, None, None]
        mask, _ = m.selector(x4)
        out = part(f"out_norm_{name}")(x + g * x4 * mask + (1 - g) * x4)
        return out, c2, part(f"proj_{name}")(out.mean(1)), part(f"proj_{name}_caption")(c2.mean(1))

    return *finish("visual", v, v3, vc1), *finish("audio", a, a3, ac1)


def batch_norm(m: TokenBatchNorm, x: Tensor) -> Tensor:
    # Torch 2.13 differentiates BatchNorm2d wrongly on the CPU when exactly one of input and incoming gradient is
    # contiguous, and the layouts of this program are of that kind: both are made contiguous.
    y = F.batch_norm(
        x.contiguous(), m.running_mean, m.running_var, m.weight, m.bias, m.training, m.momentum, m.eps
    )
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient.contiguous())
    return y


def conv1x1(m: GroupedLinear, x: Tensor) -> Tensor:
    return F.conv2d(x, m.weight[:, :, None, None], groups=m.groups)


def channel_norm(m: nn.LayerNorm, x: Tensor) -> Tensor:
    return m(x.squeeze(-1).permute(0, 2, 1)).permute(0, 2, 1).unsqueeze(-1)


def expert(m: CrossExpert | UniExpert, x: Tensor, context: Tensor) -> Tensor:
    """`x`, `context` `[BT, C, N, 1]`."""
    if isinstance(m, CrossExpert):
        flat, c = x.squeeze(-1), context.squeeze(-1)
        latents = m.latent_tokens.expand(x.shape[0], -1, -1)
        read = latents + torch.softmax(torch.bmm(latents, c), -1) @ c.permute(0, 2, 1)
        mixed = torch.softmax(torch.bmm(flat.permute(0, 2, 1), read.permute(0, 2, 1)), -1) @ read
        x = x + m.attn_gate * mixed.permute(0, 2, 1).unsqueeze(-1)
    if m.pre_norm is not None:
        x = channel_norm(m.pre_norm, x)
    h = conv1x1(m.down, x)
    if m.down_bn is not None:
        h = batch_norm(m.down_bn, h)
    if m.activation:
        h = F.relu(h)
    o = conv1x1(m.up, h)
    if m.up_bn is not None:
        o = batch_norm(m.up_bn, o)
    if m.post_norm is not None:
        o = channel_norm(m.post_norm, o)
    return o if m.out_gate is None else m.out_gate * o


def moe(m: AvMoe, x: Tensor, other: Tensor) -> Tensor:
    """`x` `[BT, N, C]`, `other` `[BT, M, D]` arrive as tokens and become `[BT, C, N, 1]` views, as in the networks."""
    x, other = x.permute(0, 2, 1).unsqueeze(-1), other.permute(0, 2, 1).unsqueeze(-1)
    tokens = F.conv2d(other.transpose(1, 2), m.token_proj.weight[:, :, None, None], m.token_proj.bias)
    c = m.channel_proj(tokens.squeeze(-1)).permute(0, 2, 1).unsqueeze(-1)
    u = torch.cat([x.mean(2), c.mean(2)], 1).squeeze(-1)
    r = m.router
    p = torch.softmax(r.fc3(F.relu(r.fc2(F.relu(r.fc1(u))))), -1)
    outputs = torch.stack([expert(e, x, c) for e in (*m.cross_experts, *m.uni_experts)], 1)  # type: ignore[arg-type]
    residual = (p[:, :, None, None, None] * outputs).sum(1)
    return residual.squeeze(-1).permute(0, 2, 1)
