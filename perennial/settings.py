"""Where everything is: one root for state, and an address for each foreign system.

An address that is given wins; otherwise the running local stack's (`perennial up` writes it down); otherwise the default
of the local stack. Reading settings creates nothing.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from perennial.errors import UsageError

STACK_FILE = "stack.json"


class Settings(BaseSettings):
    """Addresses and the state root; every field can be set as PERENNIAL_<FIELD> (MLflow's and Prefect's by their own names)."""

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", frozen=True, extra="ignore", populate_by_name=True)

    home: Path = Field(Path(".perennial"), description="Root of all local state.")
    kafka_bootstrap_servers: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port, comma-separated.")
    kafka_options: dict[str, Any] = Field({}, description="More options of the Kafka client, as JSON (SASL, SSL).")
    database_url: str = Field("", description="SQLAlchemy URL of the traffic ledger; empty = SQLite below home.")
    database_secret_arn: str = Field(
        "",
        description="Secret of AWS with username and password of the database, read at each connection, as passwords "
        "there change; for a database_url without a password.",
    )
    lake_warehouse: str = Field(
        "", description="URI of the lake's files, such as s3://bucket/prefix; empty = below home."
    )
    lake_catalog_uri: str = Field(
        "", description="Iceberg catalog: sqlite:///FILE, postgresql://... or glue://REGION; empty = SQLite below home."
    )
    lake_options: dict[str, Any] = Field(
        {}, description="More options of the Iceberg catalog and its files, as JSON (s3.endpoint, glue.region)."
    )
    online_store_url: str = Field(
        "", description="redis:// or rediss:// URL of Feast's online store; empty = SQLite below home."
    )
    online_store_secret_arn: str = Field(
        "", description="Secret of AWS with the password of Redis; for an online_store_url without one."
    )
    schema_registry_url: str = Field("", description="Confluent schema registry, for topics in Avro.")
    pushgateway_url: str = Field("", description="Prometheus Pushgateway that each ingest run reports to.")
    alert_urls: SecretStr = Field(
        SecretStr(""), description="Where alerts go: apprise URLs, separated by blanks. They hold passwords and tokens."
    )
    checkpoints: str = Field(
        "", description="s3:// address below which fits keep their progress, for machines that go; empty = below home."
    )
    scoring_url: str = Field("http://127.0.0.1:8000", description="Address of the scoring service.")
    pipelines_dir: Path | None = Field(None, description="One more folder of pipelines.")
    mlflow_tracking_uri: str = Field("http://127.0.0.1:5000", validation_alias="MLFLOW_TRACKING_URI")
    prefect_api_url: str = Field("http://127.0.0.1:4200/api", validation_alias="PREFECT_API_URL")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the running stack's own addresses."""
        return init_settings, env_settings, _RunningStack(settings_cls)

    @property
    def root(self) -> Path:
        """The state root as an absolute path."""
        return self.home.expanduser().resolve()

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.database_url or f"sqlite:///{self.root / 'ledger.db'}"

    @property
    def warehouse(self) -> str:
        """URI of the lake's files."""
        return self.lake_warehouse or (self.root / "lake").as_uri()

    @property
    def catalog_uri(self) -> str:
        """URI of the Iceberg SQL catalog."""
        return self.lake_catalog_uri or f"sqlite:///{self.root / 'lake.db'}"

    @property
    def feast_dir(self) -> Path:
        """Folder of Feast's registry and SQLite online store."""
        return self.root / "feast"


class _RunningStack(PydanticBaseSettingsSource):
    """Addresses written down by a local stack that is running now (see perennial/stack.py)."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        home = Path(self.current_state.get("home") or Settings.model_fields["home"].default)
        try:
            stack = json.loads((home.expanduser().resolve() / STACK_FILE).read_text())
        except (OSError, ValueError):
            return {}
        import psutil

        if not psutil.pid_exists(int(stack.get("pid", -1))):
            return {}
        return dict(stack.get("addresses", {}))


@lru_cache(maxsize=1)
def settings() -> Settings:
    """This process's settings, read once. `settings.cache_clear()` reads them again (tests).

    Raises:
        UsageError: a value cannot be read. It is not repeated: options of the Kafka client hold passwords.
    """
    try:
        return Settings()
    except SettingsError as error:
        # Only fields that are not plain text are parsed here; pydantic-settings names the one in its sentence alone.
        name = next((f for f in ("kafka_options", "lake_options") if f'"{f}"' in str(error)), "kafka_options")
        raise UsageError(
            f'PERENNIAL_{name.upper()} is not JSON; write it as {{"name": "value"}}, or unset it'
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "a setting"
        name = f"PERENNIAL_{field.upper()}" if field in Settings.model_fields else field
        raise UsageError(f"{name} cannot be used ({first['msg']}); mend it, or unset it") from error
