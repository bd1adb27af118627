"""Synthetic signals: families of random signals, and classification tasks of known difficulty made of them.

They serve self-supervised pretraining where no real signals may be used, and tests.
"""

from ndvit.data.synthetic.families import FAMILIES
from ndvit.data.synthetic.tasks import SyntheticTasks, mix_channels, synthetic_signals, synthetic_tasks

__all__ = ["FAMILIES", "SyntheticTasks", "mix_channels", "synthetic_signals", "synthetic_tasks"]
