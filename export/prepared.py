"""Put together the checkpoint that is exported, of a folder or a file and what is given beside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bksdm.engines.errors import ExportError
from bksdm.export.controlnet_source import resolve_controlnet
from bksdm.export.embedding import add_embeddings, read_embedding
from bksdm.export.json_files import read_json
from bksdm.export.single_file import read_single_file, unpack, write_vae
from bksdm.export.source import FILES, resolve, validate
from bksdm.export.weights import files_of
from bksdm.runtime.bundle import CONTROLNET, TINY_VAE
from bksdm.storage.files import scratch


@dataclass(frozen=True)
class Parts:
    """What is given beside a checkpoint.

    Attributes
    ----------
    config, tokenizer : Path, optional
        Folders, for a checkpoint in one file; see `bksdm.export.single_file.unpack`.
    ema : bool
        Take the averaged weights of the UNet, if the checkpoint is one file.
    vae : Path, optional
        A file or a diffusers folder whose VAE replaces the checkpoint's.
    embeddings : sequence of (Path, str or None)
        Files of textual inversions, and their tokens where the files' own are not wanted.
    tiny_vae : Path, optional
        A diffusers folder of an ``AutoencoderTiny``, whose decoder is exported beside the VAE's.
    controlnets : mapping
        Diffusers folders or hub ids of ControlNets, by the names that pictures ask for them by.
    """

    config: Path | None = None
    tokenizer: Path | None = None
    ema: bool = False
    vae: Path | None = None
    embeddings: Sequence[tuple[Path, str | None]] = ()
    tiny_vae: Path | None = None
    controlnets: Mapping[str, str] = field(default_factory=dict)


NOTHING = Parts()


@contextmanager
def prepared(
    source: str | Path,
    parts: Parts = NOTHING,
    revision: str | None = None,
    safety_checker: bool = True,
    variant: str | None = None,
    token: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    beside: Path = Path(),
) -> Iterator[Path]:
    """Yield the folder of a checkpoint that can be exported, until the block ends.

    Parameters
    ----------
    source
        A diffusers folder, a hub id, or a checkpoint in one file.
    parts
        What is given beside it.
    revision, safety_checker, variant, token, report
        As of `bksdm.export.source.resolve`.
    beside
        Where there is room for a folder of the checkpoint's size; it need not exist.

    Raises
    ------
    ExportError
        As of `resolve` and `unpack`; or a part is not what it should be. Errors of the block name
        the files that were given.
    """
    if not source or not os.path.isfile(source):
        for name in ("config", "tokenizer", "ema"):
            if getattr(parts, name):
                raise ExportError(f"--{name} is for a checkpoint in one file; {source} is none")
        checkpoint = resolve(source, revision, safety_checker, variant, token, report)
        if not (parts.vae or parts.embeddings or parts.tiny_vae or parts.controlnets):
            yield checkpoint
            return
    else:
        checkpoint = Path(source)
        if revision is not None:
            raise ExportError(f"{source} is a local file; a revision ({revision}) is for hub ids")
        if variant is not None:
            raise ExportError(f"{source} is one file; a variant ({variant}) is for folders")
    controlnets = {
        f"{CONTROLNET}{name}": resolve_controlnet(name, given, token, report)
        for name, given in parts.controlnets.items()
    }
    embeddings = [read_embedding(path, word) for path, word in parts.embeddings]
    room = next(folder for folder in (beside, *beside.absolute().parents) if folder.is_dir())
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch(room))
        except OSError as error:
            raise ExportError(f"cannot write in {room}: {error.strerror or error}") from error
        unpacked, whole = folder / "file", folder / "whole"
        shown = {
            unpacked: checkpoint,
            whole / "vae_decoder_tiny": parts.tiny_vae or checkpoint,
            whole / "vae": parts.vae or checkpoint,
            **{whole / name: found for name, found in controlnets.items()},
            whole: checkpoint,
        }
        with _named(shown):
            whole.mkdir()
            rest = checkpoint
            if checkpoint.is_file():
                rest = unpacked
                rest.mkdir()
                unpack(
                    checkpoint,
                    rest,
                    parts.config,
                    tokenizer=parts.tokenizer,
                    ema=parts.ema,
                    vae=parts.vae is None,
                    report=report,
                )
            if parts.vae:
                _place_vae(parts.vae, whole / "vae")
            if parts.tiny_vae:
                _place_tiny_vae(parts.tiny_vae, whole / "vae_decoder_tiny")
                files_of(whole, "vae_decoder_tiny")
            for name, found in controlnets.items():
                _link(found, whole / name)
            if embeddings:
                add_embeddings(embeddings, rest, variant, whole)
            for name in FILES:
                if (rest / name).exists() and not (whole / name).exists():
                    _link(rest / name, whole / name)
            validate(whole, variant)
            yield whole


def _place_vae(vae: Path, target: Path) -> None:
    if vae.is_file():
        write_vae(vae, read_single_file(vae), target)
        return
    _link(_vae_folder(vae, "--vae takes a file, or a diffusers folder"), target)


def _place_tiny_vae(vae: Path, target: Path) -> None:
    inside = _vae_folder(vae, "--tiny-vae takes a diffusers folder")
    name = read_json(inside / "config.json").get("_class_name")
    if name != TINY_VAE:
        raise ExportError(f"{vae}: _class_name is {name!r}; --tiny-vae takes an {TINY_VAE}")
    _link(inside, target)


def _vae_folder(vae: Path, taken: str) -> Path:
    """Return the folder of a VAE, which may be that of a whole pipeline."""
    inside = vae / "vae" if (vae / "vae").is_dir() else vae
    if not (inside / "config.json").is_file():
        what = "no config.json in it" if inside.is_dir() else "no such file or folder"
        if inside.is_file():
            what = "a file"
        raise ExportError(f"{vae}: {what}; {taken}")
    return inside


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve(), source.is_dir())
    except OSError:  # not everyone may make links on Windows
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


@contextmanager
def _named(shown: Mapping[Path, Path]) -> Iterator[None]:
    """Let errors name what was given, not folders that are gone by then."""
    try:
        yield
    except ExportError as error:
        told = str(error)
        for place, given in shown.items():
            told = told.replace(str(place), str(given))
        raise ExportError(told) from error
