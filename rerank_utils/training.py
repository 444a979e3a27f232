"""How the bundled reranker was trained: `python -m rerank_utils.training --output FOLDER`.

Three stages, all on the training side of the split. (1) The packaged bi-encoder is tuned for a
few minutes on (query, document) pairs; it is the teacher. (2) A cross-encoder, MiniLM with a
fresh head, learns to rank as the teacher does: a listwise KL divergence over one group of
candidates. (3) The labels join the loss. Progress is saved, and the same command resumes.

What it learns from is in `training_data`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax
from tqdm import tqdm

from .bundled import MANIFEST, MAX_LENGTH, file_sha256, merge, minilm_path, untrained_reranker
from .training_data import TrainingQuery, docstrings, training_documents, training_queries


@dataclass(frozen=True)
class Recipe:
    """Every number of the training. Learning rates are peak values, lengths are in tokens."""

    seed: int = 0
    teacher_steps: int = 80
    teacher_batch: int = 32
    teacher_rate: float = 5e-5
    temperature: float = 0.05
    steps: int = 1200
    queries_per_step: int = 4
    reports_per_step: int = 2
    sentences_per_step: int = 1
    group: int = 12
    random_negatives: int = 2
    mined_ranks: int = 60
    mined_passages: int = 3
    docstrings: int = 4000
    rate: float = 3e-4
    warmup: int = 100
    distil_only: float = 0.2
    label_weight: float = 0.5
    max_length: int = MAX_LENGTH
    rank: int = 64
    alpha: int = 32
    save_every: int = 100
    log_every: int = 50

    def __post_init__(self):
        mined = self.group - 1 - self.random_negatives
        if not 0 <= self.mined_passages <= mined:
            raise ValueError(
                f"mined_passages is {self.mined_passages}, but a group of {self.group} with "
                f"{self.random_negatives} random negatives has room for {mined} mined ones."
            )


class Trainer:
    """Trains the reranker of a recipe into a folder, and resumes from what it finds there."""

    def __init__(self, recipe: Recipe, output: Path):
        from transformers import AutoTokenizer

        self.recipe = recipe
        self.output = output
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.output.mkdir(parents=True, exist_ok=True)
        self.tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        self.documents, self.owners = training_documents()
        self.queries = training_queries()
        for number, (summary, rest) in enumerate(docstrings(recipe.docstrings, recipe.seed)):
            key = f"docstring-{number}"
            self.documents[key], self.owners[key] = rest, frozenset({key})
            self.queries.append(TrainingQuery(summary, frozenset({key}), "docstring"))
        kinds = [query.field for query in self.queries]
        self.reports = [i for i, kind in enumerate(kinds) if kind == "report"]
        self.summaries = [i for i, kind in enumerate(kinds) if kind == "docstring"]
        self.sentences = sorted(set(range(len(kinds))) - set(self.reports) - set(self.summaries))
        self.document_ids = list(self.documents)
        self.column = {document: i for i, document in enumerate(self.document_ids)}
        self.kind = np.array([document.split("-")[0] for document in self.document_ids])
        self.log: list[dict] = []
        self._claim_folder()

    def _claim_folder(self) -> None:
        """Refuse to resume another recipe, or other data, in this folder."""
        texts = "\0".join([*(query.text for query in self.queries), *self.documents.values()])
        ours = asdict(self.recipe) | {"data": hashlib.sha256(texts.encode()).hexdigest()}
        saved = self.output / "recipe.json"
        if saved.exists() and json.loads(saved.read_text()) != ours:
            raise ValueError(
                f"{self.output} holds a training with another recipe or other data: choose "
                "another folder or empty this one."
            )
        saved.write_text(json.dumps(ours, indent=1))

    def run(self) -> None:
        """All stages; leaves the adapter, the log and the merged model in the folder."""
        started = time.time()
        model = self.train(*self.teacher_vectors())
        model.save_pretrained(self.output / "adapter")
        write_bundle(self.output / "adapter", self.output / "bundle")
        merge(self.output / "bundle", self.output / "merged")
        print(f"Trained in {time.time() - started:.0f} s (this run): {self.output / 'merged'}")

    # Stage 1 -----------------------------------------------------------------------------

    def teacher_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """(queries, d) and (documents, d) float32 of the tuned bi-encoder."""
        saved = self.output / "teacher.npz"
        if not saved.exists():
            left, right = self._tune_teacher()
            fresh = self.output / "teacher.tmp.npz"
            np.savez(fresh, queries=left, documents=right)
            fresh.replace(saved)
        with np.load(saved) as vectors:
            return vectors["queries"], vectors["documents"]

    def _tune_teacher(self) -> tuple[np.ndarray, np.ndarray]:
        from transformers import AutoModel

        recipe, rng = self.recipe, random.Random(self.recipe.seed)
        torch.manual_seed(recipe.seed)
        model = AutoModel.from_pretrained(
            minilm_path(), dtype="float32", attn_implementation="eager"
        ).to(self.device)
        model.embeddings.requires_grad_(False)
        optimizer, schedule = _optimizer(model, recipe.teacher_rate, recipe.teacher_steps, 10)
        weaknesses = [d for d in self.document_ids if d.startswith("CWE-")]
        model.eval()  # no dropout: drawing it takes more than half of a step on a CPU
        for _ in tqdm(range(recipe.teacher_steps), desc="teacher"):
            half = recipe.teacher_batch // 2
            batch = rng.sample(self.reports, half) + rng.sample(self.sentences, half)
            chosen = [rng.choice(sorted(self.queries[i].positives)) for i in batch]
            columns = sorted(set(chosen) | set(rng.sample(weaknesses, half)))
            documents = [self.documents[d] for d in columns]
            queries = [self.queries[i].text for i in batch]
            left, right = self._embed(model, queries), self._embed(model, documents)
            scores = left @ right.T / recipe.temperature
            target = torch.tensor([columns.index(document) for document in chosen]).to(self.device)
            scores = scores.masked_fill(self._other_answers(batch, columns, target), -1e9)
            _step(cross_entropy(scores, target), model, optimizer, schedule)
        with torch.inference_mode():
            left = self._embed_all(model, [query.text for query in self.queries])
            right = self._embed_all(model, list(self.documents.values()))
        return left, right

    def _other_answers(self, batch, columns, target) -> torch.Tensor:
        """True where a column is right for a query, or may be, but is not the chosen answer."""
        mask = torch.tensor(
            [
                [d in self.queries[i].positives or d in self.queries[i].related for d in columns]
                for i in batch
            ]
        )
        return mask.to(self.device).scatter(1, target[:, None], False)

    def _embed(self, model, texts: list[str]) -> torch.Tensor:
        inputs = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.recipe.max_length,
            return_tensors="pt",
        ).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None].float()
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def _embed_all(self, model, texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), 32):
            chunk = order[start : start + 32]
            vectors[chunk] = self._embed(model, [texts[i] for i in chunk]).cpu().numpy()
        return vectors

    # Stages 2 and 3 ----------------------------------------------------------------------

    def train(self, query_vectors: np.ndarray, document_vectors: np.ndarray):
        """Train the adapter; the state is saved now and then, and resumed from if found."""
        from peft import LoraConfig, get_peft_model

        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        rng = random.Random(recipe.seed)
        base = untrained_reranker().to(self.device)
        base.config._attn_implementation = "eager"  # its backward pass is twice as fast on a CPU
        base.requires_grad_(False)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=r".*encoder.*\.(query|key|value|dense)",
            modules_to_save=["pooler", "classifier"],
            task_type="SEQ_CLS",
        )
        model = get_peft_model(base, config)
        optimizer, schedule = _optimizer(model, recipe.rate, recipe.steps, recipe.warmup)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        first = self._resume(parts, rng)
        model.eval()  # no dropout, as above
        bar = tqdm(range(first, recipe.steps), initial=first, total=recipe.steps, desc="train")
        losses: list[tuple[float, float]] = []
        for step in bar:
            losses.append(self._train_step(step, rng, query_vectors, document_vectors, **parts))
            if (step + 1) % recipe.log_every == 0:
                distil, label = np.mean(losses, axis=0)
                losses.clear()
                bar.set_postfix(distil=f"{distil:.3f}", label=f"{label:.3f}")
                self.log.append({"step": step + 1, "distil": distil, "label": label})
                lines = "".join(json.dumps(row) + "\n" for row in self.log)
                (self.output / "log.jsonl").write_text(lines)
            if (step + 1) % recipe.save_every == 0:
                self._save(step + 1, parts, rng)
        return model

    def _train_step(
        self, step, rng, query_vectors, document_vectors, model, optimizer, schedule
    ) -> tuple[float, float]:
        recipe = self.recipe
        summaries = recipe.queries_per_step - recipe.reports_per_step - recipe.sentences_per_step
        batch = rng.sample(self.reports, recipe.reports_per_step)
        batch += rng.sample(self.sentences, recipe.sentences_per_step)
        batch += rng.sample(self.summaries, summaries)
        teacher = query_vectors[batch] @ document_vectors.T
        groups = [self._group(i, row, rng) for i, row in zip(batch, teacher, strict=True)]
        pairs = [
            (self.queries[i].text, self.documents[self.document_ids[column]])
            for i, group in zip(batch, groups, strict=True)
            for column in group
        ]
        logits = self._score(model, pairs).view(len(batch), -1)
        aim = torch.from_numpy(np.take_along_axis(teacher, np.array(groups), 1)).to(self.device)
        aim = aim / recipe.temperature
        distil = kl_div(
            log_softmax(logits, -1), softmax(aim, -1), reduction="batchmean", log_target=False
        )
        label = cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long, device=self.device))
        weight = recipe.label_weight if step >= recipe.distil_only * recipe.steps else 0.0
        _step((1 - weight) * distil + weight * label, model, optimizer, schedule)
        return distil.item(), label.item()

    def _group(self, query: int, scores: np.ndarray, rng: random.Random) -> list[int]:
        """One positive, then mined negatives, then random ones, as document columns.

        What is mined for a report or a sentence are documents and a few other passages.
        """
        recipe, asked = self.recipe, self.queries[query]
        wrong = asked.positives | asked.related
        order = np.argsort(-scores)
        mined: list[int] = []
        wanted = recipe.group - 1 - recipe.random_negatives
        if asked.field == "docstring":
            shares = {"docstring": wanted}
        else:
            shares = {"CWE": wanted - recipe.mined_passages, "passage": recipe.mined_passages}
        for kind, share in shares.items():
            first = order[self.kind[order] == kind][: recipe.mined_ranks].tolist()
            allowed = [c for c in first if not self._owned(c, wrong)]
            mined += rng.sample(allowed, share)
        others: list[int] = []
        while len(others) < recipe.random_negatives:
            column = rng.randrange(len(scores))
            if column not in mined + others and not self._owned(column, wrong):
                others.append(column)
        return [self.column[rng.choice(sorted(asked.positives))], *mined, *others]

    def _owned(self, column: int, weaknesses: frozenset[str]) -> bool:
        return not weaknesses.isdisjoint(self.owners[self.document_ids[column]])

    def _score(self, model, pairs: list[tuple[str, str]]) -> torch.Tensor:
        """Logits (len(pairs),), run in three length-sorted parts to save padding."""
        encoded = self.tokenizer(
            [query for query, _ in pairs],
            [document for _, document in pairs],
            truncation="longest_first",  # a few sentences alone are longer than the window
            max_length=self.recipe.max_length,
        )
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        parts = []
        for part in np.array_split(order, 3):
            inputs = self.tokenizer.pad(
                {name: [values[i] for i in part] for name, values in encoded.items()},
                return_tensors="pt",
            ).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                parts.append(model(**inputs).logits.float().view(-1))
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(self.device)]

    # Saving ------------------------------------------------------------------------------

    def _save(self, step: int, parts: dict, rng: random.Random) -> None:
        state = {name: part.state_dict() for name, part in parts.items() if name != "model"}
        state["model"] = {
            name: value for name, value in parts["model"].state_dict().items() if _trained(name)
        }
        state |= {
            "step": step,
            "log": self.log,
            "rng": rng.getstate(),
            "torch": torch.get_rng_state(),
        }
        fresh = self.output / "state.tmp"
        torch.save(state, fresh)
        fresh.replace(self.output / "state.pt")  # the last good state stays if saving fails

    def _resume(self, parts: dict, rng: random.Random) -> int:
        saved = self.output / "state.pt"
        if not saved.exists():
            return 0
        state = torch.load(saved, map_location=self.device, weights_only=False)
        odd = parts["model"].load_state_dict(state["model"], strict=False).unexpected_keys
        if odd:
            raise ValueError(f"{saved} holds weights this model has not, such as {odd[0]}.")
        parts["optimizer"].load_state_dict(state["optimizer"])
        parts["schedule"].load_state_dict(state["schedule"])
        rng.setstate(state["rng"])
        self.log = state["log"]
        torch.set_rng_state(state["torch"].cpu())
        return state["step"]


def write_bundle(adapter: Path, bundle: Path) -> None:
    """An adapter as it is shipped: in half precision, without paths, with its sha256."""
    from safetensors.torch import load_file, save_file

    bundle.mkdir(parents=True, exist_ok=True)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: value.half().contiguous() for name, value in weights.items()},
        bundle / "adapter_model.safetensors",
    )
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    (bundle / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    digest = file_sha256(bundle / "adapter_model.safetensors")
    (bundle / MANIFEST).write_text(json.dumps({"adapter_sha256": digest}) + "\n")


def _trained(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name


def _optimizer(model, rate: float, steps: int, warmup: int):
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)

    def share(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _step(loss: torch.Tensor, model, optimizer, schedule) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def main(arguments: list[str] | None = None) -> None:
    """The command line: one flag for each number of the recipe."""
    parser = argparse.ArgumentParser(description="Train the bundled reranker.")
    parser.add_argument("--output", type=Path, required=True, help="folder; resumed if it exists")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    values = vars(parser.parse_args(arguments))
    output = values.pop("output")
    Trainer(Recipe(**values), output).run()


if __name__ == "__main__":
    main()
