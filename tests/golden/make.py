"""Write the golden files of one release: data, encodings, models, checkpoints, predictions.

`python -m tests.golden.make 0.2` in the root of a checkout writes into tests/golden/0.2, which must
hold train.toml and nothing else: what was once written stays. The script uses the public interface
alone, so that it does not depend on where modules are. `golden.json` holds the commit of the code
that wrote the files, the options of the imports and runs, and the digests and scores that
`tests/unit/test_golden.py` expects of every release.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mpigd
from mpigd.__main__ import main as command

HERE = Path(__file__).resolve().parent
ROLES = dict(target="bought", weight="weight", dtype="float32")
LEVELS = ("Aachen", "Bergen", "Cádiz", "Delft")
# Per name: the options of `mpigd.import_data` with which table.csv becomes NAME.h5. The encodings
# have versions 1, 2 and 3.
IMPORTS: dict[str, dict[str, Any]] = {
    "dense": dict(missing="mean", drop=["day", "price"]),
    "reference": dict(missing="drop", drop=["day", "price"], drop_first=True),
    "forms": dict(missing="mean", date=["day"], number=["price"], unseen="other", min_count=12),
}
# Per name: the data, the options of `mpigd.train`, and the step of the checkpoint.
RUNS: dict[str, dict[str, Any]] = {
    "minibatch": dict(
        data="dense.h5",
        validation="held-out.h5",
        step=54,
        options=dict(
            loss="logistic", mode="minibatch", optimizer="adam", batch_size=24, epochs=20, l2=1e-3,
            learning_rate=0.3, warmup=5, patience=6, validate_every=4, seed=3,
        ),
    ),
    "full": dict(
        data="sparse.h5",
        validation=None,
        step=12,
        options=dict(loss="poisson", mode="full", optimizer="lbfgs", l2=1e-2, tol=1e-9),
    ),
}  # fmt: skip


def write_tables(folder: Path) -> None:
    """Write table.csv, held-out.csv and table.svm from a fixed seed."""
    draw = random.Random(20)
    for name, rows in (("table.csv", 240), ("held-out.csv", 60)):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["age", "income", "city", "day", "price", "weight", "bought"])
            out.writerows(_row(draw) for _ in range(rows))
    with open(folder / "table.svm", "w", encoding="utf-8") as file:
        for _ in range(200):
            columns = sorted(draw.sample(range(1, 31), draw.randint(1, 6)))
            count = int(draw.expovariate(1.0) * (1 + columns[0] % 3))
            pairs = " ".join(f"{column}:{round(draw.uniform(-2, 2), 2)}" for column in columns)
            file.write(f"{count} {pairs}\n")


def _row(draw: random.Random) -> list[str]:
    age, income, city = draw.gauss(40, 12), draw.lognormvariate(3, 0.5), draw.choice(LEVELS)
    rare = draw.random() < 0.03
    chance = 1 / (1 + math.exp(-(age - 40) / 8 + LEVELS.index(city) - 1.5))
    day = f"{draw.randint(2019, 2024)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    return [
        "" if draw.random() < 0.05 else f"{age:.1f}",
        f"{income:.3f}",
        f"{city} am See" if rare else city,
        day,
        f"${draw.uniform(1, 99):.2f}",
        str(draw.randint(1, 3)),
        "yes" if draw.random() < chance else "no",
    ]


def import_tables(folder: Path) -> dict[str, Any]:
    """Import the tables; return the digests of X and y and the version of each encoding."""
    for name, options in IMPORTS.items():
        mpigd.import_data(str(folder / "table.csv"), str(folder / f"{name}.h5"), **ROLES, **options)
    dense, held = str(folder / "dense.h5"), str(folder / "held-out.h5")
    mpigd.import_data(str(folder / "held-out.csv"), held, like=dense, unseen="zero")
    mpigd.import_data(str(folder / "table.svm"), str(folder / "sparse.h5"))
    return {name: describe(folder / f"{name}.h5") for name in (*IMPORTS, "held-out", "sparse")}


def describe(path: Path) -> dict[str, Any]:
    """The version of the encoding in a data file, and a digest of the numbers in it."""
    import h5py

    total = hashlib.sha256()

    def absorb(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype != "u1":  # those are texts
            total.update(f"{name} {item.dtype.str} {item.shape}\n".encode())
            total.update(item[...].tobytes())

    with h5py.File(path) as file:
        file.visititems(absorb)
        stored = json.loads(file["encoding"][()].tobytes())
    return {"encoding": stored["version"], "digest": total.hexdigest()}


def train(folder: Path, name: str) -> dict[str, Any]:
    """Train without interruption; keep the model and one checkpoint; return what is expected."""
    run, saved = RUNS[name], folder / "saved"
    held_out = {"validation": run["validation"]} if run["validation"] else {}
    options = run["options"] | held_out | dict(checkpoint="saved", checkpoint_every=run["step"])
    model = mpigd.train(run["data"], **options)
    steps = model.summary["steps"]
    assert run["step"] < steps < 2 * run["step"], f"{name} ends after step {steps}"
    os.replace(saved / f"step-{run['step']:012d}.h5", folder / f"{name}-checkpoint.h5")
    shutil.rmtree(saved)
    model.save(f"{name}-model.h5")
    exact = ("objective", "gradient_norm", "reads", "steps", "stop_reason", "state_digest")
    summary = {key: model.summary[key] for key in exact}
    return run | {"digest": model.digest, "summary": summary, "history": model.history}


def mpigd_command(*words: str) -> str:
    """What a command of mpigd prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command(list(words))
    assert code in (0, None), f"mpigd {' '.join(words)}: exit code {code}"
    return out.getvalue()


def use(name: str, data: str) -> dict[str, Any]:
    """Scores of a model, and its predictions as CSV."""
    model = f"{name}-model.h5"
    words = ["--unseen", "zero"] if data.endswith(".csv") else []
    scores = json.loads(mpigd_command("evaluate", model, data, "--json", *words))
    predicted = f"{name}-predictions.csv"
    mpigd_command("predict", model, data, "-o", "predictions.h5", "--csv", predicted, *words)
    os.unlink("predictions.h5")
    return {"data": data, "scores": scores}


def main(release: str) -> None:
    """Write all files into a temporary folder, and copy them to the folder of the release."""
    target = HERE / release
    if [path.name for path in target.iterdir()] != ["train.toml"]:
        sys.exit(f"{target} must hold train.toml and nothing else: golden files are not replaced")
    truth: dict[str, Any] = {"commit": commit(), "version": mpigd.__version__}
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # paths in the files are relative, so that they name no machine
        shutil.copy(target / "train.toml", ".")
        write_tables(Path())
        truth["imports"] = {name: ROLES | options for name, options in IMPORTS.items()}
        truth["data"] = import_tables(Path())
        truth["runs"] = {name: train(Path(), name) for name in RUNS}
        truth["use"] = {
            "minibatch": use("minibatch", "held-out.csv"),
            "full": use("full", "sparse.h5"),
        }
        truth["toml"] = options_in("train.toml")
        text = json.dumps(truth, indent=1, ensure_ascii=False)
        Path("golden.json").write_text(text + "\n", encoding="utf-8")
        shutil.copytree(".", target, dirs_exist_ok=True)
        os.chdir(HERE)


def commit() -> str:
    """The last commit that changed the code; the script ends if there are later changes."""
    code = ["--", "mpigd", "kernels"]
    if _git("status", "--porcelain", *code):
        sys.exit("commit mpigd and kernels first: golden files name the commit that wrote them")
    return _git("log", "-1", "--format=%H", *code)


def _git(*words: str) -> str:
    where = HERE.parents[1]
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=where)
    return done.stdout.strip()


def options_in(path: str) -> dict[str, Any]:
    """All options after reading a TOML file, under the names that the configuration stores."""
    from mpigd.config.schema import resolve, to_dict

    return to_dict(resolve({}, path, {})[0])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.golden.make RELEASE")
    main(sys.argv[1])
