"""Helpers of the course on two-stage retrieval. Data flows one way through these rooms:

    loaders -> Collection -> embedding -> indexing -> Run -> reranking -> Run -> evaluation
    -> Evaluation -> experiment, analysis -> plotting

nouns:      `collection`, `run`; `evaluation` makes the third. Behind `loaders` are `cwe`, `beir`
            and `trec`.
runs:       `lexical` makes a Run with BM25, `fusion` makes one of several.
questions:  `experiment` tests runs against a baseline, `analysis` looks at single queries,
            `calibration` makes probabilities of scores.
models:     `zoo` is the table of BGE models, `bundled` the shipped reranker; `training` makes it
            by a `training_recipe`, of `training_data`, with `tuning`, `teacher`, `candidates`,
            `descent` and `adapters`; `training_curve` records how well. `mpnet` is a larger
            encoder to learn from.
            `tiny` makes models with random weights, for trying code.
your own:   `mining` finds hard negatives in a Run, `finetuning` trains a reranker on them with
            FlagEmbedding's trainer, which `trainer` mends. `distillation` makes a smaller one that
            scores alike, layer by layer with `matching`. All keep a `training_folder`.
the whole:  `profiles` names set-ups, `pipeline` strings the stages together, `report` makes the
            table of the README, `checks` holds numbers to their ranges.
tools:      `files` reads lines and writes all whole, `errors` says what a command tells, `hub`
            finds models and data, by `download` if need be, `opening` looks at a model before it is
            loaded, `batching` serves embedding and reranking; `pairs`, `encoder`, `engines` and
            `score_cache` make reranking quick, `llm` that of language models; `pieces` cuts what is
            longer than a window.
"""

import warnings

# Bars as text are what the course wants; tqdm would ask every reader to install widgets.
warnings.filterwarnings("ignore", message="IProgress not found")
