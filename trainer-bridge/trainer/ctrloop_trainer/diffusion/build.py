"""The shipped image model's parts with fresh weights, in the shapes that its size allows.

Everything is a class of diffusers or transformers that Stable Diffusion 1.5 has too, only smaller: 64 px pictures,
latents of 4 channels and a quarter of the side, 3 M parameters in all. So the pipeline, the server and the tests run
the very code that serves the real one.
"""

from collections.abc import Iterable

import torch
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NATIVE_PX = 64
PROMPT_TOKENS = 32  # start and end included; a description of the grammar has about 16
LATENT_CHANNELS = 4
NORM_GROUPS = 4  # few: what all of a group's channels share is lost to normalisation, and it may be a colour
# Latents 0..2 are luma, red and blue difference of the picture's quarter, by these factors: about unit spread each.
# Chroma is amplified because its spread is small: unamplified it drowns in the noise until the last steps.
LUMA_CHROMA = ((0.598, 1.174, 0.228), (1.5, -1.26, -0.24), (-0.51, -0.99, 1.5))
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(texts: Iterable[str], vocabulary: int, length: int = PROMPT_TOKENS) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from texts; every byte, within a word and at its end, has a token."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(",", "isolated"), pre_tokenizers.ByteLevel(False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learnt = learner.get_vocab()
    ends = [f"{a}</w>" for a in alphabet]
    merged = [t for t, _ in sorted(learnt.items(), key=lambda x: x[1]) if t not in {*alphabet, *ends}]
    tokens = [*alphabet, *ends, *merged, START, END]
    merges = [tuple(m) for m in _merges(learner)]
    vocab = {t: i for i, t in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _merges(learner: Tokenizer) -> list[list[str]]:
    import json

    raw = json.loads(learner.to_str())["model"]["merges"]
    return [m.split(" ") if isinstance(m, str) else m for m in raw]


def text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int = 2) -> CLIPTextModel:
    """CLIP's text tower, width numbers a token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def vae(width: int) -> AutoencoderTiny:
    """Three levels, so a quarter of the side. AutoencoderTiny takes AutoencoderKL's place in any pipeline; it has no
    normalisation, which costs a small AutoencoderKL its colours, and decodes in half the time."""
    out = AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width,) * 3,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(3, 2, 1),  # most where a place is cheapest
        latent_channels=LATENT_CHANNELS,
    )
    _pass_through(out)
    return out.eval()


def _pass_through(v: AutoencoderTiny) -> None:
    """Starts as a known code: three channels carry the picture's means through encoder and decoder, smoothed on the way
    up, and every residual branch begins at nothing. From random weights the same steps ended at twice the error."""
    encoder = [m for m in v.encoder.layers if isinstance(m, torch.nn.Conv2d)]
    decoder = [m for m in v.decoder.layers if isinstance(m, torch.nn.Conv2d)]
    same, mean = torch.zeros(3, 3), torch.zeros(3, 3)
    same[1, 1], mean[1:, 1:] = 1, 0.25  # with stride 2 the lower right of the kernel is the 2 x 2 block itself
    smooth = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    luma_chroma = torch.tensor(LUMA_CHROMA)
    with torch.no_grad():
        for block in (*v.encoder.layers, *v.decoder.layers):
            if isinstance(getattr(block, "conv", None), torch.nn.Sequential):
                block.conv[-1].weight.zero_()
                block.conv[-1].bias.zero_()
        _carry(encoder[0], same)
        for conv in encoder[1:-1]:
            _carry(conv, mean)
        for conv in decoder[1:-1]:
            _carry(conv, smooth)
        # Inside, pictures are in [0, 1]; latents are of [-1, 1].
        first, last = encoder[-1], decoder[0]
        first.weight[:3], first.bias[:3] = 0, -luma_chroma.sum(1)
        first.weight[:3, :3, 1, 1] = 2 * luma_chroma
        last.weight[:3], last.bias[:3] = 0, 0.5
        last.weight[:3, :3, 1, 1] = torch.linalg.inv(luma_chroma) / 2
        out = decoder[-1]
        out.weight *= 0.1
        out.bias.zero_()
        out.weight[:, :3] = torch.eye(3)[..., None, None] * same


def _carry(conv: torch.nn.Conv2d, kernel: torch.Tensor) -> None:
    """The first three channels go on through kernel, untouched by others, which hear them at a third."""
    conv.weight[:, :3] *= 0.3
    conv.weight[:3] = 0
    for c in range(3):
        conv.weight[c, c] = kernel
    if conv.bias is not None:
        conv.bias[:3] = 0


def unet(widths: tuple[int, ...], text_width: int) -> UNet2DConditionModel:
    """Attention from the second level on: a transformer over the first level's 256 places costs more than it shows."""
    n = len(widths)
    return UNet2DConditionModel(
        sample_size=NATIVE_PX // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (n - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (n - 1), "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=text_width,
        attention_head_dim=4,  # in diffusers this is the number of heads, as in Stable Diffusion 1.5's own config
        # The prompt's pooled meaning joins the time embedding, so that every block hears it from the first step of
        # training on. By cross-attention alone, scenes were still at chance after 200 steps.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    ).eval()


def controlnet(widths: tuple[int, ...], text_width: int) -> ControlNetModel:
    """Shaped to the UNet's skips, without attention: where the product's edges are needs no words, and it runs in every
    step. Two strides from pixels to latents, so three conditioning channels and not the four of Stable Diffusion."""
    n = len(widths)
    return ControlNetModel(
        in_channels=LATENT_CHANNELS,
        conditioning_channels=3,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * n,
        mid_block_type="UNetMidBlock2D",
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16, 32),
    ).eval()


def scheduler() -> DDIMScheduler:
    """Predicts v with zero terminal signal-to-noise: with few steps and little training, predicting noise left every
    picture at the data's mean colour. Trailing timesteps, so that sampling starts from the pure noise it was taught."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def parameters(*parts: torch.nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for part in parts for p in part.parameters())
