"""Table of the tasks by name."""

from vitral.tasks.classification import Classification
from vitral.tasks.detection import Detection
from vitral.tasks.features import Features
from vitral.tasks.image_tokenizer import ImageTokenization
from vitral.tasks.multilabel import Multilabel
from vitral.tasks.pixels import Pixels
from vitral.tasks.regression import Regression
from vitral.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Multilabel, Features, Regression, Detection, Pixels, ImageTokenization)
}
