"""Unsupported tensors and invalid headers give a message that names the tensor."""

import json
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from cleft.errors import CheckpointError
from cleft.models.importing.safe_load import load_foreign, read_weights, tensors_of
from cleft.models.state_dict import read_header

ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.empty(3, device="meta"),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "float8 of exponents": lambda: torch.ones(3).to(torch.float8_e8m0fnu),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "complex halves": lambda: torch.ones(3, dtype=torch.complex32),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "unsigned": lambda: torch.ones(3, dtype=torch.uint16),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "no number": lambda: torch.tensor([1.0, float("nan")]),
    "infinite halves": lambda: torch.tensor([float("inf")], dtype=torch.bfloat16),
}
PLAIN = {
    "float64": lambda: torch.ones(3, dtype=torch.float64),
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "whole": lambda: torch.arange(3),
    "boolean": lambda: torch.ones(3, dtype=torch.bool),
    "parameter": lambda: torch.nn.Parameter(torch.ones(3)),
    "empty": lambda: torch.ones(0),
}


def write(path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is a prototype
        torch.save({"state_dict": {"plain": torch.ones(200), "layer.odd": make()}}, path)
    return path


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_that_is_not_plain_is_named(tmp_path, kind):
    path = write(tmp_path / "x.pt", ODD[kind])
    with pytest.raises(CheckpointError, match=r"layer\.odd|cannot be read") as caught:
        tensors_of(load_foreign(path), path)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"layer\.odd|cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_tensor_is_read(tmp_path, kind):
    path = write(tmp_path / "x.pt", PLAIN[kind])
    assert torch.equal(tensors_of(load_foreign(path), path)["layer.odd"], PLAIN[kind]())


def write_header(path, header, data=bytes(64)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("kind", "size"),
    [("F8_E4M3", 64), ("F8_E8M0", 64), ("F4", 128), ("C64", 8), ("U16", 32), ("F6_E2M3", 64), ("X", 1)],
)
def test_a_type_that_is_not_read_is_named(tmp_path, kind, size):
    header = {"layer.odd": {"dtype": kind, "shape": [size], "data_offsets": [0, 64]}}
    path = write_header(tmp_path / "x.safetensors", header)
    for read in (read_header, read_weights):
        with pytest.raises(CheckpointError, match=rf"layer\.odd \({kind}\)|corrupt safetensors file"):
            read(path)


FIRST = b'{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}'


@pytest.mark.parametrize(
    "header",
    [
        FIRST + b", " + FIRST[1:] + b"}",
        FIRST.replace(b"[16]", b"[17]") + b"}",
        FIRST.replace(b"[16]", b"[99999999999999999999]") + b"}",
        FIRST.replace(b"[16]", b"[-16]") + b"}",
        FIRST.replace(b"[16]", b"[4294967296, 4294967296]") + b"}",
        FIRST.replace(b"64]", b"1e999]") + b"}",
        FIRST.replace(b"[0, ", b"[32, ") + b"}",
        FIRST.replace(b'"a"', b'"\xff"') + b"}",
        FIRST + b', "__metadata__": 3}',
        FIRST,
        b"[]",
        b"{}",
        b"",
        b"[" * 100_000,
    ],
    ids=lambda header: repr(header[:70]),
)
def test_a_header_that_lies_is_a_message(tmp_path, header):
    path = write_header(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_header(path)


@pytest.mark.parametrize("size", [0, 2**63, 10**12, 10_000])
def test_a_header_of_another_length_is_a_message(tmp_path, size):
    save_file({"a": torch.ones(16)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + content[8:])
    with pytest.raises(CheckpointError, match="corrupt safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_a_container_with_two_entries_of_one_name_is_refused(tmp_path):
    path = write(tmp_path / "x.pt", PLAIN["whole"])
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(archive.infolist()[0].filename, archive.read(archive.infolist()[0]))
    with pytest.raises(CheckpointError, match="two entries with the same name"):
        load_foreign(path)
