"""Serves a run's teacher from a process of its own: `python -m kd.serve teacher=tiny skill=spell_backward trainer=cpu`.

The overrides are those that make the teacher (with `prepare`, the skill too), and its device: trainer=gpu
trainer.devices=[1]. A run reads it by the words that this command prints.
"""

import argparse
import sys
from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from kd.components.axes import points
from kd.composition.interfaces import made_by
from kd.doctor.subject import composed
from kd.errors import explained, fault
from kd.experiment.loading import device, load_teacher
from kd.experiment.preparation import prepared
from kd.experiment.run import train_only
from kd.teachers.served.server import ServedModel, check_free, listening
from kd.teachers.served.wire import name_of

BESIDE = {"student": "tiny", "objective": "sft", "alignment": "none"}  # none of them is used


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m kd.serve`; returns the exit code. Ctrl-C ends it."""
    parser = argparse.ArgumentParser(prog="python -m kd.serve", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; others than this machine's are open"
    )
    parser.add_argument("--port", type=int, default=8765, help="0: any that is free")
    parser.add_argument("overrides", nargs="*", help="as for kd: teacher=tiny skill=spell_backward trainer=cpu")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own yamls beside conf/, as for kd")
    options = parser.parse_intermixed_args(arguments)
    try:
        check_free(options.host, options.port)
        with composed(of_teacher(options.overrides), more=options.config_dir) as cfg:
            served = loaded(cfg)
        serve(served, options.host, options.port)
    except KeyboardInterrupt:
        print("the server has ended", file=sys.stderr)
    except Exception as error:
        print(explained(error) or fault(error), file=sys.stderr)
        return 1
    return 0


def of_teacher(overrides: Sequence[str]) -> list[str]:
    """The overrides, and beside a teacher alone a student and an objective that fit any."""
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    return [*overrides, *([] if given & {*points(), *BESIDE} else [f"{axis}={name}" for axis, name in BESIDE.items()])]


def loaded(cfg: DictConfig) -> ServedModel:
    """The config's teacher, prepared and on its device. Raises ValueError, before any weight is loaded, for one that
    cannot be served."""
    found = None if cfg.teacher.get("_target_") is None else made_by("teacher", cfg.teacher)
    if found is None or not found.has_weights or found.follows_student:
        raise ValueError(
            f"teacher {'none' if found is None else found.__name__} is not one frozen language model, and a server "
            "returns the states of one; serve teacher=pretrained, smollm2_135m or tiny"
        )
    with open_dict(cfg):
        cfg.student.prepare = None  # it is not loaded
    teacher, place = load_teacher(prepared(cfg, train_only).teacher), device(cfg)
    teacher.to(place)
    return ServedModel(teacher, place)


def serve(served: ServedModel, host: str, port: int) -> None:
    """Print the words by which a run reads the teacher, then answer until the process is ended."""
    with listening(served, host, port) as server:
        url = f"http://{host}:{server.server_address[1]}"
        about = served.about
        print(f"{about.vocabulary} ids, states of {about.width} numbers, on {served.device}; a run reads it by:")
        print(f"teacher=served teacher.url={url} teacher.identity={name_of(about.teacher)}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
