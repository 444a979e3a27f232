"""Helpers of the course on two-stage retrieval. Data flows one way through these rooms:

    loaders, cwe -> Collection -> embedding -> indexing -> Run -> reranking -> Run -> evaluation
    -> Evaluation -> experiment, analysis -> plotting

The nouns are in `collection`, `run` and `evaluation`. `lexical` makes a Run with BM25, `fusion`
makes one of several. `experiment` tests runs against a baseline, `analysis` looks at single
queries, `calibration` makes probabilities of scores. `bundled` holds the shipped reranker,
`training` how it was made, `zoo` the table of BGE models. `mining` finds hard negatives in a Run,
`finetuning` trains a reranker on them with FlagEmbedding's trainer, which `trainer` mends.
`profiles` names set-ups, `pipeline` strings the stages together, `report` makes the table of the
README. `batching` and `hub` serve embedding and reranking; `pairs`, `encoder` and `engines` make
reranking quick.
"""

import warnings

# Bars as text are what the course wants; tqdm would ask every reader to install widgets.
warnings.filterwarnings("ignore", message="IProgress not found")
