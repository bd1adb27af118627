"""What is learned: one task a file. See `base.Task` for what a task provides."""

from ndvit.tasks.base import Task, task_class, task_from_dict, task_to_dict
from ndvit.tasks.classification import Classification
from ndvit.tasks.contrastive import Contrastive
from ndvit.tasks.masked import Masked
from ndvit.tasks.multilabel import Multilabel
from ndvit.tasks.regression import Regression

__all__ = [
    "Classification",
    "Contrastive",
    "Masked",
    "Multilabel",
    "Regression",
    "Task",
    "task_class",
    "task_from_dict",
    "task_to_dict",
]
