"""`python -m rerank_utils`: retrieve, rerank and evaluate, on a profile or on one's own data."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from .engines import DTYPES
from .errors import sentence
from .hub import quiet_libraries
from .profiles import PACKAGED_RERANKER, Profile, get_profile
from .zoo import row

DESCRIPTION = """\
Two-stage retrieval from end to end: embed a corpus, search it with FAISS, rerank the first hits
with a cross-encoder, and print the measures before and after.

Without arguments the offline profile runs: real models and real data that come with packages.
"""
EXAMPLES = """\
examples:
  python -m rerank_utils
  python -m rerank_utils --split test --queries 0
  python -m rerank_utils --profile msmarco
  python -m rerank_utils --profile beir:scifact
  python -m rerank_utils --collection my_data --depth 20 \\
      --embedder BAAI/bge-base-en-v1.5 --reranker BAAI/bge-reranker-base

The offline profile takes the first 200 dev queries and reranks 50 candidates of each. Your own
data: all queries of the split "test".
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rerank_utils",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to search")
    what.add_argument(
        "--profile",
        help="offline, msmarco, msmarco-distractors or beir:NAME, such as beir:scifact "
        "(default: $RERANK_PROFILE or offline)",
    )
    what.add_argument(
        "--collection",
        metavar="DIR",
        help="your own data in BEIR format: corpus.jsonl, queries.jsonl, qrels/test.tsv",
    )
    what.add_argument("--split", help="which queries (a file name in qrels/ without .tsv)")
    what.add_argument("--queries", type=int, metavar="N", help="how many of them; 0 for all")
    how = parser.add_argument_group("how to search")
    how.add_argument("--embedder", metavar="MODEL", help="model folder or name on the hub")
    how.add_argument(
        "--pooling",
        choices=("cls", "mean"),
        help="of an embedder that is not in the table of BGE models",
    )
    how.add_argument("--instruction", help="text put before each query (BGE models bring theirs)")
    how.add_argument("--reranker", metavar="MODEL", help="model folder or name on the hub")
    how.add_argument(
        "--max-length",
        type=int,
        metavar="T",
        help="tokens at which the models named with --embedder or --reranker cut (default: 512)",
    )
    how.add_argument("--depth", type=int, metavar="D", help="candidates a query to rerank")
    how.add_argument(
        "--in-pieces",
        action="store_true",
        default=None,  # as the profile has it
        help="rerank long documents in pieces, the best counts (default: their ends are cut off)",
    )
    how.add_argument(
        "--backend",
        choices=tuple(DTYPES),
        default="torch",
        help="what runs the reranker (default: torch; the others want a CPU and the extra fast)",
    )
    how.add_argument(
        "--dtype",
        choices=sorted({dtype for dtypes in DTYPES.values() for dtype in dtypes}),
        default="auto",
        help="its precision (default: auto, float32 on a CPU and float16 on a GPU)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where files go (default: artifacts/<profile>)"
    )
    return parser


def chosen_profile(options: argparse.Namespace) -> Profile:
    """The profile, changed by what the command line says.

    Another embedder brings its own pooling and instruction, from the table `zoo.MODELS` or as
    given; models named here cut at --max-length.

    Raises:
        ValueError: both a profile and a collection, an unknown profile, a collection that is no
            folder, or another embedder without its pooling.
    """
    if options.max_length is not None and not (options.embedder or options.reranker):
        raise ValueError("--max-length is for models that --embedder or --reranker name.")
    length = 512 if options.max_length is None else options.max_length
    if options.collection is not None and options.profile:
        raise ValueError("Give --profile or --collection, not both.")
    if options.collection is not None and not (
        options.collection and Path(options.collection).is_dir()
    ):
        raise ValueError(
            f"There is no folder {options.collection!r}: --collection wants one in BEIR format. A "
            "set of BEIR comes by name, such as --profile beir:scifact."
        )
    name = f"beir:{options.collection}" if options.collection else options.profile
    names = ("split", "embedder", "pooling", "instruction", "reranker", "depth", "in_pieces")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.embedder:
        known = row(options.embedder)
        if not (options.pooling or known):
            raise ValueError(
                "Give --pooling with --embedder, because the wrong one ranks badly without a "
                "sign of it: cls for BGE models, mean for MiniLM and its like."
            )
        changes.setdefault("pooling", known and known.pooling)
        changes.setdefault("instruction", known and known.instruction)
        changes["embedder_length"] = length
    if options.reranker:
        changes["reranker_length"] = length
    if options.queries is not None:
        changes["queries"] = options.queries or None
    return replace(get_profile(name), **changes)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status is 2 where something given was wrong."""
    options = build_parser().parse_args(arguments)
    try:
        profile = chosen_profile(options)
        quiet_libraries()
        from .pipeline import ARTIFACTS, run_pipeline

        if profile.reranker == PACKAGED_RERANKER and profile.name.startswith("beir:"):
            print("note: the packaged reranker knows vulnerability reports only; see --reranker")
        result = run_pipeline(profile, backend=options.backend, dtype=options.dtype)
        print(f"\n{result.table()}\n")  # before anything can go wrong with the files
        files = result.save(options.output or ARTIFACTS / profile.folder_name)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again: it goes on from here.", file=sys.stderr)
        return 130
    except Exception as error:
        if (told := sentence(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    print("written:", *(f"  {path}" for path in files), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
