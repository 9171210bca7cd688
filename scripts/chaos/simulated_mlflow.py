"""A simulated MLflow server: slow, refusing, storing half of a batch, or gone."""

import re
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException

from scripts.chaos.virtual_time import Clock, Killed

REQUEST_S, TIMEOUT_S = 0.02, 10.0
"""Virtual seconds of a request, and until the client gives up."""


class Server:
    """The runs and models that the server stores.

    Attributes:
        fault: `slow` (the client gives up, the server stores the request all the same), `refuses` (HTTP 500), `half`
            (stores half of a batch, then HTTP 500), `gone` (no connection); None: the server works.
        on_write: called with a run after every change of it.
    """

    def __init__(self, clock: Clock, random: Random, on_write: Callable[[Any], None]) -> None:
        self.clock, self.random, self.on_write = clock, random, on_write
        self.experiments: list[str] = []
        self.runs: dict[str, Any] = {}
        self.models: dict[str, Any] = {}
        self.fault: str | None = None

    def client(self, tracking_uri: str) -> "Client":
        """Return a client, in place of `MlflowClient`."""
        return Client(self)

    def request(self, apply: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Carry out a request of a client.

        Args:
            apply: carries it out.
            half: carries out half of it; None: it is carried out as a whole or not at all.

        Raises:
            MlflowException, ConnectionError: `fault`.
            Killed: the client's process crashes before or after this request.
        """
        fault, process = self.fault, self.clock.process
        self.clock.sleep(REQUEST_S if fault != "slow" else TIMEOUT_S)
        crashes = process.crashes_now()
        if fault == "gone":
            raise ConnectionError("connection refused")
        if fault in ("refuses", "half") or (crashes and self.random.random() < 0.5):
            if fault == "half" and half is not None:
                half()
            if not crashes:
                raise MlflowException("internal server error")
        else:
            result = apply()
        if crashes:
            process.kill()
            raise Killed
        if fault == "slow":
            raise ConnectionError("timed out")
        return result

    def change(self, run_id: str, apply: Callable[[Any], None], half: Callable[[Any], None] | None = None) -> None:
        """Change a run by a request."""
        run = self.runs[run_id]

        def carry_out(change: Callable[[Any], None]) -> None:
            change(run)
            self.on_write(run)

        self.request(lambda: carry_out(apply), None if half is None else lambda: carry_out(half))


class Client:
    """The methods of `MlflowClient` that the product calls."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def get_experiment_by_name(self, name: str) -> Any:
        found = SimpleNamespace(experiment_id=name, lifecycle_stage="active")
        return self.server.request(lambda: found if name in self.server.experiments else None)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        self.server.request(lambda: self.server.experiments.append(name))
        return name

    def search_experiments(self, page_token: str | None = None) -> Any:
        found = [SimpleNamespace(experiment_id=name) for name in self.server.experiments]
        return self.server.request(lambda: Page(found))

    def search_runs(self, experiments: list[str], query: str, page_token: str | None = None) -> Any:
        tags = dict(re.findall(r"tags\.`(.+?)` = '(.+?)'", query)).items()
        runs = self.server.runs.values
        return self.server.request(lambda: Page(r for r in runs() if not r.deleted and tags <= r.data.tags.items()))

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str], name: str) -> Any:
        info = SimpleNamespace(run_id="", status="RUNNING", start_time=start_time)
        run = SimpleNamespace(info=info, inputs=None, deleted=False, history={}, images=[])
        run.data = SimpleNamespace(tags=dict(tags), params={}, metrics=run.history)

        def create() -> Any:
            info.run_id = f"run{len(self.server.runs):03d}"
            self.server.runs[info.run_id] = run
            self.server.on_write(run)
            return run

        return self.server.request(create)

    def delete_run(self, run_id: str) -> None:
        self.server.change(run_id, lambda run: setattr(run, "deleted", True))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        def store(run: Any, share: float) -> None:
            for metric in metrics[: round(len(metrics) * share)]:
                history = run.history.setdefault(metric.key, [])
                if all(point_of(known) != point_of(metric) for known in history):  # MLflow stores equal points once
                    history.append(metric)
                if metric.model_id is not None:
                    self.server.models[metric.model_id].metrics.append(metric)
            run.data.params |= {param.key: param.value for param in params[: round(len(params) * share)]}
            run.data.tags |= {tag.key: tag.value for tag in tags[: round(len(tags) * share)]}

        self.server.change(run_id, lambda run: store(run, 1), lambda run: store(run, 0.5))

    def log_inputs(self, run_id: str, datasets: Any) -> None:
        self.server.change(run_id, lambda run: setattr(run, "inputs", SimpleNamespace(dataset_inputs=datasets)))

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.server.change(run_id, lambda run: None)

    def log_artifact(self, run_id: str, name: str, data: bytes) -> None:
        self.server.change(run_id, lambda run: None)

    def log_image(self, run_id: str, image: Any, key: str, step: int, timestamp: int) -> None:
        def store(run: Any, is_whole: bool) -> None:
            run.images.append(((key, step), is_whole))

        self.server.change(run_id, lambda run: store(run, True), lambda run: store(run, False))

    def list_artifacts(self, run_id: str, path: str) -> list[Any]:
        names = [
            f"images/{key.replace('/', '~')}+step+{step}+timestamp+1+{'+compressed.webp' if is_whole else '.png'}"
            for (key, step), is_whole in self.server.runs[run_id].images
        ]
        return self.server.request(lambda: [SimpleNamespace(path=name) for name in names])

    def search_logged_models(self, experiments: list[str], query: str, page_token: str | None = None) -> Any:
        return self.server.request(lambda: Page(model for model in self.server.models.values() if not model.deleted))

    def create_logged_model(self, experiment: str, **description: Any) -> Any:
        def create() -> Any:
            model_id = f"m-{len(self.server.models):03d}"
            model = SimpleNamespace(model_id=model_id, status="PENDING", metrics=[], deleted=False, **description)
            return self.server.models.setdefault(model_id, model)

        return self.server.request(create)

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self.server.request(lambda: setattr(self.server.models[model_id], "status", status))

    def delete_logged_model(self, model_id: str) -> None:
        self.server.request(lambda: setattr(self.server.models[model_id], "deleted", True))

    def delete_tag(self, run_id: str, key: str) -> None:
        self.server.change(run_id, lambda run: run.data.tags.pop(key, None))

    def update_run(self, run_id: str, status: str) -> None:
        self.server.change(run_id, lambda run: setattr(run.info, "status", status))

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.update_run(run_id, status)

    def get_metric_history(self, run_id: str, metric: str) -> list[Any]:
        return self.server.request(lambda: list(self.server.runs[run_id].history.get(metric, ())))


def point_of(metric: Any) -> tuple[float, int, int]:
    """Return what distinguishes the values of one metric."""
    return metric.value, metric.timestamp, metric.step


class Page(list[Any]):
    """The only page of a search."""

    token = None
