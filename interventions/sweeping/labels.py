"""What the columns of a sweep over tokens are called."""

import numpy as np

from interventions.model import Model
from interventions.places import role_labels
from interventions.sweeping.measuring import Job


def token_roles(job: Job) -> np.ndarray:
    """The role of the token of each column in each row; "" where it has none."""
    labels = role_labels(job.prompt) if "" in job.columns.names else None
    names = np.full((len(job.prompt), len(job.columns.names)), "", dtype=object)
    for k, (name, column) in enumerate(zip(job.columns.names, job.columns.tokens, strict=True)):
        for row, tokens in enumerate(column):
            if tokens:
                names[row, k] = name or (labels[row][tokens[0]] if labels else "")
    return names


def token_words(model: Model, job: Job) -> np.ndarray:
    """The token of each column in each row, as text."""
    ids = job.prompt.inputs["input_ids"].tolist()
    words = np.full((len(ids), len(job.columns.names)), "", dtype=object)
    for k, column in enumerate(job.columns.tokens):
        for row, tokens in enumerate(column):
            if tokens:
                words[row, k] = model.tokenizer.decode([ids[row][tokens[0]]])
    return words
