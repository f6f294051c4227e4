"""``bksdm verify`` accepts a bundle of its checkpoint and refuses one of another."""

from __future__ import annotations

from bksdm.cli import main
from bksdm.export.dummy import create_dummy


def test_a_bundle_passes_against_its_checkpoint(nano_bundle, nano_checkpoint, capsys):
    assert main(["verify", str(nano_bundle), "--against", str(nano_checkpoint)]) == 0
    assert "within 1" in capsys.readouterr().out


def test_a_bundle_fails_against_other_weights(nano_bundle, tmp_path, capsys):
    other = tmp_path / "other"
    create_dummy("nano", other, seed=1)
    assert main(["verify", str(nano_bundle), "--against", str(other)]) == 1
    assert "missed" in capsys.readouterr().out
