"""The AVQA head: the answer to a question about a clip (REFERENCE section 4.4).

The audio points at places in the frame (grounding), a matching network says whether audio and frames belong together,
and the question attends both modalities over time. What does not depend on the question runs once per clip. Grounding
averages tokens of unit length, as the official code. Shapes: `U` clips, `B` questions, `T` segments, `L`/`M` tokens,
`C`/`D` channels, `W` words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from caeav.model.adapters.batch import TrunkOutput, token_mean
from caeav.model.adapters.layers import PackedAttention
from caeav.model.adapters.whole_batch import by_sample, count, previous_clip
from caeav.model.tasks.avqa.config import AvqaHeadConfig
from caeav.model.tasks.layers import ChannelNorm

UNIT_EPS = 1e-12


class AvqaOutput(NamedTuple):
    """Logits: `answer_logits` `[B, answers]`, `match_positive` and `match_negative` `[B, T, 2]` (1: belong together).

    `match_negative` is None if there are no negative frames.
    """

    answer_logits: Tensor
    match_positive: Tensor
    match_negative: Tensor | None


class QuestionEncoder(nn.Module):
    """Words -> `tanh` embeddings -> LSTM -> `out(tanh([hidden ; cell]))`.

    The reference has no padding mask: its state runs on over the padding. `skip_padding` stops at the last word.
    """

    def __init__(self, words: int, width: int, *, skip_padding: bool = False, pad_index: int = 0) -> None:
        super().__init__()
        self.skip_padding = skip_padding
        self.pad_index = pad_index
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(2 * width, width)

    def forward(self, question: Tensor) -> Tensor:
        """Word indices `[B, W]` -> `[B, width]`."""
        words = self.embedding(question).tanh()
        if self.skip_padding:
            positions = torch.arange(1, question.shape[1] + 1, device=question.device)
            lengths = ((question != self.pad_index) * positions).amax(dim=1).clamp(min=1)
            words = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (hidden, cell) = self.lstm(words)
        return self.out(torch.cat([hidden[-1], cell[-1]], dim=-1).tanh())  # type: ignore[no-any-return]


def ground(tokens: Tensor, audio: Tensor) -> Tensor:
    """Unit-length tokens averaged by similarity to the audio: `[B, T, L, C]`, `[B, T, C]` -> `[B, T, C]`.

    The normalised tokens themselves are never written out.
    """
    inverse = 1 / tokens.norm(dim=-1).clamp(min=UNIT_EPS)  # [B, T, L]
    pointer = F.normalize(audio, dim=-1, eps=UNIT_EPS)
    similarity = (tokens @ pointer.unsqueeze(-1)).squeeze(-1) * inverse
    weights = similarity.softmax(dim=-1) * inverse
    return (weights.unsqueeze(-2) @ tokens).squeeze(-2)  # type: ignore[no-any-return]


class AvqaHead(nn.Module):
    """Tokens of both modalities and a question -> answer, and whether audio and frames match.

    The model width is `visual_channels`, because audio and frames are compared in the visual space.
    """

    def __init__(
        self, visual_channels: int, audio_channels: int, answers: int, words: int, config: AvqaHeadConfig
    ) -> None:
        super().__init__()
        width = visual_channels
        self.negatives = config.negatives
        self.visual_in_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_in_norm = ChannelNorm(config.input_norm, audio_channels)
        self.audio_fc1 = nn.Linear(audio_channels, width)
        self.audio_fc2 = nn.Linear(width, width)
        self.grounding_fc = nn.Linear(2 * width, width)
        first, second, third = config.match_widths
        self.match_fc1 = nn.Linear(2 * width, first)
        self.match_fc2 = nn.Linear(first, second)
        self.match_fc3 = nn.Linear(second, third)
        self.match_fc4 = nn.Linear(third, 2)
        self.question = QuestionEncoder(
            words, width, skip_padding=config.skip_padding, pad_index=config.pad_index
        )
        for name in ("visual", "audio"):
            self.add_module(f"attn_{name}", PackedAttention(width, config.heads, config.dropout))
            self.add_module(f"{name}_ffn_in", nn.Linear(width, width))
            self.add_module(f"{name}_ffn_out", nn.Linear(width, width))
            self.add_module(f"{name}_norm", nn.LayerNorm(width))
        self.dropout = nn.Dropout(config.dropout)
        self.fusion = nn.Linear(2 * width, width)
        self.answer_fc = nn.Linear(3 * width, config.answer_hidden) if config.answer_hidden else None
        self.answer = nn.Linear(config.answer_hidden or width, answers)

    def forward(
        self,
        trunk: TrunkOutput,
        question: Tensor,
        negative: Tensor | None = None,
        clip_of: Tensor | None = None,
    ) -> AvqaOutput:
        """Tokens `[U, T, L, C]`, `[U, T, M, D]`, words `[B, W]`, frames of other videos `[B, T, L, C]` or None.

        `clip_of` `[B]`: the index of each question's clip; None: one question per clip, in order. Negatives of the
        batch are made here, in training; a batch of one clip has none.
        """
        heard = token_mean(self.audio_in_norm(trunk.audio), trunk.audio_weights)
        audio = self.audio_fc2(F.relu(self.audio_fc1(heard)))  # [U, T, d]
        tokens = self.visual_in_norm(trunk.visual)
        visual = self._grounded(tokens, audio)
        match_positive = self._match(audio, visual)
        match_negative = None
        if self.negatives == "batch" and self.training and count(tokens) > 1:
            # Batches are in random order, so the neighbour is a random clip.
            match_negative = self._match(audio, self._grounded(previous_clip(tokens), audio))
        if clip_of is not None:
            audio, visual, match_positive = (
                x.index_select(0, clip_of) for x in (audio, visual, match_positive)
            )  # [B, T, ...]
            match_negative = None if match_negative is None else match_negative.index_select(0, clip_of)
        if negative is not None:
            negative = self.visual_in_norm.with_running_statistics(negative)
            match_negative = self._match(audio, self._grounded(negative, audio))
        query = self.question(question)  # [B, d]
        with by_sample():
            audio_read = self._attend("audio", query, audio) + audio.mean(dim=1)
            visual_read = self._attend("visual", query, visual) + visual.mean(dim=1)
            fused = self.fusion(torch.cat([audio_read, visual_read], dim=-1).tanh())
            answer = self.answer(self._combine(fused, query))
        return AvqaOutput(answer, match_positive, match_negative)

    def _grounded(self, tokens: Tensor, audio: Tensor) -> Tensor:
        both = torch.cat([tokens.mean(dim=2), ground(tokens, audio)], dim=-1)
        return self.grounding_fc(both.tanh())  # type: ignore[no-any-return]

    def _match(self, audio: Tensor, visual: Tensor) -> Tensor:
        x = F.relu(self.match_fc1(torch.cat([audio, visual], dim=-1)))
        return self.match_fc4(F.relu(self.match_fc3(F.relu(self.match_fc2(x)))))  # type: ignore[no-any-return]

    def _combine(self, fused: Tensor, query: Tensor) -> Tensor:
        """Clip and question, both `[B, d]`, as one vector for the answer."""
        product = fused * query
        if self.answer_fc is None:
            return product.tanh()
        return self.dropout(F.relu(self.answer_fc(torch.cat([product, fused, query], dim=-1))))  # type: ignore[no-any-return]

    def _attend(self, name: str, query: Tensor, stream: Tensor) -> Tensor:
        """The question `[B, d]` attends one modality over time `[B, T, d]` -> `[B, d]`."""
        found = self.get_submodule(f"attn_{name}")(query.unsqueeze(1), stream).squeeze(1)
        hidden = self.dropout(F.relu(self.get_submodule(f"{name}_ffn_in")(found)))
        residual = self.dropout(self.get_submodule(f"{name}_ffn_out")(hidden))
        return self.get_submodule(f"{name}_norm")(found + residual)  # type: ignore[no-any-return]
