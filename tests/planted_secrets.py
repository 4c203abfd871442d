"""Secrets of every shape, drawn from a seed, and texts that only look like one."""

import base64
import string

ALNUM = string.ascii_letters + string.digits
WORD = ALNUM + "_-"


def drawn(rng, alphabet, length):
    return "".join(rng.choices(alphabet, k=length))


SHAPES = {
    "hugging face": lambda r: "hf_" + drawn(r, ALNUM, 34),
    "openai": lambda r: "sk-proj-" + drawn(r, WORD, 48),
    "anthropic": lambda r: "sk-ant-api03-" + drawn(r, WORD, 80),
    "github": lambda r: "ghp_" + drawn(r, ALNUM, 36),
    "github fine": lambda r: "github_pat_" + drawn(r, ALNUM + "_", 60),
    "gitlab": lambda r: "glpat-" + drawn(r, WORD, 20),
    "aws id": lambda r: "AKIA" + drawn(r, string.ascii_uppercase + string.digits, 16),
    "aws key": lambda r: drawn(r, ALNUM + "+/", 40),
    "google": lambda r: "AIza" + drawn(r, WORD, 35),
    "google oauth": lambda r: "ya29." + drawn(r, WORD, 60),
    "azure client": lambda r: drawn(r, ALNUM, 3) + "8Q~" + drawn(r, ALNUM, 34),
    "azure storage": lambda r: base64.b64encode(r.randbytes(64)).decode(),
    "wandb": lambda r: "wandb_v1_" + drawn(r, ALNUM, 60),
    "nvidia": lambda r: "nvapi-" + drawn(r, WORD, 64),
    "slack": lambda r: "xoxb-" + drawn(r, string.digits, 12) + "-" + drawn(r, ALNUM, 24),
    "jwt": lambda r: f"eyJ{drawn(r, ALNUM, 20)}.eyJ{drawn(r, ALNUM, 40)}.{drawn(r, WORD, 43)}",
    "databricks": lambda r: "dapi" + drawn(r, "0123456789abcdef", 32),
    "private key": lambda r: (
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{drawn(r, ALNUM, 70)}\n-----END OPENSSH PRIVATE KEY-----"
    ),
}
# No shape of their own: only a name, or a place, tells.
SHAPELESS = {
    "wandb, forty hexadecimal digits": lambda r: drawn(r, "0123456789abcdef", 40),
    "sha256-like": lambda r: drawn(r, "0123456789abcdef", 64),
    "a password": lambda r: drawn(r, ALNUM + "!#%*+.~^", 12),
    "a word": lambda r: "correcthorse" + drawn(r, string.ascii_lowercase, 6),
}

LOOK_ALIKES = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",  # sha256
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",  # a commit
    "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "d41d8cd98f00b204e9800998ecf8427e",
    "123e4567-e89b-12d3-a456-426614174000",
    "20261120-190102-deadbeef",
    "Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4",
    "meta-llama/Llama-3.1-8B-Instruct",
    "hf_datasets",
    "/home/User/.cache/huggingface/hub/models--Qwen--Qwen2.5-7B/snapshots/da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "/mnt/Data2026/Projects/FineTuning/Run42A",
    "sk-learn-models",
    "10.0.0.1:29500",
    "python -m torch.distributed.run --nnodes 2 --master-addr fe80::1",
    "{% if bos_token %}{{ bos_token }}{% endif %}{{ message['content'] + eos_token }}",
    "mlx5_0:1,mlx5_1:1",
    "git@github.com:a/b.git",
    "s3://bucket/path@2024/x",
    "sha512-" + base64.b64encode(bytes(range(64))).decode(),
    "sha512:" + base64.b64encode(bytes(range(64))).decode(),
]


def core(secret):
    """The part that must not be seen, without the frame of a key file."""
    return secret.split("\n")[1] if "\n" in secret else secret
