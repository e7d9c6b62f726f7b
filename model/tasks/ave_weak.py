"""AVE with weak supervision: training knows which events a clip holds, not when; scored second by second as `ave`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from caeav.model.adapters.batch import TokenBatch
from caeav.model.tasks.config import LossConfig, NotNegative, RunConfig
from caeav.model.heads.ave_weak import WeakAveHead
from caeav.model.tasks.heads import HeadConfig, WeakAveHeadConfig
from caeav.model.tasks.ave.loss import weak_ave_loss
from caeav.model.train.runs import Inputs
from caeav.model.tasks.ave.task import LABELS, AveTask

if TYPE_CHECKING:
    from caeav.model.adapters.trunk import Trunk


class WeakAveLossConfig(LossConfig):
    """One loss, of whole clips."""

    clip: NotNegative = 1.0


class WeakAveTask(AveTask):
    """The registered task `ave-weak`."""

    name = "ave-weak"
    head_config: ClassVar[type[HeadConfig]] = WeakAveHeadConfig
    loss_config: ClassVar[type[LossConfig]] = WeakAveLossConfig

    def head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """Temporal attention and multiple instance pooling."""
        assert isinstance(config, WeakAveHeadConfig)
        return WeakAveHead(trunk.visual_channels, trunk.audio_channels, len(inputs.classes), config)

    def losses(self, found: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The clip's own; the labels of seconds are read for what they say about the clip only."""
        return {"clip": weak_ave_loss(found.clip, batch.targets[LABELS])}


AVE_WEAK = WeakAveTask()
