#!/usr/bin/env python3
"""Gives a run's metrics to W&B, MLflow or trackio, through their own clients.

    scripts/log_to.py wandb|mlflow|trackio RUN [--follow] [--project NAME] [--name NAME]

RUN is the folder that `fusedpo sft` or `dpo` fills, during the run or after it. Its metrics.jsonl is replayed under the names that
transformers' callbacks give (train/loss, eval/loss, ...), its options are the configuration. With --follow it goes on until the
run ends (finished, stopped or failed) or until Ctrl-C; it may be started before the run. A run that was killed is waited for.

How far it came is in RUN/log_to.CLIENT.json: called again, it sends only what is new, into the same run of the client. Where the
run goes on from a checkpoint, its metrics are cut and come again with the same numbers; they are not sent twice. Where they come
with other numbers, it is another run, and the client gets a new one.

The clients' own variables say where to: WANDB_MODE=offline, WANDB_ENTITY, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID, ... Needs the
client (pip install wandb, mlflow or mlflow-skinny, trackio) and nothing else.
"""

import argparse
import json
import math
import os
import sys
import time
import zlib
from pathlib import Path

TIMES = ("_seconds", "_per_second", "_bytes")


class Wandb:
    def begin(self, of, name, project, config):
        import wandb

        of.setdefault("id", os.urandom(4).hex())
        project = os.environ.get("WANDB_PROJECT", project)
        self.run = wandb.init(id=of["id"], resume="allow", name=name, project=project, config=config)
        # A step may come twice, of training and of evaluation, and again from another call: so it is a metric of its own.
        self.run.define_metric("train/global_step")
        self.run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, step, scalars):
        self.run.log({**scalars, "train/global_step": step})

    def keep(self):
        pass

    def end(self, outcome):
        self.run.finish(exit_code=1 if outcome == "failed" else 0)


class Mlflow:
    """In batches of at most 1000 numbers, as its server takes them."""

    def begin(self, of, name, project, config):
        import mlflow
        from mlflow.entities import Metric

        self.client, self.metric, self.batch = mlflow.MlflowClient(), Metric, []
        if "id" not in of:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", project)
            found = self.client.get_experiment_by_name(experiment)
            experiment = found.experiment_id if found else self.client.create_experiment(experiment)
            of["id"] = self.client.create_run(experiment, run_name=name).info.run_id
            for key, value in config.items():
                self.client.log_param(of["id"], key, str(value)[:6000])
        self.id = of["id"]
        self.client.update_run(self.id, status="RUNNING")

    def log(self, step, scalars):
        now = int(time.time() * 1000)
        self.batch += [self.metric(key, value, now, step) for key, value in scalars.items()]
        if len(self.batch) > 900:
            self.keep()

    def keep(self):
        for at in range(0, len(self.batch), 1000):
            self.client.log_batch(self.id, metrics=self.batch[at : at + 1000])
        self.batch = []

    def end(self, outcome):
        self.keep()
        status = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}.get(outcome)
        if status:
            self.client.set_terminated(self.id, status=status)


class Trackio:
    def begin(self, of, name, project, config):
        import trackio

        # It finds its runs by their names.
        of.setdefault("id", name)
        self.trackio = trackio
        trackio.init(project=os.environ.get("TRACKIO_PROJECT", project), name=of["id"], config=config, resume="allow")

    def log(self, step, scalars):
        self.trackio.log(scalars, step=step)

    def keep(self):
        pass

    def end(self, outcome):
        self.trackio.finish()


CLIENTS = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


class Rows:
    """The whole lines of a file that grows, is cut, and may not be there yet."""

    def __init__(self, path):
        self.path, self.at, self.last = path, 0, b""

    def again(self):
        self.at, self.last = 0, b""

    def new(self):
        """Rows after those that were given; all from the first on where the file is another than it was."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.at - len(self.last))
                if file.read(len(self.last)) != self.last:
                    self.again()
                file.seek(self.at)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self.at, self.last = self.at + len(line), line
                    try:
                        row = json.loads(line)
                    except ValueError:
                        sys.exit(f"{self.path}: not a line of metrics: {line[:60]!r}")
                    yield row
        except FileNotFoundError:
            self.again()


def scalars(row):
    """By transformers' rewrite_logs. What JSON has no number for, it has as null."""

    def tag(key):
        return "eval/" + key[5:] if key.startswith("eval_") else "train/" + key

    numbers = {k: v for k, v in row.items() if k != "step" and (v is None or isinstance(v, (int, float)))}
    return {tag(k): math.nan if v is None else v for k, v in numbers.items()}


def digest(row):
    return zlib.crc32(json.dumps({k: v for k, v in row.items() if not k.endswith(TIMES)}).encode())


class Sender:
    """What was sent, and where to."""

    def __init__(self, args):
        self.args, self.config = args, {}
        self.path = args.run / f"log_to.{args.client}.json"
        self.client, self.sent = None, 0
        try:
            self.of = json.loads(self.path.read_text())
        except FileNotFoundError:
            self.of = {"part": 1}
        except ValueError:
            sys.exit(f"{self.path}: damaged: remove it, and all is sent to a new run")

    def begin(self):
        client = CLIENTS[self.args.client]()
        name = self.args.name or self.args.run.resolve().name
        part = self.of["part"]
        client.begin(self.of, name if part == 1 else f"{name}-{part}", self.args.project, self.config)
        self.client = client
        self.keep()

    def keep(self):
        """Says how far it is, after the client has it."""
        self.client.keep()
        new = self.path.with_suffix(".tmp")
        new.write_text(json.dumps(self.of))
        os.replace(new, self.path)

    def row(self, row):
        """Sends what is new. False: it is another run's, and all rows are to come again."""
        kind = "eval" if any(key.startswith("eval_") for key in row) else "train"
        last = self.of.get(kind)
        if last and row["step"] <= last[0]:
            if row["step"] == last[0] and digest(row) != last[1]:
                print(f"{self.args.run}: step {row['step']} has other numbers than were sent: a new run", file=sys.stderr)
                self.end("stopped")
                self.of, self.client = {"part": self.of["part"] + 1}, None
                return False
            return True
        if self.client is None:
            self.begin()
        self.client.log(row["step"], scalars(row))
        self.of[kind] = [row["step"], digest(row)]
        self.sent += 1
        if self.sent % 100 == 0:
            self.keep()
        return True

    def end(self, outcome):
        if self.client is not None:
            self.client.end(outcome)
            self.keep()


def record(run):
    """run.json; nothing where the run has not begun."""
    try:
        return json.loads((run / "run.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}


def send(args):
    sender, rows = Sender(args), Rows(args.run / "metrics.jsonl")
    outcome = "running"
    try:
        while True:
            # Asked before the rows are read: what ends after that is seen the next time.
            about = record(args.run)
            outcome = about.get("outcome", "running")
            sender.config = {k: v for k, v in about.get("options", {}).items() if v is not None}
            before = sender.sent
            while not all(sender.row(row) for row in rows.new()):
                rows.again()
            if sender.sent > before:
                sender.keep()
            if not args.follow or outcome != "running":
                break
            time.sleep(args.every)
    except KeyboardInterrupt:
        print("stopped; called again, it goes on", file=sys.stderr)
    finally:
        sender.end(outcome)
    print(f"{args.run}: {sender.sent} rows sent to {args.client}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="The top of the file says more.")
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("--project", default="fusedpo", help="project, or experiment [fusedpo]")
    parser.add_argument("--name", help="name of the run [its folder's]")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="how often to look, with --follow [2]")
    args = parser.parse_args()
    if not args.follow and not (args.run / "metrics.jsonl").is_file():
        sys.exit(f"{args.run}: is not the folder of a run: it has no metrics.jsonl")
    try:
        send(args)
    except ImportError as e:
        sys.exit(f"{args.client} is not installed ({e}): pip install {args.client}")


if __name__ == "__main__":
    main()
