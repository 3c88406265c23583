"""A model folder that is replaced is served from then on, and no request sees anything in between."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.helpers import VITRAL, edit_config, random_model
from tests.serve.serving import application, files, picture, serving
from vitral.predictor import load
from vitral.serve.model_worker import ModelSource
from vitral.serve.reload import signature
from vitral.weights.tensors import load_tensors, save_tensors

OLD, NEW = ("cat", "dog", "owl"), ("ape", "bee", "cow", "doe")


def place(source: Path, target: Path) -> None:
    """The model in another folder's stead, as a training run leaves it there."""
    beside = target.with_name("beside")
    shutil.copytree(source, beside)
    if target.exists():
        shutil.rmtree(target)
    beside.rename(target)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of different sizes and classes."""
    root = tmp_path_factory.mktemp("models")
    return random_model(root / "old", OLD), random_model(root / "new", NEW, in_channels=3, image_size=16)


def origin_of(path: Path) -> ModelSource:
    return ModelSource(path, signature(path), lambda: load(path, "cpu"))


async def until_served(client: httpx.AsyncClient, classes: tuple[str, ...]) -> None:
    end = time.monotonic() + 60
    while set(classes) != await answered(client):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def answered(client: httpx.AsyncClient) -> set[str]:
    answer = await client.post("/v1/predict", files=files(picture(0)))
    return {each["label"] for each in answer.json()["predictions"]}


def test_under_load_each_answer_is_one_models_and_none_fails(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Old and new one after the other four times, while eight clients send one or two images: each answer is the old
    model's or the new one's in labels and scores."""
    served = tmp_path / "served"
    place(models[0], served)
    image = picture(3)
    expected = [
        {each["label"]: each["score"] for each in load(model, "cpu").predict(image)[0]["predictions"]}
        for model in models
    ]

    async def run() -> None:
        async with application(served, origin=origin_of(served), reload=0.05, max_batch=4) as client:
            seen, going = [0, 0], [True]

            async def ask(number: int) -> None:
                while going[0]:
                    answer = await client.post("/v1/predict", files=files(*[image] * (1 + number % 2)))
                    assert answer.status_code == 200
                    lines = answer.json() if isinstance(answer.json(), list) else [answer.json()]
                    found = [{each["label"]: each["score"] for each in line["predictions"]} for line in lines]
                    which = int(found[0].keys() == expected[1].keys())
                    for scores in found:
                        assert scores == pytest.approx(expected[which], abs=2e-6)
                    seen[which] += 1

            clients = [asyncio.create_task(ask(number)) for number in range(8)]
            for turn in range(4):
                place(models[(turn + 1) % 2], served)
                await until_served(client, (NEW, OLD)[turn % 2])
            going[0] = False
            await asyncio.gather(*clients)
            assert min(seen) > 0
            text = (await client.get("/metrics")).text
            assert 'vitral_reloads_total{model="one",result="ok"} 4.0' in text
            assert 'vitral_reloads_total{model="one",result="failed"} 0.0' in text

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "another config", "not finite", "a flipped bit"])
def test_a_folder_that_cannot_be_loaded_leaves_the_old_model(
    models: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    served = tmp_path / "served"
    place(models[0], served)

    async def run() -> None:
        async with application(served, origin=origin_of(served), reload=0.05) as client:
            if damage == "cut weights":
                weights = served / "model.safetensors"
                weights.write_bytes(weights.read_bytes()[:-9])
            elif damage == "not finite":
                tensors, metadata = load_tensors(served / "model.safetensors")
                tensors["head.bias"][0] = float("nan")
                save_tensors(served / "model.safetensors", tensors, metadata)
                edit_config(served, lambda _: None)
            elif damage == "a flipped bit":
                weights = served / "model.safetensors"
                data = bytearray(weights.read_bytes())
                data[-5] ^= 1
                weights.write_bytes(data)
            elif damage == "no weights":
                (served / "model.safetensors").unlink()
            else:
                shutil.copy(models[1] / "config.json", served)
            end = time.monotonic() + 30
            while (failure := (await client.get("/v1/models")).json()[0]["failure"]) is None:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert failure
            assert await answered(client) == set(OLD)
            assert (await client.get("/readyz")).status_code == 200
            assert 'result="failed"} 1.0' in (await client.get("/metrics")).text
            place(models[1], served)
            await until_served(client, NEW)
            assert (await client.get("/v1/models")).json()[0]["failure"] is None

    asyncio.run(run())


def test_nothing_is_looked_at_that_did_not_change(models: tuple[Path, Path], tmp_path: Path) -> None:
    served, loads = tmp_path / "served", list[int]()
    place(models[0], served)
    found = signature(served)

    def again() -> Any:
        loads.append(1)
        return load(served, "cpu")

    async def run() -> None:
        async with application(served, origin=ModelSource(served, found, again), reload=0.02) as client:
            (served / "notes.txt").write_text("not part of the model", encoding="utf-8")
            await asyncio.sleep(0.3)
            assert not loads
            assert await answered(client) == set(OLD)

    asyncio.run(run())


def test_the_command_reloads_the_model_of_a_run_folder(models: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    place(models[0], run / "model")
    with serving(str(run), "reload=0.1") as server:
        assert server.facts["models"] == ["run"]
        place(models[1], run / "model")
        end, labels = time.monotonic() + 60, set[str]()
        while labels != set(NEW) and time.monotonic() < end:
            answer = server.client.post("/v1/predict", files=files(picture(0)))
            labels = {each["label"] for each in answer.json()["predictions"]}
            time.sleep(0.05)
        assert labels == set(NEW)
        assert [line for line in server.log().splitlines() if json.loads(line)["event"] == "reloaded"]


def rewritten(folder: Path, factor: float) -> None:
    """Other weights of the same size in the same file, whose times are set back; config.json has their digest."""
    weights = folder / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    values = np.frombuffer(data, np.float32, offset=start)
    data[start:] = (values * np.float32(factor)).tobytes()
    with weights.open("r+b") as file:
        file.write(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    edit_config(folder, lambda _: None)


def test_of_many_replacements_in_a_moment_the_last_one_is_served(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Thirty in 1.5 seconds, of one size, with times of change that a copy kept, and in the same inodes."""
    served, image = tmp_path / "served", picture(3)
    place(models[0], served)

    async def run() -> None:
        async with application(served, origin=origin_of(served), reload=0.05) as client:
            for number in range(30):
                rewritten(served, 1.5 if number % 2 == 0 else 0.9)
                await asyncio.sleep(0.05)
            expected = {each["label"]: each["score"] for each in load(served, "cpu").predict(image)[0]["predictions"]}
            end = time.monotonic() + 30
            while True:
                answer = await client.post("/v1/predict", files=files(image))
                found = {each["label"]: each["score"] for each in answer.json()["predictions"]}
                if found == pytest.approx(expected, abs=2e-6):
                    break
                assert time.monotonic() < end, (found, expected)
                await asyncio.sleep(0.05)

    asyncio.run(run())


@pytest.mark.skipif(os.name == "nt", reason="named pipes of Unix")
def test_a_pipe_in_the_place_of_a_file_ends_no_watch(models: tuple[Path, Path], tmp_path: Path) -> None:
    served = tmp_path / "served"
    place(models[0], served)

    async def run() -> None:
        async with application(served, origin=origin_of(served), reload=0.05) as client:
            (served / "config.json").unlink()
            os.mkfifo(served / "config.json")
            end = time.monotonic() + 30
            while (failure := (await client.get("/v1/models")).json()[0]["failure"]) is None:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert "not a regular file" in failure
            place(models[1], served)
            await until_served(client, NEW)

    asyncio.run(run())


def test_a_model_whose_answers_are_not_finite_is_not_put_in_place(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Nor started: exit code 2 and one message. And no answer has a number that JSON has not."""
    served = tmp_path / "served"
    place(models[0], served)

    async def run() -> None:
        async with application(served, origin=origin_of(served), reload=0.05) as client:
            rewritten(served, float("nan"))
            end = time.monotonic() + 30
            while (failure := (await client.get("/v1/models")).json()[0]["failure"]) is None:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert "finite" in failure
            assert await answered(client) == set(OLD)

    asyncio.run(run())
    done = subprocess.run([*VITRAL, "serve", str(served), "port=0"], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("finite") == 1
    assert "Traceback" not in done.stderr


def test_an_answer_that_is_not_finite_is_500(models: tuple[Path, Path]) -> None:
    predictor = load(models[0], "cpu")

    async def run() -> None:
        async with application(predictor) as client:
            with torch.no_grad():
                next(predictor.model.parameters()).fill_(float("nan"))
            for path in ("/v1/predict", "/v1/embed", "/v1/attention", "/v1/explore"):
                answer = await client.post(path, files=files(picture(0)))
                assert answer.status_code == 500, (path, answer.text)
                assert "finite" in answer.json()["error"]["message"]

    asyncio.run(run())
