"""The two outside oracles of evaluation, run as a program of its own.

Reads [{"qrels": ..., "run": ..., "measures": ...}, ...] from stdin and writes for each case
{oracle: {measure: {query: value}}}. A program of its own, so that a test can stop it: pytrec_eval
reads memory it never wrote when the first query of a call has only negative judgments (the
function te_form_res_rels of trec_eval sizes its table of grades by the highest grade, and keeps
the number of levels of the query before). With grades of -1 it may then not return, with grades
of -2 and less it may crash.
"""

import json
import re
import sys

import ir_measures
import pytrec_eval

TREC_NAMES = {
    "nDCG": "ndcg",
    "RR": "recip_rank",
    "AP": "map",
    "R": "recall",
    "P": "P",
    "Success": "success",
}
TREC_CUT = TREC_NAMES | {"nDCG": "ndcg_cut", "AP": "map_cut"}


def by_pytrec_eval(qrels, run, measures):
    values = {measure: {} for measure in measures}
    for measure in (m for m in measures if m.startswith("RR@")):
        # trec_eval has no cutoff for it: hand it the cut lists.
        k = int(measure.partition("@")[2])
        cut = {query: cut_at(scores, k) for query, scores in run.items()}
        collect({"recip_rank": measure}, qrels, cut, values)
    collect({trec_name(m): m for m in measures if not m.startswith("RR@")}, qrels, run, values)
    return values


def trec_name(measure):
    name, at, k = measure.partition("@")
    return f"{TREC_CUT[name]}_{k}" if at else TREC_NAMES[name]


def collect(names, qrels, run, values):
    asked = {re.sub(r"_(\d+)$", r".\1", name) for name in names}
    found = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    for query, answers in found.items():
        for name, value in answers.items():
            values[names[name]][query] = value


def cut_at(scores, k):
    order = sorted(scores, key=lambda document: (scores[document], document), reverse=True)
    return {document: scores[document] for document in order[:k]}


def by_ir_measures(qrels, run, measures):
    values = {measure: {} for measure in measures}
    plain = [m for m in measures if not m.startswith("RR@")]
    # ir-measures takes RR@k from another tool, which breaks ties by the smaller id: give it none.
    strict = {
        query: {d: -float(place) for place, d in enumerate(cut_at(scores, len(scores)))}
        for query, scores in run.items()
    }
    for names, given in ((plain, run), (set(measures) - set(plain), strict)):
        parsed = {ir_measures.parse_measure(name): name for name in names}
        for row in ir_measures.iter_calc(list(parsed), qrels, given) if parsed else ():
            values[parsed[row.measure]][row.query_id] = row.value
    return values


if __name__ == "__main__":
    cases = json.load(sys.stdin)
    answers = [
        {"pytrec_eval": by_pytrec_eval(**case), "ir_measures": by_ir_measures(**case)}
        for case in cases
    ]
    json.dump(answers, sys.stdout)
