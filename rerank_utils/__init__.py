"""Helpers of the course on two-stage retrieval. Data flows one way through these rooms:

    loaders, cwe -> Collection -> embedding -> indexing -> Run -> reranking -> Run -> evaluation
    -> Evaluation -> plotting

The nouns are in `collection`, `run` and `evaluation`. `fusion` mixes two runs, `bundled` holds
the shipped reranker and `training` how it was made, `profiles` names set-ups, `pipeline` strings
the stages together, `report` makes the README's table. `batching` and `hub` serve embedding and
reranking; `pairs`, `encoder` and `engines` are what makes reranking quick.
"""

import warnings

# Bars as text are what the course wants; tqdm would ask every reader to install widgets.
warnings.filterwarnings("ignore", message="IProgress not found")
