"""Record learning curves: python -m scripts.replay.record FILE.npz --space bas_cp --points 32 [--seeds 20]

Trains the start point and quasi-random points of a space with the product's own training, and writes numbers only (see
recording.py).  The same command again continues: finished trainings are kept in FILE.npz.parts/ until all are done,
and the rows of an existing FILE.npz are not trained again.

Point i is trained with the seed offset i, as trial i of a search.  `--seeds N` also trains the start point with the
offsets 1 to N - 1.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import optuna

from fgseg.cli import DONE, add_config_options, run_command
from fgseg.config.loading import Layer, build, parse_assignments
from fgseg.model.pretrained import NAMES
from fgseg.results import EpochResult
from scripts.arguments import positive
from scripts.replay.recording import Recording, combine, load_recording, save_recording
from search.sampling.distributions import distributions
from search.sampling.samplers import SobolSampler
from search.study.plan import Plan, Repeat, absolute, make_plan
from search.study.space import Space

TIES = 1e-4
"""Share of the pixels that another evaluation may count otherwise: two classes are equal there but for rounding."""


def main() -> int:
    """Run the command line; returns the exit code (see `fgseg.cli`)."""
    return run_command(parse, record, None)


def record(options: argparse.Namespace) -> int:
    """Train what is missing, and write the recording; raises ConfigError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = make_plan(options.space, options.config, parse_assignments(options.set), {}, None)
    header = describe(plan)
    parts = options.file.with_name(f"{options.file.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    wanted = rows_to_record(plan.space, options.points, options.seeds, plan.settings.train.seed)
    check_header(header, existing(options.file, parts))
    done = recorded_keys(options.file, parts)
    missing = [row for row in wanted if row_key(row) not in done]
    print(f"{len(wanted)} trainings of {plan.settings.train.epochs} epochs, {len(missing)} to do", flush=True)
    began = time.monotonic()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = {
            pool.submit(record_row, row_settings(plan, row), row, header, part_file(parts, row)): row for row in missing
        }
        for count, job in enumerate(as_completed(jobs), start=1):
            spent = (time.monotonic() - began) / 60
            left = spent / count * (len(jobs) - count)
            print(f"{count}/{len(jobs)}  mIoU {job.result():.4f}  {spent:.1f} min, {left:.0f} min left", flush=True)
    finish(options.file, parts, wanted)
    print(f"{options.file}: {len(wanted)} rows, {options.file.stat().st_size / 1024:.0f} KiB")
    return DONE


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.replay.record", description=__doc__)
    parser.add_argument("file", type=Path, help="the recording, a file FILE.npz")
    parser.add_argument("--space", required=True, help="approach family")
    parser.add_argument("--points", type=positive, default=32, help="start point and quasi-random points (default: 32)")
    parser.add_argument("--seeds", type=positive, default=1, help="seeds of the start point (default: 1)")
    parser.add_argument("--workers", type=positive, default=1, help="processes, of one thread each (default: 1)")
    add_config_options(parser, settable="a setting, or search.KEY.low of a range", default="configs/quickstart.yaml")
    return parser.parse_args(arguments)


def describe(plan: Plan) -> dict[str, Any]:
    """Return the header of a recording (see `Recording`); a model is named without its folder."""
    identity = plan.common_identity()
    settings = identity["settings"]
    if settings["model.name"] not in NAMES:
        settings["model.name"] = Path(settings["model.name"]).name
    return {
        "space": plan.space.to_json(),
        "settings": settings,
        "foreground": [[c.key, c.label] for c in plan.settings.label_set().foreground],
        "versions": {"fgsearch": identity["version"], "optuna": optuna.__version__, "numpy": np.__version__},
    }


def rows_to_record(space: Space, points: int, seeds: int, seed: int) -> list[Repeat]:
    """Return the trainings of a recording: the start point, quasi-random points, and other seeds of the start point."""
    first = [space.start, *quasi_random_points(space, points - 1, seed)]
    return [
        *(Repeat(point, number) for number, point in enumerate(first)),
        *(Repeat(space.start, number) for number in range(1, seeds)),
    ]


def quasi_random_points(space: Space, count: int, seed: int) -> list[dict[str, float | int]]:
    """Return points of the Sobol sequence of a search with this seed."""
    study, ranges = optuna.create_study(), distributions(space.search)
    points = []
    for index in range(count):
        study.sampler = SobolSampler(ranges, seed, index)
        sampled = study.ask(fixed_distributions=ranges).params
        points.append({name: space.value(name, sampled[name]) for name in space.search})
    return points


def row_key(row: Repeat) -> tuple[tuple[float, ...], int]:
    """Return what identifies a row, see `Recording.keys`."""
    return tuple(float(value) for value in row.params.values()), row.seed


def row_settings(plan: Plan, row: Repeat) -> dict[str, Any]:
    """Return all settings of a training by dotted name."""
    run = build([*plan.layers, Layer("point", row.params)])
    return absolute(run.flat() | {"train.seed": run.train.seed + row.seed})


def part_file(parts: Path, row: Repeat) -> Path:
    """Return the file of a finished training."""
    return parts / f"{row.seed:03d}-{crc32(repr(row_key(row)).encode()):08x}.npz"


def recorded_keys(file: Path, parts: Path) -> set[tuple[tuple[float, ...], int]]:
    """Return the rows that are recorded, finished or not."""
    return {key for recording in existing(file, parts) for key in recording.keys}


def existing(file: Path, parts: Path) -> list[Recording]:
    """Return the recording if it exists, and its parts."""
    return [load_recording(path) for path in [*([file] if file.exists() else []), *sorted(parts.glob("[0-9]*.npz"))]]


def check_header(header: dict[str, Any], recorded: Sequence[Recording]) -> None:
    """Exit with code 2 if something is recorded with other settings, ranges or versions: its rows would be kept."""
    if any(recording.header != header for recording in recorded):
        print("error: FILE: exists with other settings, ranges or versions; record into another file", file=sys.stderr)
        raise SystemExit(2)


def finish(file: Path, parts: Path, wanted: Sequence[Repeat]) -> None:
    """Write the recording with its rows in order, then delete the parts; rows that are not wanted stay at the end."""
    recording = combine(existing(file, parts))
    order = {row_key(row): place for place, row in enumerate(wanted)}
    places = [order.get(key, len(order)) for key in recording.keys]
    save_recording(recording.rows(np.argsort(places, kind="stable")), file)
    shutil.rmtree(parts)


def record_row(settings: dict[str, Any], row: Repeat, header: dict[str, Any], part: Path) -> float:
    """Train one point in this process and write its part; returns the last epoch's mIoU."""
    import torch

    from fgseg.data import load_splits
    from fgseg.data.device_frames import HostFrames
    from fgseg.train import train

    torch.set_num_threads(1)
    run = build([Layer("point", settings)])
    frames = HostFrames(load_splits(run.data, ("val",))["val"], torch.device("cpu"))
    results: list[EpochResult] = []
    counts: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(prefix="fgsearch-record-") as folder:

        def on_epoch(result: EpochResult) -> None:
            results.append(result)
            counts.append(count_frames(run, folder, frames, result))

        train(run, folder, on_epoch)
    confusion = np.stack(counts)  # (E, F, C, C)
    recording = Recording(
        header,
        params=np.array([row_key(row)[0]]),
        seeds=np.array([row.seed]),
        seconds=np.array([[result.seconds for result in results]], np.float32),
        miou=np.array([[result.miou for result in results]]),
        truth=confusion[0].sum(-1).astype(np.int32),
        predicted=confusion.sum(-2)[None].astype(np.int32),
        hits=np.diagonal(confusion, axis1=-2, axis2=-1)[None].astype(np.int32),
    )
    save_recording(recording, part)
    return results[-1].miou


def count_frames(run: Any, folder: str, frames: Any, result: EpochResult) -> np.ndarray:
    """Return the confusion matrix (F, C, C) of each validation frame with the weights of an epoch.

    The product reports the sum over the frames only, so that the newest checkpoint is evaluated again; raises
    RuntimeError if its sum differs from the reported one by more than `TIES` of the pixels.
    """
    from fgseg.checkpoints.checkpoint import newest_checkpoint
    from fgseg.metrics.evaluator import evaluate
    from fgseg.model.segformer import build_model
    from fgseg.storage.store import open_store

    checkpoint = newest_checkpoint(open_store(folder))
    if checkpoint is None:
        raise RuntimeError(f"epoch {result.epoch}: its checkpoint cannot be read")
    model = build_model(run.model.name, run.label_set(), run.model.drop_path)
    model.load_state_dict(checkpoint.model)
    counts = evaluate(model, frames, window=run.data.window)
    if np.abs(counts.sum(0).numpy() - np.array(result.confusion)).sum() > TIES * counts.sum():
        raise RuntimeError(f"epoch {result.epoch}: the checkpoint gives other counts than the training reported")
    return np.asarray(counts)


if __name__ == "__main__":
    sys.exit(main())
