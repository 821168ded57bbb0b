"""Command line: parses, calls one function, prints its report. Heavy libraries load inside the commands."""

import io
import json
import math
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import click
import typer

from airlam.errors import AirlamError, DataError, SpecError

app = typer.Typer(
    name="airlam",
    help="Large AI models on the radio link: channels, fine-tuning, and the gain on the link.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
dataset_app = typer.Typer(help="Look at, check and convert channel datasets.", no_args_is_help=True)
app.add_typer(dataset_app, name="dataset")

MENDABLE = 2  # the status of everything that the user can mend
INTERRUPTED = 130  # the shell's convention for Ctrl-C
MAX_MEMORY_GIB = 2**20


def main() -> None:
    """Entry point of the ``airlam`` command; leaves with the status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        _keep_stdout()
        sys.exit(_status())


def _keep_stdout() -> None:
    """Keeps standard output for what Python prints; what libraries in C print there goes to standard error.

    HiGHS has a line that no option of it silences and that would spoil JSON. For the rest of the process: C
    empties its buffer at the very end.
    """
    own = sys.stdout
    if not isinstance(own, io.TextIOWrapper) or sys.stderr is None or not _is_descriptor_1(own):
        return
    own.flush()
    buffering = 1 if own.line_buffering or own.write_through else -1
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(kept, "w", buffering, own.encoding, own.errors, closefd=False)


def _is_descriptor_1(stream: TextIO) -> bool:
    """Not so where whoever called ``main`` captures what it prints."""
    try:
        return stream.fileno() == 1
    except io.UnsupportedOperation:  # it is no file
        return False


def _status() -> int:
    """Runs the command; what the user can mend becomes one line on standard error."""
    try:
        status = app(prog_name="airlam", standalone_mode=False)
    except click.UsageError as error:
        return _refuse(_usage(error))
    except AirlamError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(_os_error(error))
    if status == INTERRUPTED:
        print("airlam: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
    return int(status or 0)


def _refuse(message: str) -> int:
    if message:
        print(f"airlam: {message}", file=sys.stderr)
    return MENDABLE


def _usage(error: click.UsageError) -> str:
    """In one line; empty where the error was to ask for nothing, and help has been shown."""
    message = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "airlam"
    return f"{message}; see {command} --help" if message else ""


def _os_error(error: OSError) -> str:
    message = (str(error) or type(error).__name__).splitlines()[0]
    return f"{message}; check the path, its permissions and the free space" if error.errno else message


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of Python's line of code, which says nothing to a user."""
    print(f"airlam: warning: {message}", file=sys.stderr)


@app.command()
def specs(
    name: Annotated[str, typer.Argument(help="Print this packaged spec as TOML; without it, list all.")] = "",
) -> None:
    """List the packaged dataset specs, or print one to start from."""
    from airlam.datasets.catalog import descriptions, packaged_spec
    from airlam.specs import spec_to_toml

    if name:
        print(spec_to_toml(packaged_spec(name)), end="")
        return
    for each, description in descriptions().items():
        print(f"{each:32} {description}")


@app.command()
def generate(
    spec: Annotated[str, typer.Argument(help="A TOML file, or the name of a packaged spec (airlam specs).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to write.")],
    workers: Annotated[
        int | None, typer.Option(help="Processes that draw; by default one a core, where that pays.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Draw with Ray: local, auto, or a cluster's HOST:PORT."),
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option(help="Memory for all processes; by default half of what there is.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Draw a channel dataset with Sionna. Killed, it goes on where it stopped.

    The bytes are the same, however many processes draw and whatever stops them.
    """
    from airlam.console import Progress
    from airlam.datasets.catalog import resolve
    from airlam.datasets.generate import generate as run

    if memory_gib is not None and not 0 < memory_gib < MAX_MEMORY_GIB:  # NaN is neither
        raise SpecError(f"--memory-gib is {memory_gib}; expected a positive number of GiB, such as 4")
    with Progress() as progress:
        run(
            resolve(spec),
            output,
            workers=workers,
            ray_address=ray,
            memory_budget_bytes=None if memory_gib is None else int(memory_gib * 2**30),
            on_progress=progress,
            overwrite=overwrite,
        )
    print(output)


@dataset_app.command("info")
def dataset_info(
    path: Path,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", "-p", help="Draw maps, delays, Doppler, images: to .png, .svg or .html."),
    ] = None,
) -> None:
    """What a dataset holds; with --picture, how it looks."""
    from airlam.datasets.card import info

    if picture is None:
        print(info(path))
        command = shlex.join(
            ["airlam", "dataset", "info", str(path), "--picture", path.with_suffix(".png").name]
        )
        print(f"picture      {command}")
        return
    from airlam.datasets.portrait import portrait
    from airlam.portrait_picture import require_picture_name, write_picture

    require_picture_name(picture)
    found = portrait(path)
    print(found.facts)
    write_picture(found, picture)
    print(picture)


@dataset_app.command("verify")
def dataset_verify(
    path: Path,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON and nothing else.")] = False,
) -> None:
    """Check checksums and values; print the card: Doppler against theory, delay spread, power."""
    from airlam.console import Progress
    from airlam.datasets.card import verify

    with Progress() as progress:
        card = verify(path, on_progress=progress)
    if as_json:
        print(json.dumps(card.to_dict(), indent=2))
        return
    print(card.text())
    print("sound            every checksum holds and every value is finite")


@dataset_app.command("export")
def dataset_export(
    path: Path,
    output: Annotated[Path, typer.Option("--output", "-o", help="Ends in .npz, .mat or .tfrecord.")],
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Write a dataset as NPZ, MATLAB v7.3 or TFRecord."""
    from airlam.datasets.exchange import export

    export(path, output, overwrite=overwrite)
    print(output)


@dataset_app.command("import")
def dataset_import(
    path: Annotated[Path, typer.Argument(help="LLM4CP's or WiFo's .mat, or a QuaDRiGa .npz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to write.")],
    spec: Annotated[
        str, typer.Option(help="For WiFo's layout, which states no grid: a TOML file or a packaged spec.")
    ] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
) -> None:
    """Turn channels that others made into a dataset."""
    from airlam.datasets.catalog import resolve
    from airlam.datasets.exchange import import_foreign

    import_foreign(path, output, spec=resolve(spec) if spec else None, overwrite=overwrite)
    print(output)


@app.command()
def finetune(
    run: Annotated[Path, typer.Argument(help="A run spec (TOML).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of runs.")] = Path("runs"),
    transport: Annotated[
        str,
        typer.Option(help="Where devices and server of a [network] run: inprocess, ray, ray:HOST:PORT."),
    ] = "inprocess",
) -> None:
    """Fine-tune a LAM. Killed or interrupted, it goes on from its last checkpoint."""
    from airlam.console import Progress
    from airlam.specs import RunSpec, read_spec
    from airlam.tasks.runs import finetune as start

    with Progress() as progress:
        folder = start(read_spec(RunSpec, run), run.parent, output, progress, transport=transport)
    print((folder / "summary.json").read_text(), end="")
    print(folder)


@app.command()
def pretrain(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    spec: Annotated[
        str, typer.Argument(help="A TOML file, or a packaged scale: two_cores or tiny.")
    ] = "two_cores",
) -> None:
    """Pretrain a backbone on a mixture of Sionna channels. Killed, it goes on where it stopped.

    The folder can be named as backbone in a run spec.
    """
    from airlam.console import Progress
    from airlam.tasks.pretraining import pretrain as start
    from airlam.tasks.pretraining import resolve_pretraining

    with Progress() as progress:
        folder = start(resolve_pretraining(spec), output, progress)
    print(folder)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that finetune wrote.")],
    link: Annotated[bool, typer.Option(help="Also send coded blocks over the link.")] = True,
) -> None:
    """Measure a fine-tuned LAM against classical methods, and the gain on the link."""
    from airlam.console import Progress, show
    from airlam.report import text_table
    from airlam.tasks.evaluation import evaluate as measure

    with Progress() as progress:
        result = measure(run, link, progress)
    show(text_table(result))
    print(f"report: {run / 'report.html'}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything made.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[bool, typer.Option(help="A tiny setting, to see that it works.")] = False,
) -> None:
    """The main job from end to end: draw channels, fine-tune, measure the gain on the link."""
    from airlam.console import Progress, show
    from airlam.report import text_table
    from airlam.tasks.demo import run_demo

    with Progress() as progress:
        result, folder = run_demo(output, quick, progress)
    show(text_table(result))
    print(f"report: {folder / 'report.html'}")


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that finetune wrote.")],
    host: Annotated[str, typer.Option(help="Whom it listens to; the server asks nobody who they are.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8008,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="LAMs run on Ray: local, auto, or a cluster's HOST:PORT."),
    ] = None,
) -> None:
    """Serve fine-tuned runs of channel prediction and beamforming over HTTP, what they share loaded once.

    Prints its address; SIGHUP has it read the folders anew, with no request refused; ends on Ctrl-C.
    """
    from airlam.specs import ServingSpec

    spec = ServingSpec(host=host, port=port)
    try:
        from airlam.tasks.serving import serve_runs
    except ImportError as error:
        raise DataError(f"{error.name} is not installed: pip install 'airlam[serve]'") from None
    if ray is not None:
        from airlam.tasks.ray_serving import serve_over_ray

        serve_over_ray(runs, spec, ray, on_listening=lambda url: print(url, flush=True))
    else:
        serve_runs(runs, spec, on_listening=lambda url: print(url, flush=True))


@app.command()
def client(
    run: Annotated[Path, typer.Argument(help="The folder of a run that is served.")],
    url: Annotated[str, typer.Option(help="What serve printed.")] = "http://127.0.0.1:8008",
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 20.0,
    seconds: Annotated[float, typer.Option(help="For how long.")] = 10.0,
) -> None:
    """Replay the run's test users to a server at a steady rate, and print how long they waited."""
    from airlam.tasks.replaying import replay_run

    for name, value in (("--rate", rate), ("--seconds", seconds)):
        if not 0 < value < math.inf:
            raise SpecError(f"{name} is {value}; expected a positive number")
    print(*replay_run(run, url, rate_per_s=rate, duration_s=seconds).lines(), sep="\n")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder that finetune wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    to: Annotated[str, typer.Option(help="litert or onnx.")] = "litert",
    on_device: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME]", help="More modules for the device than embedding and head."),
    ] = "",
    batch: Annotated[
        int | None, typer.Option(help="Samples of a training step; by default the run's.")
    ] = None,
) -> None:
    """Write a LAM's device side, for inference and training, as LiteRT or ONNX; compare it to torch."""
    from airlam.console import Progress, show
    from airlam.tasks.export import export_run

    with Progress() as progress:
        report = export_run(
            run,
            output,
            to,
            modules=tuple(on_device.split(",")) if on_device else (),
            batch_size=batch,
            on_progress=progress,
        )
    show(report.table())
    print(*report.sentences, sep="\n")
    print(output)


@app.command("place")
def place_services(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that finetune wrote.")],
    network: Annotated[str, typer.Option(help="A TOML file, or the packaged network edge_network.")] = (
        "edge_network"
    ),
    rate: Annotated[float, typer.Option(help="Slots a second that each device sends to each run.")] = 10.0,
    replicas: Annotated[int, typer.Option(help="Instances of each service, on as many servers.")] = 2,
    devices: Annotated[int | None, typer.Option(help="How many of the devices ask.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Decide on which servers the services of fine-tuned LAMs run, and how long requests then take."""
    from airlam.tasks.planning import resolve_network

    try:
        from airlam.tasks.placing import PlacingRequest, place_runs
    except ImportError as error:
        raise DataError(f"{error.name} is not installed: pip install 'airlam[serve]'") from None
    request = PlacingRequest(
        network=resolve_network(network),
        folders=runs,
        rate_per_s=rate,
        min_replicas=replicas,
        num_devices=devices,
    )
    result = place_runs(request)
    print(json.dumps(result.values(), indent=2, allow_nan=False) if as_json else result.text())


@app.command()
def plan(
    network: Annotated[
        str, typer.Argument(help="A TOML file, or the packaged network edge_network: 20 devices, 2 servers.")
    ] = "edge_network",
    run: Annotated[
        Path | None, typer.Option(help="A run spec (TOML): its model, task and batch; else --model.")
    ] = None,
    model: Annotated[str, typer.Option(help="Backbone, where no run is given.")] = "airlam",
    batch: Annotated[
        int | None, typer.Option(help="Samples a step; by default the run's, or 32; served, 1.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Plan inference instead of training.")] = False,
    on_device: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="More modules that stay on each device.")
    ] = "",
    freeze_embedding: Annotated[bool, typer.Option(help="Train LoRA and head only.")] = False,
    devices: Annotated[int | None, typer.Option(help="How many of the devices take part.")] = None,
    same_cut: Annotated[bool, typer.Option("--same-cut", help="One cut for all devices.")] = False,
    ranks: Annotated[str, typer.Option(metavar="R[,R]", help="LoRA ranks to choose from.")] = "",
    rank_value: Annotated[float, typer.Option(help="Seconds that a unit of log2(1 + rank) is worth.")] = 0.0,
    precisions: Annotated[str, typer.Option(metavar="P[,P]", help="Of fp32, bf16 and int8.")] = "fp32",
    energy_value: Annotated[float, typer.Option(help="Seconds that a joule is worth.")] = 0.0,
    max_latency: Annotated[float | None, typer.Option(help="Budget of a step, in seconds.")] = None,
    max_energy: Annotated[float | None, typer.Option(help="Budget of a device's step, in joules.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Decide which device or server runs which module of a LAM, and what a step then costs."""
    from airlam.tasks.planning import options_of, plan_network, request_of

    options = options_of(
        model=model if run is None else None,
        batch_size=batch,
        mode="inference" if serve else "training",
        on_device=on_device,
        freeze_embedding=freeze_embedding,
        num_devices=devices,
        same_cut=same_cut,
        ranks=ranks,
        rank_value_s=rank_value,
        precisions=precisions,
        energy_s_per_j=energy_value,
        max_latency_s=max_latency,
        max_energy_j=max_energy,
    )
    result = plan_network(request_of(network, run, **options))
    print(json.dumps(result.values(), indent=2, allow_nan=False) if as_json else result.text())


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="prediction, beamforming, ablation, transfer, synthesis, schedule, split, federated, serve, "
            "placement or dataset-io."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    quick: Annotated[bool, typer.Option(help="A small setting, for tests.")] = False,
    train: Annotated[bool, typer.Option(help="Train anew what is otherwise shipped or cached.")] = False,
    data: Annotated[Path | None, typer.Option(help="A foreign dataset to measure on.")] = None,
    only: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Of prediction or ablation, these settings only.")
    ] = "",
    peers: Annotated[bool, typer.Option(help="In prediction, with the learned comparators.")] = True,
) -> None:
    """Measure, as figures from one run."""
    from airlam.bench import run_bench
    from airlam.console import Progress

    with Progress() as progress:
        result: dict[str, Any] = run_bench(
            name,
            quick=quick,
            train=train,
            data=data,
            on_progress=progress,
            only=tuple(only.split(",")) if only else (),
            peers=peers,
        )
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    for figure, value in result["figures"].items():
        print(f"{figure:48} {value:.4g}")
    for part, reason in result["settings"].get("skipped", {}).items():
        print(f"skipped {part}: {reason}")


@app.command()
def doctor() -> None:
    """Say what works on this machine, and how to mend what does not."""
    from airlam.doctor import diagnose

    findings = diagnose()
    marks = {True: "ok", False: "BROKEN", None: "absent"}
    for finding in findings:
        print(f"{marks[finding.works]:7} {finding.part:20} {finding.detail}")
        if not finding.works:
            print(f"{'':7} {'':20} -> {finding.remedy}")
    if any(finding.works is False for finding in findings):
        sys.exit(1)
