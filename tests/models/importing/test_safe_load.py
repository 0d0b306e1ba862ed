"""TorchScript archives give their tensors without running code."""

import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from cleft.errors import CheckpointError
from cleft.models.importing.importing import import_checkpoint
from cleft.models.importing.safe_load import is_jit_archive, load_foreign, read_jit_archive


class Block(nn.Module):
    counts: list[int]

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.counts = [3, 4]
        both = torch.arange(6.0)
        self.register_buffer("first", both[:2])
        self.register_buffer("every_second", both[1::2])
        self.register_buffer("few", torch.tensor([1, 2], dtype=torch.int32))
        self.register_buffer("none", torch.zeros(0))

    def forward(self, x):
        return self.attn(self.norm(x), x, x, need_weights=False)[0]


def write(path, module, traced=None):
    """Writes a module with TorchScript; a traced one in half precision, like OpenAI's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own of TorchScript
        made = torch.jit.script(module) if traced is None else torch.jit.trace(module, traced).half()
        made.save(str(path))
    return path


@pytest.mark.parametrize("traced", [None, torch.zeros(3, 2, 8)])
def test_tensors_of_nested_modules_are_those_that_were_saved(tmp_path, traced):
    model = nn.Sequential(Block(), nn.Sequential(Block())).eval()
    path = write(tmp_path / "model.pt", model, traced)
    assert is_jit_archive(path)
    tensors = read_jit_archive(path)
    expected = (model if traced is None else model.half()).state_dict()
    assert set(tensors) == set(expected)
    assert not any(tensor.requires_grad for tensor in tensors.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, atol=0, rtol=0)


def test_a_script_archive_given_as_a_checkpoint_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    assert not is_jit_archive(tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("no")
    assert not is_jit_archive(tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive, .* give a file of only weights"):
        load_foreign(write(tmp_path / "model.pt", Block()))


def rewrite(path, *, content=None, packed=False, leave_out="\0", limit=None):
    """Writes an archive again, with another `data.pkl`, packed, or without some entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if leave_out not in name}
    if content is not None:
        entries["model/data.pkl"] = content
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data[:limit] if "/data/" in name else data)
    return path


def test_an_archive_written_on_a_gpu_by_an_older_torch_is_read(tmp_path):
    path = write(tmp_path / "model.pt", Block())
    whole = read_jit_archive(path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("model/data.pkl")
    assert b"X\x03\x00\x00\x00cpu" in content
    rewrite(path, content=content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"), leave_out="/byteorder")
    again = read_jit_archive(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


class Runs:
    """Creates a folder if it is unpickled without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_a_pickle_cannot_run_code(tmp_path):
    path = write(tmp_path / "model.pt", Block())
    content = pickle.dumps(Runs(tmp_path / "was-here"), protocol=2)
    rewrite(path, content=content)
    with pytest.raises(
        CheckpointError, match=r"model.pt names posix.mkdir, not only modules .* can run code; ask the authors"
    ):
        import_checkpoint(path, tmp_path / "ours", method="openai-clip")
    assert not (tmp_path / "was-here").exists()
    pickle.loads(content)  # noqa: S301  it would indeed have run
    assert (tmp_path / "was-here").exists()


MODULE = b"c__torch__\nM\n)\x81"


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"ctorch\nload\n)R.",
        b"ctorch.serialization\nload\n)R.",
        b"ccleft.models.importing.jit_archive\n_Unpickler\n)R.",
        b"ccollections\nOrderedDict.fromkeys\n)R.",
    ],
)
def test_other_names_are_refused(tmp_path, content):
    path = rewrite(write(tmp_path / "model.pt", Block()), content=b"\x80\x02" + content)
    with pytest.raises(CheckpointError, match=r"names [\w.]+, not only modules and tensors; refused"):
        read_jit_archive(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"}.", "it contains a dict, not a module; copy it again"),
        (MODULE + b"}X\x01\x00\x00\x00aN", "cannot be read"),
        (MODULE + b".", "it contains a module without attributes; copy it again"),
        (MODULE + b"]b.", "it contains a module without attributes; copy it again"),
        (b"\xff", "cannot be read"),
        # modules that hold themselves
        (MODULE + b"q\x00}(X\x01\x00\x00\x00ah\x00ub.", "modules have more than 50,000 attributes; refused"),
        # attributes given to what makes tensors
        (b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aNsb.", "cannot be read"),
    ],
)
def test_invalid_or_damaged_archives_are_refused(tmp_path, content, sentence):
    path = rewrite(write(tmp_path / "model.pt", Block()), content=b"\x80\x02" + content)
    with pytest.raises(CheckpointError, match=rf"model.pt.*{sentence}"):
        read_jit_archive(path)


def test_entries_that_torch_would_not_write_are_refused(tmp_path):
    path = rewrite(write(tmp_path / "model.pt", Block()), packed=True)
    with pytest.raises(CheckpointError, match=r"model.pt has compressed entries, which torch never writes; refused"):
        read_jit_archive(path)
    path = write(tmp_path / "model.pt", Block())
    content = bytearray(path.read_bytes())
    at = content.index(b"model/data/1", content.index(b"PK\x01\x02")) - 46  # its line in the directory
    content[at + 20 : at + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.pt claims 2,147,\d+,\d+ bytes in \d+ entries"):
        read_jit_archive(path)


def test_damage_is_detected(tmp_path):
    path = rewrite(write(tmp_path / "model.pt", Block()), leave_out="data/3")
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*file data/3: file not found.*; copy it again"):
        read_jit_archive(path)
    path = rewrite(write(tmp_path / "model.pt", Block()), limit=4)
    with pytest.raises(CheckpointError, match=r"cannot be read .*does not match expected size.*; copy"):
        read_jit_archive(path)
    path = rewrite(write(tmp_path / "model.pt", Block()), leave_out="/data.pkl")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_jit_archive(path)
    path = write(tmp_path / "model.pt", Block())
    content = bytearray(path.read_bytes())
    at = content.index(torch.arange(6.0).numpy().tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Bad CRC-32 .*; copy it again"):
        read_jit_archive(path)
