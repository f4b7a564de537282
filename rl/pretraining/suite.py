"""All that a run on text and `samepath eval --suite sparse` measure of a model."""

from dataclasses import replace

import numpy as np

from samepath.model.network.network import CausalLM
from samepath.model.text.tokenizer import Tokenizer
from samepath.rl.pretraining.corpus import Corpus
from samepath.rl.pretraining.measure import SparseMeasure, measure_sparse
from samepath.rl.pretraining.needles import measure_needles
from samepath.rl.recipe.text import StageSettings


def measure_suite(model: CausalLM, tokenizer: Tokenizer, corpus: Corpus, stage: StageSettings) -> SparseMeasure:
    """On the held-out text, and on needles in it where the stage names lengths."""
    held_out = corpus.held_out_sequences()
    found = measure_sparse(model, held_out, stage.measured_topk)
    if not stage.needles.lengths:
        return found
    needles = measure_needles(model, tokenizer, np.concatenate(held_out), stage.needles, stage.measured_topk)
    return replace(found, needles=needles)
