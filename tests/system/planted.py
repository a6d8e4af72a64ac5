"""Secrets for a run's environment, and who holds one afterwards."""

from __future__ import annotations

from pathlib import Path

SECRETS = {
    name: f"pl4nted-{name.lower().replace('_', '-')}-0123456789"
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
}


def holders_of_secrets(run: Path, ray: Path, output: str) -> list[str]:
    """Every file of a run and of its Ray's logs, and its output, where a secret is in it."""
    wanted = [value.encode() for value in SECRETS.values()]
    files = [f for f in run.rglob("*") if f.is_file() and not f.is_symlink()]
    files += [f for f in ray.rglob("*") if f.is_file() and {"logs", "wandb"} & set(f.parts)]
    assert len(files) > 20
    texts = {str(file): file.read_bytes() for file in files} | {"the output": output.encode()}
    return [name for name, text in texts.items() if any(secret in text for secret in wanted)]
