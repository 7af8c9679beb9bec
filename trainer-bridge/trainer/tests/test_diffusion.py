"""The image model: geometry, pipeline, server, pipe, and the job that trains it, on miniatures with random weights."""

import base64
import dataclasses
import io
import json
import threading

import numpy as np
import pytest
import torch
from conftest import STUB, WEIGHTS
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from starlette.testclient import TestClient
from transformers import CLIPConfig, CLIPImageProcessor

from ctrloop_trainer.diffusion import build, canvas, judge, pipe, serve, train
from ctrloop_trainer.diffusion import model as M
from ctrloop_trainer.digest import dir_digest
from ctrloop_trainer.errors import BAD_INPUT, INTERRUPTED, OK, BadInputError, InterruptedJobError
from ctrloop_trainer.progress import Progress
from ctrloop_trainer.render import Renderer, Shot

BEACH = "sunlit beach, warm amber tones, soft morning light, fresh leaves"
DESK = "tidy office desk, slate blue tones, moody low light, silk ribbon"
TINY = {
    "pictures": 10,
    "vae_steps": 2,
    "vae_batch": 4,
    "steps": 3,
    "batch": 4,
    "keep_every": 1,
    "sample_steps": 2,
    "eval_pictures": 2,
    "unet_widths": "8,8,8",
    "vae_width": 8,
    "text_width": 16,
    "vocabulary": 600,
}


def cutout(h: int = 40, w: int = 80) -> np.ndarray:
    """A red plate with a pale stripe and a soft rim, in the corner of a transparent picture."""
    out = np.zeros((h + 30, w + 20, 4), np.uint8)
    out[5 : 5 + h, 10 : 10 + w] = (200, 30, 30, 255)
    out[5 + h // 2, 10 : 10 + w] = (20, 220, 220, 255)
    out[5, 10 : 10 + w, 3] = 128
    return out


def png(image: np.ndarray) -> bytes:
    b = io.BytesIO()
    Image.fromarray(image).save(b, "PNG")
    return b.getvalue()


def random_parts() -> dict:
    """A miniature with weights that do something: a fresh ControlNet is silent by construction."""
    torch.manual_seed(0)
    tokenizer = build.make_tokenizer([BEACH, DESK] * 5, 600)
    parts = {
        "vae": build.vae(8),
        "text_encoder": build.text_encoder(tokenizer, 16),
        "unet": build.unet((8, 8, 8), 16),
        "controlnet": build.controlnet((8, 8, 8), 16),
    }
    for p in parts["controlnet"].parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return {**parts, "tokenizer": tokenizer}


@pytest.fixture(scope="module")
def small() -> M.ImageModel:
    return M.ImageModel.assemble(**random_parts(), settings=M.Settings(px=64, steps=3, guidance=1.0))


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    d = tmp_path_factory.mktemp("image") / "model"
    small.save(d)
    return d


# ---- geometry


@pytest.mark.parametrize("px", [64, 256, 512])
def test_a_cut_out_is_cropped_scaled_and_centred(px):
    c = canvas.place(cutout(), px)
    ys, xs = np.nonzero(c.alpha)
    assert xs.max() - xs.min() + 1 == int(0.78 * px + 0.5)
    assert ys.max() - ys.min() + 1 == int(0.39 * px + 0.5)
    assert abs((xs.min() + xs.max() + 1) - px) <= 1
    assert abs((ys.min() + ys.max() + 1) - px) <= 1
    with pytest.raises(ValueError, match="fully transparent"):
        canvas.place(np.zeros((8, 8, 4), np.uint8), 64)


def test_the_mask_reaches_20_of_512_pixels_into_the_product_and_scales():
    alpha = np.zeros((512, 512), np.uint8)
    alpha[100:400, 60:460] = 255
    c = canvas.Canvas(np.zeros((512, 512, 3), np.uint8), alpha)
    row = c.mask()[250]
    assert (row[:80] == 255).all()  # 59 is outside, 79 is 20 from it
    assert (row[80:440] == 0).all()
    assert (row[440:] == 255).all()
    assert [canvas.dilation(px) for px in (512, 256, 64, 8)] == [20, 10, 3, 1]


def test_control_shows_the_edges_of_the_product_on_black():
    c = canvas.place(cutout(), 256)
    edges = c.control()
    assert set(np.unique(edges)) == {0, 255}
    ys, xs = np.nonzero(c.alpha)
    near = np.zeros((256, 256), bool)
    near[ys.min() - 2 : ys.max() + 3, xs.min() - 2 : xs.max() + 3] = True
    assert not edges[~near].any()
    middle = edges[ys.min() + 20 : ys.min() + 40, 128]  # red plate above the stripe: nothing to draw
    assert not middle.any()
    assert edges[128 - 4 : 128 + 6, 60:190].any()  # the stripe


def test_the_product_is_copied_and_its_rim_blended():
    c = canvas.place(cutout(), 64)
    ground = np.full((64, 64, 3), 90, np.uint8)
    out = c.composite(ground)
    assert (out[c.alpha == 255] == c.colour[c.alpha == 255]).all()
    assert (out[c.alpha == 0] == 90).all()
    rim = (c.alpha > 0) & (c.alpha < 255)
    assert rim.any()
    want = c.colour[rim] + 90.0 * (255 - c.alpha[rim, None].astype(float)) / 255
    assert np.abs(out[rim] - want).max() <= 1
    with pytest.raises(ValueError, match="background of"):
        c.composite(ground[:32])


def test_plain_view_and_coverage_give_the_canvas_back():
    c = canvas.place(cutout(), 64)
    again = canvas.Canvas.of_plain(c.plain(), c.alpha)
    assert (again.alpha == c.alpha).all()
    assert (again.colour[c.alpha == 255] == c.colour[c.alpha == 255]).all()
    assert np.abs(again.colour.astype(int) - c.colour).max() <= 1


def test_backgrounds_go_on_behind_the_product():
    c = canvas.place(cutout(), 64)
    painted = np.full((64, 64, 3), 200, np.uint8)
    painted[c.alpha > 0] = 0  # the product's own dark pixels, which would become a halo when enlarged
    assert (canvas.spread(painted, c.alpha) == 200).all()
    assert canvas.resize(painted, 256).shape == (256, 256, 3)


# ---- model


def test_a_picture_depends_on_prompt_product_and_seed_alone(small):
    a, b = canvas.place(cutout(), 64), canvas.place(cutout(80, 30), 64)
    one = small.paint([M.Job(BEACH, a, 7)])[0]
    many = small.paint([M.Job(DESK, b, 1), M.Job(BEACH, a, 7), M.Job(BEACH, a, 8), M.Job(DESK, a, 7)])
    assert np.abs(one.astype(int) - many[1]).max() <= 1
    around = a.alpha == 0
    for other in (many[2], many[3]):
        assert np.abs(one[around].astype(int) - other[around]).max() > 3
    for painted, c in zip(many, (b, a, a, a), strict=True):
        assert (painted[c.alpha == 255] == c.colour[c.alpha == 255]).all()


def test_control_and_mask_matter(small):
    a, b = canvas.place(cutout(), 64), canvas.place(cutout(80, 30), 64)
    x, y = small.paint([M.Job(BEACH, a, 7), M.Job(BEACH, b, 7)])
    corner = (slice(0, 6), slice(0, 6))
    assert np.abs(x[corner].astype(int) - y[corner]).max() > 0


def test_a_saved_model_is_what_was_saved_in_half_precision(folder, small):
    again = M.ImageModel.load(folder)
    assert again.settings == dataclasses.replace(small.settings, scheduler="as saved")
    for name in ("unet", "controlnet", "vae", "text_encoder"):
        saved, own = getattr(again.pipe, name).state_dict(), getattr(small.pipe, name).state_dict()
        assert all(torch.equal(saved[k], v.half().float()) for k, v in own.items() if v.is_floating_point())
    c = canvas.place(cutout(), 128)
    out = again.paint([M.Job(BEACH, c, 3)])[0]
    assert out.shape == (128, 128, 3)
    assert (out[c.alpha == 255] == c.colour[c.alpha == 255]).all()


def test_the_shipped_weights_load_into_the_stock_pipeline_and_paint():
    shipped = WEIGHTS / "image-model"
    stock = StableDiffusionControlNetInpaintPipeline.from_pretrained(shipped, local_files_only=True)
    assert isinstance(stock.unet, UNet2DConditionModel)
    assert isinstance(stock.controlnet, ControlNetModel)
    figures = json.loads((shipped / "figures.json").read_text())
    assert {"command", "seed", "hyper", "figures"} <= set(figures)
    model = M.ImageModel.load(shipped)
    places = [canvas.place(cutout(), 64), canvas.place(cutout(80, 30), 64)]
    texts = (BEACH, BEACH.replace("warm amber", "deep teal"))
    amber, teal = (model.paint([M.Job(t, c, 5) for c in places]) for t in texts)
    for c, x, y in zip(places, amber, teal, strict=True):
        around = c.alpha == 0
        x, y = x[around].mean(0), y[around].mean(0)
        assert x[0] - x[2] > y[0] - y[2] + 20, "amber is redder than teal"
    total = sum(f.stat().st_size for f in shipped.rglob("*") if f.is_file())
    assert total < 10 << 20


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """A folder with exactly the classes of Stable Diffusion 1.5, latents an eighth of the side, random small weights
    in single precision, and a ControlNet beside it."""
    d = tmp_path_factory.mktemp("sd15")
    torch.manual_seed(1)
    tokenizer = build.make_tokenizer([BEACH, DESK] * 5, 600, length=77)
    shape = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        sample_size=64, layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, **shape
    )  # CrossAttnDownBlock2D three times, then DownBlock2D: diffusers' defaults are 1.5's
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
        **shape,
    )
    thin = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    seeing = {**thin, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=thin, vision_config=seeing, projection_dim=8))
    whole = StableDiffusionPipeline(
        vae=vae,
        text_encoder=build.text_encoder(tokenizer, 16),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(),
    )
    whole.save_pretrained(d / "sd")
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    control.save_pretrained(d / "canny")
    return d


def test_stable_diffusion_15_is_taken_by_path(stable_diffusion):
    index = json.loads((stable_diffusion / "sd" / "model_index.json").read_text())
    want = {
        "vae": "AutoencoderKL",
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "PNDMScheduler",
        "safety_checker": "StableDiffusionSafetyChecker",
        "feature_extractor": "CLIPImageProcessor",
    }
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {k: index[k][1] for k in want} == want
    model = M.ImageModel.load(stable_diffusion / "sd", stable_diffusion / "canny")
    assert model.settings == M.Settings(512, 30, 7.5, 1.0, "euler ancestral")
    assert type(model.pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert model.pipe.vae_scale_factor == 8
    assert model.pipe.vae.dtype == torch.float32
    quick = M.ImageModel(model.pipe, dataclasses.replace(model.settings, px=64, steps=2))
    c = canvas.place(cutout(), 96)
    a, b = quick.paint([M.Job(BEACH, c, 1), M.Job(BEACH, c, 2)])
    again = quick.paint([M.Job(BEACH, c, 1)])[0]
    assert np.abs(a.astype(int) - again).max() <= 1  # fresh noise in every step, and yet by seed alone
    assert np.abs(a.astype(int) - b)[c.alpha == 0].max() > 3
    assert (a[c.alpha == 255] == c.colour[c.alpha == 255]).all()


def test_folders_that_cannot_be_used_say_why(folder, stable_diffusion, tmp_path):
    with pytest.raises(BadInputError, match="no diffusers folder"):
        M.ImageModel.load(tmp_path)
    with pytest.raises(BadInputError, match="--controlnet"):
        M.ImageModel.load(stable_diffusion / "sd")
    with pytest.raises(BadInputError, match="precision 'int4'"):
        M.ImageModel.load(folder, precision="int4")
    with pytest.raises(BadInputError, match="cannot load"):
        M.ImageModel.load(folder, controlnet=tmp_path)
    (tmp_path / "generation.json").write_text('{"px": 63}')
    with pytest.raises(BadInputError, match="not usable"):
        M.Settings.load(tmp_path)
    (tmp_path / "generation.json").write_text('{"stepz": 3}')
    with pytest.raises(BadInputError, match="stepz"):
        M.Settings.load(tmp_path)


def test_prompts_are_cleaned_and_bounded(small):
    assert M.sanitise(" oak\n table <lora:/etc/passwd:1>\x00 \u202e,  teal ") == "oak table lora:/etc/passwd:1 , teal"
    assert small.check_prompt(BEACH) == BEACH
    for prompt, why in ((" \n", "empty"), ("leaves " * 60, "tokens"), ("x" * 3000, "characters")):
        with pytest.raises(M.PromptError, match=why):
            small.check_prompt(prompt)


# ---- server


@pytest.fixture(scope="module")
def client(small):
    engine = serve.Engine(small, "image", max_batch=4)
    engine.thread.start()
    with TestClient(serve.Server(engine).app()) as c:
        yield c
    engine.stop()
    engine.thread.join(5)


def rgba(c: canvas.Canvas) -> bytes:
    solid = np.where(c.alpha[..., None] > 0, c.colour, 0)
    return png(np.concatenate([solid, np.where(c.alpha == 255, 255, 0).astype(np.uint8)[..., None]], 2))


def post(client, files: dict | None = None, **data):
    files = {"image": ("c.png", rgba(canvas.place(cutout(), 96)), "image/png")} if files is None else files
    return client.post("/v1/images/edits", files=files, data={"prompt": BEACH, **data})


def pictures(answer) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d["b64_json"])))) for d in answer.json()["data"]]


def test_an_edit_keeps_the_product_and_is_known_by_its_seed(client):
    c = canvas.place(cutout(), 96)
    solid = c.alpha == 255
    a, b = pictures(post(client, n="2", seed="5", size="96x96"))
    assert a.shape == (96, 96, 3)
    assert (a[solid] == c.colour[solid]).all()
    (again,) = pictures(post(client, seed="6"))
    assert np.abs(b.astype(int) - again).max() <= 1
    assert np.abs(a.astype(int) - b).max() > 3


def test_a_mask_takes_from_what_is_kept_and_a_cut_out_can_be_placed(client):
    image = np.zeros((64, 64, 4), np.uint8)
    image[8:56, 8:56] = (10, 200, 10, 255)
    mask = np.full((64, 64, 4), 255, np.uint8)
    mask[:32, :, 3] = 0
    files = {"image": ("a.png", png(image), "image/png"), "mask": ("m.png", png(mask), "image/png")}
    (out,) = pictures(post(client, files))
    assert (out[40:56, 8:56] == (10, 200, 10)).all()
    assert not (out[8:30, 8:56] == (10, 200, 10)).all()
    (placed,) = pictures(post(client, {"image": ("a.png", png(cutout()), "image/png")}, layout="centred", size="80x80"))
    want = canvas.place(cutout(), 80)
    assert (placed[want.alpha == 255] == want.colour[want.alpha == 255]).all()


def test_requests_that_arrive_together_are_painted_together(small):
    engine = serve.Engine(small, "image", max_batch=4)
    c, done = canvas.place(cutout(), 64), []
    ready = threading.Event()
    for i in range(5):
        engine.submit(serve.Edit([M.Job(BEACH, c, i)], lambda r: (done.append(r), len(done) == 5 and ready.set())))
    assert engine.waiting == 5
    engine.thread.start()
    assert ready.wait(60)
    assert engine.counts["batches"] == 2
    assert [len(r) for r in done] == [1] * 5
    engine.stop()
    engine.thread.join(5)


def test_a_bad_neighbour_fails_alone(small, monkeypatch):
    engine, c, done = serve.Engine(small, "image", max_batch=4), canvas.place(cutout(), 64), {}
    paint = M.ImageModel.paint

    def fails(self, jobs, batch):
        if any(j.seed == 1 for j in jobs):
            raise FloatingPointError("not finite")
        return paint(self, jobs, batch)

    monkeypatch.setattr(M.ImageModel, "paint", fails)
    edits = [serve.Edit([M.Job(BEACH, c, i)], lambda r, i=i: done.__setitem__(i, r)) for i in range(3)]
    engine._serve(edits)
    assert isinstance(done[1], FloatingPointError)
    assert len(done[0]) == len(done[2]) == 1


def test_bad_requests_are_refused_with_what_is_wrong(client):
    opaque = png(np.full((64, 64, 3), 9, np.uint8))
    wide = png(np.zeros((64, 32, 4), np.uint8))
    huge = png(np.zeros((1, 4000, 4), np.uint8))
    clear = png(np.zeros((64, 64, 4), np.uint8))

    def file(raw: bytes) -> dict:
        return {"image": ("a.png", raw, "image/png")}

    for want, files, data in (
        ("cannot be decoded", file(b"no picture"), {}),
        ("cannot be decoded", file(opaque[:60]), {}),
        ("at most 2048", file(huge), {}),
        ("want a square", file(wide), {}),
        ("opaque everywhere", file(opaque), {}),
        ("fully transparent", file(clear), {"layout": "centred"}),
        ("layout 'left'", None, {"layout": "left"}),
        ("image is required", {"user": (None, "me")}, {}),
        ("same size", {**file(clear), "mask": ("m.png", wide, "image/png")}, {}),
        ("size '64x64'", None, {"size": "64x64"}),
        ("prompt is empty", None, {"prompt": "<>"}),
        ("tokens and this model reads", None, {"prompt": "leaves " * 60}),
        ("n must be an integer", None, {"n": "0"}),
        ("seed must be an integer", None, {"seed": "-1"}),
        ("quality is not supported", None, {"quality": "high"}),
        ("response_format 'url'", None, {"response_format": "url"}),
    ):
        r = post(client, files, **data)
        assert (r.status_code, want in r.json()["error"]["message"]) == (400, True), (want, r.text)
    assert post(client, model="other").status_code == 404
    assert client.post("/v1/images/edits", json={}).status_code == 415
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/images/edits", content=b"nothing", headers=broken).status_code == 400
    big = {"content-type": "multipart/form-data; boundary=x"}
    r = client.post("/v1/images/edits", content=b"\0" * (serve.MAX_BODY_BYTES + 1), headers=big)
    assert r.status_code == 413


def test_a_full_server_says_so(small):
    engine = serve.Engine(small, "image", max_batch=4)  # nobody paints
    c = canvas.place(cutout(), 64)
    engine.submit(serve.Edit([M.Job(BEACH, c, 1)] * serve.MAX_WAITING, lambda r: None))
    with TestClient(serve.Server(engine).app()) as client:
        r = post(client)
        assert (r.status_code, r.headers["retry-after"]) == (503, "1")
        assert client.get("/health").status_code == 503  # its thread never started
        text = client.get("/metrics").text
        assert f"ctrloop_image_server_waiting_pictures {serve.MAX_WAITING}" in text
        assert 'ctrloop_image_server_requests_total{code="503"} 1' in text
        assert client.get("/v1/models").json()["data"][0]["generation"]["px"] == 64


# ---- pipe


def test_the_pipe_speaks_the_renderers_protocol(small, grammar, products):
    here = products[0].id
    items = [
        {"product": here, "text": BEACH, "seed": 3, "px": 64},
        {"product": here, "text": "", "px": 64},
        {"product": here, "text": "no description", "px": 64},
        {"product": here, "text": "", "px": 64, "view": "alpha"},
    ]
    with Renderer(STUB) as renderer:
        direct = renderer.render([Shot(here, ""), Shot(here, "no description"), Shot(here, "", view="alpha")])
        source, sink = io.BytesIO(json.dumps(items).encode() + b"\n\n" + json.dumps(items[:1]).encode()), io.BytesIO()
        pipe.serve(pipe.Pipe(small, grammar, renderer, 8), source, sink)
        (place,) = judge.canvases(renderer, [here])
    head, _, rest = sink.getvalue().partition(b"\n")
    assert json.loads(head) == {"n": 4, "px": 64, "valid": [True, True, False, True]}
    size = 64 * 64 * 3
    images = np.frombuffer(rest[: 4 * size], np.uint8).reshape(4, 64, 64, 3)
    assert (images[1:] == direct[0]).all()
    assert (images[0] == small.paint([M.Job(BEACH, place, 3)])[0]).all()
    head, _, rest = rest[4 * size :].partition(b"\n")
    assert json.loads(head)["n"] == 1
    assert np.frombuffer(rest, np.uint8).reshape(64, 64, 3).tolist() == images[0].tolist()


def test_the_pipe_ends_on_what_it_cannot_serve(small, grammar):
    lines = {
        b"{": "JSON array",
        b'[{"text": "x"}]': "JSON array",
        b'[{"product": "p-0", "px": 7}]': "one px",
        b'[{"product": "p-0"}, {"product": "p-0", "px": 32}]': "one px",
    }
    with Renderer(STUB) as renderer:
        for line, why in lines.items():
            with pytest.raises(BadInputError, match=why):
                pipe.Pipe(small, grammar, renderer, 8).answer(line)


def test_the_pipe_passes_on_why_the_renderer_died(small, grammar):
    line = json.dumps([{"product": "p-1", "text": BEACH}]).encode()
    with Renderer([*STUB, "fail"]) as renderer, pytest.raises(BadInputError, match="no such product"):
        pipe.Pipe(small, grammar, renderer, 8).answer(line)


# ---- training


def test_the_vae_starts_as_the_pictures_means():
    torch.manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    v = build.vae(8)
    with torch.no_grad():
        z = v.encode(x).latents
        assert torch.allclose(z[:, :3], train.anchor(x), atol=1e-4)
        z[:, 3] = 0
        error = (v.decode(z).sample - x)[..., 8:-8, 8:-8].abs().mean()
    assert error < 0.25 * x.abs().mean()


def test_the_same_job_gives_the_same_model_broken_off_or_not(make_spec, run_job, monkeypatch):
    monkeypatch.setattr(train, "naming", lambda *_: {"pictures": 0})
    spec = make_spec("diffusion", TINY)
    code, whole = run_job(spec, "whole")
    assert code == OK
    calls = []

    def interrupt(self):
        calls.append(1)
        if len(calls) == TINY["vae_steps"] + 2:
            raise InterruptedJobError("stopped")

    with monkeypatch.context() as m:
        m.setattr(Progress, "check_interrupted", interrupt)
        code, broken = run_job(spec, "broken")
    assert code == INTERRUPTED
    assert M.ImageModel.load(broken / "model").settings.px == 64  # usable as it is
    code, broken = run_job(spec, "broken")
    assert code == OK
    weights = [dir_digest(d / "model" / part) for d in (whole, broken) for part in ("unet", "controlnet", "vae")]
    assert weights[:3] == weights[3:]
    code, _ = run_job({**spec, "seed": 6}, "broken")
    assert code == BAD_INPUT


def test_training_goes_on_from_a_base_and_is_judged(make_spec, run_job, folder):
    hyper = {k: TINY[k] for k in ("pictures", "steps", "batch", "eval_pictures")}
    spec = make_spec("diffusion", hyper, base=str(folder))
    code, out = run_job(spec)
    assert code == OK
    figures = json.loads((out / "model" / "figures.json").read_text())
    assert figures["continued_from"]["digest"] == dir_digest(folder)
    assert figures["figures"]["product_max_error"] == 0
    assert set(figures["figures"]["reward"]["painted"]) == {"scene", "palette", "light", "prop", "of_24"}
    moved = M.ImageModel.load(out / "model")
    before = M.ImageModel.load(folder)
    assert any(
        not torch.equal(a, b) for a, b in zip(moved.pipe.unet.parameters(), before.pipe.unet.parameters(), strict=True)
    )
    assert dir_digest(out / "model" / "vae") == dir_digest(folder / "vae")


@pytest.mark.parametrize("change", [{"unet_widths": "8,8"}, {"unet_widths": "a,b,c"}, {"step": 3}])
def test_hyper_parameters_are_checked(make_spec, run_job, change):
    code, _ = run_job(make_spec("diffusion", {**TINY, **change}))
    assert code == BAD_INPUT
