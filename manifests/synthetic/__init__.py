"""A generated audio-visual world in AVE's official layout: real media files whose every second is known.

from caeav.manifests.synthetic import SyntheticOptions, synthesise
summary = synthesise(Path("data/synthetic"), SyntheticOptions(clips=240, seed=0), workers=2)
"""

from caeav.manifests.synthetic.generate import Summary, synthesise
from caeav.manifests.synthetic.options import SyntheticOptions

__all__ = ["Summary", "SyntheticOptions", "synthesise"]
