"""Networks of one's own in files: the features are the network's, and no file can run code."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import slow_but

from autodiffusion_opt import Study, UserError
from autodiffusion_opt.objective.exported import load_exported
from autodiffusion_opt.objective.features import load_extractor
from autodiffusion_opt.zoo.digits import load_images

CPU = torch.device("cpu")
FORMS = ("net.pt2", "net.pt", "net.ts")


class Small(torch.nn.Module):
    """What an export has to hold: weights, a constant, text as an argument, a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.linear = torch.nn.Linear(16, 5)
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.gelu(self.convolution(images.float() / 255 - self.mean), approximate="tanh")
        with torch.no_grad():
            x = torch.nn.functional.interpolate(x, size=(4, 4), mode="bilinear")
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(x, (2, 2)).flatten(1))


def save(network: torch.nn.Module, path: Path, example: torch.Tensor | None = None, fixed: bool = False) -> Path:
    """In the form that the file's ending says."""
    images = load_images()[:3] if example is None else example
    if path.suffix == ".pt2":
        shapes = None if fixed else ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(network.eval(), (images,), dynamic_shapes=shapes), path)
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch calls TorchScript deprecated
        torch.jit.save(torch.jit.trace(network.eval(), (images,)), path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small network in all forms."""
    folder = tmp_path_factory.mktemp("networks")
    for name in FORMS:
        save(Small(), folder / name)
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_the_features_are_the_networks_own_for_any_number_of_images(name: str, files: Path) -> None:
    extractor = load_extractor(str(files / name), CPU)
    for count in (1, 2, 3, 7):
        images = load_images()[:count]
        features = extractor(images)
        assert (features.dtype, features.shape) == (np.float32, (count, 5))
        with torch.no_grad():
            np.testing.assert_allclose(features, Small()(images).numpy(), rtol=1e-5, atol=1e-6)


def test_an_export_made_on_one_kind_of_device_runs_on_another(files: Path) -> None:
    """The meta device stands for a GPU: an export holds the device of its example in its operators."""
    network = load_exported((files / "net.pt2").read_bytes(), torch.device("meta"))
    output = network(load_images()[:2].to("meta"))
    assert (output.device.type, output.shape) == ("meta", (2, 5))


def test_dropout_is_off_though_the_network_was_saved_in_training(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), Float(), torch.nn.Dropout(0.5)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(network), tmp_path / "net.pt")
    images = load_images()[:5]
    features = load_extractor(str(tmp_path / "net.pt"), CPU)(images)
    np.testing.assert_array_equal(features, images.flatten(1).numpy())


class Float(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_the_identity_is_that_of_the_content(files: Path, tmp_path: Path) -> None:
    identities = {name: load_extractor(str(files / name), CPU).identity for name in FORMS}
    assert all(identity.startswith("network-") for identity in identities.values())
    (tmp_path / "copy.pt").write_bytes((files / "net.pt").read_bytes())
    assert load_extractor(str(tmp_path / "copy.pt"), CPU).identity == identities["net.pt"]
    changed = Small()
    changed.mean.fill_(0.25)
    assert load_extractor(str(save(changed, tmp_path / "net.pt2")), CPU).identity != identities["net.pt2"]


def test_a_relative_path_starts_from_the_given_folder(files: Path) -> None:
    assert load_extractor("net.pt", CPU, base=files)(load_images()[:2]).shape == (2, 5)
    with pytest.raises(UserError, match=r"features: the file .*/here/net\.pt must exist"):
        load_extractor("net.pt", CPU)


@pytest.mark.parametrize("name", slow_but(["net.pt2", "net.pt"], "net.pt2"))
def test_a_study_searches_with_them_and_a_resumed_one_refuses_another_network(
    name: str, files: Path, tmp_path: Path, study_text: str, url: str
) -> None:
    study_file = tmp_path / "mine.toml"
    study_file.write_text(study_text.replace('features = "digits"', f'features = "{name}"'))
    (tmp_path / name).write_bytes((files / name).read_bytes())
    results = Study.load(study_file, storage=url).run(3, progress=False)
    assert all(np.isfinite(result.value) for result in results)
    other = Small()
    other.mean.fill_(0.25)
    save(other, tmp_path / name)
    with pytest.raises(UserError, match="reference"):
        Study.load(study_file, storage=url).run(4, progress=False)


# Files that are refused.


class Wrong(torch.nn.Module):
    """Gives what no features are."""

    def __init__(self, of: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.of = of

    def forward(self, images: torch.Tensor) -> Any:
        return self.of(images)


OUTPUTS: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "three sizes": (lambda images: images[:, 0].float(), r"gave \(2, 8, 8\) of float32"),
    "integers": (lambda images: images.flatten(1), r"gave \(2, 64\) of uint8"),
    "one number": (lambda images: images.float().mean((1, 2, 3)), r"gave \(2,\) of float32"),
    "transposed": (lambda images: images.flatten(1).float().t(), r"gave \(64, 2\) of float32"),
    "two outputs": (lambda images: (images.flatten(1).float(), images.flatten(1).float()), "gave a tuple"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("ending", [".pt", ".pt2"])
def test_an_output_that_is_no_features_is_told(kind: str, ending: str, tmp_path: Path) -> None:
    function, message = OUTPUTS[kind]
    path = save(Wrong(function), tmp_path / f"net{ending}")
    with pytest.raises(UserError, match=rf"must give floats of the shape \(N, D\) for N images; .* it {message}"):
        load_extractor(str(path), CPU)(load_images()[:2])


@pytest.mark.parametrize("name", FORMS)
def test_images_that_the_network_does_not_take_are_told_with_their_shape(name: str, files: Path) -> None:
    extractor = load_extractor(str(files / name), CPU)
    with pytest.raises(
        UserError, match=r"failed on uint8 images of the shape \(2, 3, 16, 16\): .*channels|shape"
    ) as told:
        extractor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert "\n" not in str(told.value)


def test_an_export_for_one_number_of_images_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes batches of 3 images alone; .*=\{\"images\": \{0: torch\.export\.Dim"):
        load_extractor(str(save(Small(), tmp_path / "net.pt2", fixed=True)), CPU)


def test_an_export_of_two_inputs_is_refused(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
            return (images + others).flatten(1).float()

    images = load_images()[:3]
    torch.export.save(torch.export.export(Two(), (images, images)), tmp_path / "net.pt2")
    with pytest.raises(UserError, match="must take one tensor, the images; it takes 2 inputs"):
        load_extractor(str(tmp_path / "net.pt2"), CPU)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("content", [b"", b"text", None])
def test_another_file_is_refused_in_a_sentence(name: str, content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        torch.save(Small().state_dict(), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=r"must be a network (in TorchScript, as torch.jit|as torch.export).save"
    ) as told:
        load_extractor(str(tmp_path / name), CPU)
    assert "\n" not in str(told.value)


def test_weights_beside_a_network_are_refused(files: Path) -> None:
    with pytest.raises(UserError, match="has weights of its own; remove features_weights"):
        load_extractor(str(files / "net.pt"), CPU, files / "net.pt")


# Files that would run code.


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], Any], **more: Any) -> Path:
    """An archive with its members changed, by their paths below its folder."""
    with zipfile.ZipFile(source) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w", **more) as archive:
        for path, content in members.items():
            archive.writestr(f"net/{path}", content)
    return target


def in_program(change: Callable[[Any], Any]) -> Callable[[dict[str, bytes]], None]:
    def changed(members: dict[str, bytes]) -> None:
        program = json.loads(members["models/model.json"])
        change(program)
        members["models/model.json"] = json.dumps(program).encode()

    return changed


HARM = "__import__('os').mkdir('harm')"


class Harm:
    """What a pickle can do when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def call_of_python(program: Any) -> None:
    node = graph(program)["nodes"][0]
    argument = {"name": "", "arg": {"as_string": "harm"}, "kind": 1}
    node |= {"target": "torch.os.mkdir", "inputs": [argument], "outputs": [{"as_none": True}]}


def operator_as_argument(program: Any) -> None:
    graph(program)["nodes"][0]["inputs"][0]["arg"] = {"as_operator": "torch.os.mkdir"}


def file_operator(program: Any) -> None:
    graph(program)["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def size(program: Any) -> None:
    graph(program)["tensor_values"]["images"]["sizes"][0]["as_expr"]["expr_str"] = HARM


def function_in_a_size(program: Any) -> None:
    graph(program)["tensor_values"]["images"]["sizes"][0]["as_expr"]["expr_str"] = "exec('harm')"


def size_of_weights(members: dict[str, bytes]) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["tensor_meta"]["sizes"][0] = {"as_expr": {"expr_str": HARM}}
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def argument_name(program: Any) -> None:
    for spec in program["graph_module"]["signature"]["input_specs"]:
        if "user_input" in spec:
            spec["user_input"]["arg"]["as_tensor"]["name"] = f"images={HARM}"


def name_of_a_value(program: Any) -> None:
    graph(program)["tensor_values"][f"x={HARM}"] = graph(program)["tensor_values"]["images"]


def output_tree(kind: str, context: str) -> Callable[[Any], None]:
    def change(program: Any) -> None:
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = json.dumps([1, {"type": kind, "context": context, "children_spec": []}])

    return change


def opaque(members: dict[str, bytes]) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Harm())
    constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members["data/constants/model_constants_config.json"] = json.dumps({"config": {"thing": constant}}).encode()


def pickled_weights(members: dict[str, bytes]) -> None:
    config = json.loads(members["data/weights/model_weights_config.json"])
    next(iter(config["config"].values()))["use_pickle"] = True
    members["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    torch.save(Harm(), "harm.pt")
    members["data/weights/weight_0"] = Path("harm.pt").read_bytes()


HARMFUL: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "a function of Python's": (in_program(call_of_python), "'torch.os.mkdir' is no operator of tensors"),
    "a function as an argument": (in_program(operator_as_argument), "'torch.os.mkdir' is no operator of tensors"),
    "an operator that reads files": (in_program(file_operator), "is no operator of tensors, and could run code"),
    "a size": (in_program(size), "is no expression of sizes, and could run code"),
    "a function in a size": (in_program(function_in_a_size), "is no expression of sizes, and could run code"),
    "a size of weights": (size_of_weights, "is no expression of sizes, and could run code"),
    "an argument's name": (in_program(argument_name), "is no name"),
    "a value's name": (in_program(name_of_a_value), "is no name"),
    "a module by its name": (
        in_program(output_tree("builtins.dict", '{"__enum__": true, "fqn": "antigravity:fly", "name": "up"}')),
        "must be tensors, or tuples and lists of them",
    ),
    "a type of another module": (
        in_program(output_tree("collections.defaultdict", "null")),
        "must be tensors, or tuples and lists of them",
    ),
    "an opaque constant": (opaque, "it holds pickled objects, which are not read since they can run code"),
    "pickled weights": (pickled_weights, "must be a network as torch.export.save writes it"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_an_archive_that_could_run_code_is_refused_and_runs_none(kind: str, files: Path, tmp_path: Path) -> None:
    change, message = HARMFUL[kind]
    path = rewritten(files / "net.pt2", tmp_path / "harmful.pt2", change)
    with pytest.raises(UserError, match=message):
        load_extractor(str(path), CPU)(load_images()[:2])
    assert not Path("harm").exists()


def guards_and_inputs(members: dict[str, bytes]) -> None:
    in_program(lambda program: program.update(guards_code=[HARM]))(members)
    members["data/sample_inputs/model.pt"] = pickle.dumps(Harm())
    members["extra/notes"] = b"something else"


def test_what_a_network_does_not_need_is_not_read(files: Path, tmp_path: Path) -> None:
    path = rewritten(files / "net.pt2", tmp_path / "more.pt2", guards_and_inputs)
    images = load_images()[:4]
    expected = load_extractor(str(files / "net.pt2"), CPU)(images)
    np.testing.assert_array_equal(load_extractor(str(path), CPU)(images), expected)
    assert not Path("harm").exists()


@pytest.mark.skipif(torch.__version__ < "2.15", reason="older torch knows no opaque constants")
def test_torch_itself_would_run_the_code_of_such_an_archive(files: Path, tmp_path: Path) -> None:
    """So the tests above do test something."""
    path = rewritten(files / "net.pt2", tmp_path / "harmful.pt2", opaque)
    torch.export.load(path)
    assert Path("harm").exists()


def test_a_compressed_archive_is_refused(files: Path, tmp_path: Path) -> None:
    path = rewritten(files / "net.pt2", tmp_path / "net.pt2", lambda members: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"it is compressed, which torch\.export\.save does not do"):
        load_extractor(str(path), CPU)


def test_scripted_networks_that_are_pickles_are_refused(tmp_path: Path) -> None:
    for name, content in {"a.pt": pickle.dumps(Harm()), "b.ts": pickle.dumps(Harm(), protocol=0)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="must be a network in TorchScript"):
            load_extractor(str(tmp_path / name), CPU)
    torch.save(Harm(), tmp_path / "c.pt")
    with pytest.raises(UserError, match="must be a network in TorchScript"):
        load_extractor(str(tmp_path / "c.pt"), CPU)
    assert not Path("harm").exists()
