"""Settings of a stack, from the environment: STACK_HOME, STACK_DATABASE_URL, …  Defaults suit a laptop."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from stack.schemas.post_training import LoraFinetuningConfig


class Settings(BaseSettings):
    """Every field is read from `STACK_<FIELD>`. Nothing here is written back."""

    model_config = SettingsConfigDict(env_prefix="STACK_", extra="ignore", frozen=True)

    home: Path = Field(
        default_factory=lambda: user_data_path("stack"),
        description="All local state lives below this folder.",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL, e.g. postgresql+asyncpg://host/stack. Default: SQLite in STACK_HOME.",
    )
    storage_url: str | None = Field(
        None,
        description="fsspec URL for files and checkpoints, e.g. s3://bucket/stack. Default: in STACK_HOME.",
    )
    file_root: Path | None = Field(
        None, description="The only folder that file:// and lsfs:// URLs read. Default: none is readable."
    )
    object_roots: str = Field(
        "",
        description="Comma-separated URLs, e.g. s3://data, below which callers' s3:// and gs:// URIs may "
        "read with the server's credentials. Default: none.",
    )
    model_root: Path | None = Field(
        None, description="When set, local models must lie below this folder. Default: any readable folder."
    )
    egress_allow: str = Field(
        "", description="Comma-separated host[:port] that callers' URLs may name although they are private."
    )
    max_body_mb: float = Field(
        64.0, gt=0, description="Largest request body, MiB; beyond it the answer is 413."
    )
    max_file_gb: float = Field(
        64.0, gt=0, description="Largest file that is taken as an upload, GiB; it comes in parts."
    )
    max_dataset_gb: float = Field(
        10.0, gt=0, description="Largest dataset to register, GiB, as a file and as the JSON of its rows."
    )
    max_document_mb: float = Field(
        32.0, gt=0, description="Largest document that the RAG tool fetches from a URL, MiB."
    )
    public_url: str | None = Field(
        None,
        description="Scheme and host in the URLs of answers, e.g. https://stack.example.org. "
        "Default: those of the request.",
    )
    require_api_key: bool = Field(
        False,
        description="Answer only requests with a key that `stack keys create` made; the others get a 401.",
    )
    hf_token: SecretStr | None = Field(None, description="Token for gated Hugging Face models.")
    openai_api_key: SecretStr | None = Field(
        None,
        description="Key for models at STACK_OPENAI_BASE_URL; a key in a caller's provider data goes first.",
    )
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        description="The endpoint that STACK_OPENAI_API_KEY is sent to; no other.",
    )
    tavily_api_key: SecretStr | None = Field(None, description="Key for web search by Tavily.")
    brave_api_key: SecretStr | None = Field(None, description="Key for web search by Brave.")
    bing_api_key: SecretStr | None = Field(None, description="Key for web search by Bing.")
    wolfram_alpha_api_key: SecretStr | None = Field(None, description="App id for Wolfram Alpha.")
    agent_wait_s: float = Field(
        30.0, ge=0, description="How long a turn waits for the earlier turns of its session."
    )
    sandbox_timeout_s: float = Field(30.0, gt=0, description="How long the code interpreter runs code.")
    sandbox_memory_mb: int = Field(512, ge=64, description="Memory of one run of code, MiB.")
    sandboxes_at_once: int = Field(
        2, ge=1, description="Runs of code at the same time in one API replica; the others wait."
    )
    kernels: bool = Field(
        True,
        description="Compile and use the C kernels for bfloat16 on CPU; false: PyTorch's operators only.",
    )
    jobs_at_once: int = Field(4, ge=1, description="How many jobs work at the same time; the others wait.")
    job_attempts: int = Field(
        5, ge=1, description="A job fails when it died so often in a row without finishing anything."
    )
    job_retention_days: float = Field(
        7.0, ge=0, description="How long the input, items and log of an ended job are kept; its row stays."
    )
    train_workers: int = Field(1, ge=1, description="Workers of a training job.")
    train_cpus: float = Field(
        0.01,
        gt=0,
        description="CPUs that Ray sets aside for a training worker. Below 1, the workers of a machine share "
        "all its CPUs.",
    )
    train_gpus: float = Field(0.0, ge=0, description="GPUs of a training worker.")
    train_strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="How several workers share a model: each holds it whole, or a part of it."
    )
    train_max_tokens: int = Field(
        2048, ge=16, description="Longer training sequences are cut; packs have this length."
    )
    train_checkpoint_s: float = Field(
        300.0, gt=0, description="Seconds between two checkpoints; there is one after each epoch, too."
    )
    train_checkpoints_kept: int = Field(3, ge=1, description="How many checkpoints of a run are kept.")
    dpo_adapter: LoraFinetuningConfig = Field(
        LoraFinetuningConfig(
            lora_attn_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            apply_lora_to_mlp=True,
            apply_lora_to_output=False,
            rank=16,
            alpha=32,
        ),
        description="The adapter that preference-optimize trains on a whole model, as JSON of "
        "LoraFinetuningConfig.",
    )
    synthetic_candidates: int = Field(4, ge=1, le=64, description="Answers generated to each dialog.")
    synthetic_max_tokens: int = Field(512, ge=1, description="Limit of a generated answer, tokens.")
    synthetic_temperature: float = Field(0.8, gt=0, description="At which answers are drawn.")
    synthetic_top_k: int = Field(1, ge=1, description="How many answers to a dialog the filter top_k keeps.")
    synthetic_top_p: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the softmax over a dialog's scores that the filter top_p keeps.",
    )
    synthetic_scoring_fn: str | None = Field(
        None,
        description="The scoring function that rates generated answers, such as a judge; default: the "
        "model's own mean log-probability of a token.",
    )
    telemetry_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the database for traces and spans. Default: STACK_DATABASE_URL if "
        "it is Postgres, else SQLite in STACK_HOME, a file of its own.",
    )
    telemetry: bool = Field(True, description="Record what the server does as traces; false: nothing.")
    telemetry_sample: float = Field(
        1.0, ge=0, le=1, description="Share of the traces that are recorded, unless the caller has decided."
    )
    telemetry_content: bool = Field(
        False,
        description="Record prompts and answers, too, as attributes of spans, unless the request's API key "
        "says otherwise.",
    )
    telemetry_otlp_url: str | None = Field(
        None, description="Collector that spans are sent to as well, e.g. http://collector:4318/v1/traces."
    )
    telemetry_days: float = Field(7.0, gt=0, description="How long the server's own spans are kept.")
    telemetry_max_spans: int = Field(
        1_000_000, ge=1, description="How many spans are kept; of more the oldest are deleted."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level that is logged."
    )

    @cached_property
    def database(self) -> str:
        """The database's SQLAlchemy URL, never empty."""
        return self.database_url or f"sqlite+aiosqlite:///{self.home / 'stack.db'}"

    @cached_property
    def telemetry_database(self) -> str:
        """The SQLAlchemy URL of the database for telemetry, never empty."""
        if self.telemetry_url is None and self.database_url and not self.database_url.startswith("sqlite"):
            return self.database_url
        return self.telemetry_url or f"sqlite+aiosqlite:///{self.home / 'telemetry.db'}"

    @cached_property
    def storage(self) -> str:
        """The storage's fsspec URL, never empty."""
        return self.storage_url or f"file://{self.home.absolute() / 'storage'}"

    @cached_property
    def egress_allowed(self) -> frozenset[str]:
        """Entries of `egress_allow`, in lower case."""
        return frozenset(part.strip().lower() for part in self.egress_allow.split(",") if part.strip())

    @cached_property
    def model_cache(self) -> Path:
        """Where fetched and converted weights are kept."""
        return self.home / "models"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
