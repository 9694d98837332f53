"""The tensor files of a checkpoint are what the safetensors package reads, whatever a model holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import Thread

import pytest
import safetensors.torch
import torch

from lrtrain.checkpoint import format
from lrtrain.errors import CheckpointError
from lrtrain.tensor_header import DTYPES, Described


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> format.Checkpoint:
    return format.verify(format.write(folder, 3, {"model": tensors}, {}))


def odd() -> dict[str, torch.Tensor]:
    """Every type, and shapes and layouts that are easily got wrong."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (48,), generator=generator, dtype=torch.uint8)
    every = {code: (noise % 2).bool() if code == "BOOL" else noise.view(dtype) for code, dtype in DTYPES.items()}
    weight = torch.randn(4, 3, 2, 5, generator=generator)
    return {
        **every,
        "turned": weight.transpose(0, 2),
        "channels last": weight.to(memory_format=torch.channels_last),
        "part": weight[1:, :, 1],
        "turned back": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "spread": torch.tensor([7.0]).expand(2, 3),
        "one": torch.tensor(-0.0),
        "none": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(weight),
        'zé"\\\n\x01': torch.tensor([float("nan"), float("inf")]),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_every_type_and_layout_comes_back_in_the_same_bits_for_the_safetensors_package_too(tmp_path: Path) -> None:
    tensors = odd()
    checkpoint = written(tmp_path, tensors)
    path = checkpoint.path / "model.safetensors"
    for read in (checkpoint.tensors("model"), safetensors.torch.load_file(path)):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(read[name]) == bits(tensor), name
    assert checkpoint.described("model")["turned"] == Described(torch.float32, (2, 3, 4, 5))


def test_every_number_lies_at_a_multiple_of_its_size_and_the_manifest_has_size_and_digest(tmp_path: Path) -> None:
    checkpoint = written(tmp_path, odd())
    data = (checkpoint.path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for entry in json.loads(data[8 : 8 + length]).values():
        assert entry["data_offsets"][0] % DTYPES[entry["dtype"]].itemsize == 0
    said = checkpoint.files["model.safetensors"]
    assert said == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_system_that_gives_no_more_threads_takes_no_checkpoint_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(Thread, "start", refused)
        alone = written(tmp_path / "alone", odd())
    assert alone.files == written(tmp_path / "beside", odd()).files


def test_tied_weights_are_written_under_each_of_their_names(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    read = written(tmp_path, module.state_dict()).tensors("model")
    assert torch.equal(read["0.weight"], read["1.weight"])
    assert torch.equal(read["1.weight"], module[0].weight)


def test_a_type_that_no_checkpoint_can_hold_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'phase' is complex128, which a checkpoint cannot hold") as caught:
        written(tmp_path, {"w": torch.zeros(2), "phase": torch.zeros(2, dtype=torch.complex128)})
    assert "float32" in str(caught.value.problems[0].hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({str(n): torch.zeros(1) for n in range(6)}, "at most 5 tensors; these are 6"),
        ({"a" * 1000: torch.zeros(1)}, "names and shapes of at most 1,000 bytes; these are 1,0"),
        ({"deep": torch.zeros((1,) * 17)}, "'deep' has the shape"),
        ({"near": torch.eye(2).to_sparse()}, "'near' is sparse_coo"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor], words: str
) -> None:
    monkeypatch.setattr("lrtrain.tensor_header.MAX_TENSORS", 5)
    monkeypatch.setattr("lrtrain.tensor_header.MAX_HEADER", 1000)
    with pytest.raises(CheckpointError, match=words):
        written(tmp_path, tensors)
    assert list(tmp_path.iterdir()) == []
