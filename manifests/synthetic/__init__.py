"""A generated audio-visual world: real media files, known second by second, in the official layout of a data set.

from caeav.manifests.synthetic import SyntheticOptions, synthesise
summary = synthesise(Path("data/synthetic"), SyntheticOptions(clips=240, seed=0), workers=2)
"""

from caeav.manifests.synthetic.generate import Summary, synthesise
from caeav.manifests.synthetic.options import SyntheticOptions

__all__ = ["Summary", "SyntheticOptions", "synthesise"]
