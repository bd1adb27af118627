"""What is learned: one task a file. See `base.Task` for what a task provides."""

from ndvit.tasks.base import Task, task_class, task_from_dict, task_to_dict
from ndvit.tasks.classification import Classification

__all__ = ["Classification", "Task", "task_class", "task_from_dict", "task_to_dict"]
