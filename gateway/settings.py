"""The gateway's settings: options given > TRIDENT_* environment > config.yaml > defaults."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

PREFIX = "TRIDENT_"


class Settings(BaseSettings):
    """Every setting of the gateway; an unknown key is an error, in the file and in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, yaml_file="config.yaml", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allow_public: bool = False
    """Bind an address that other machines reach. There is no authentication yet, hence not by default."""
    url: str = "127.0.0.1:8001"
    """Triton's gRPC address."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 8 * 1024 * 1024
    max_running: Annotated[int, Field(ge=1)] = 512
    """Generations in progress beyond which a request is refused; the engine's own queue refuses earlier."""
    retry_after_s: Annotated[int, Field(ge=1)] = 1
    """What a refused client is told to wait."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _stay_on_loopback(self) -> Self:
        if not self.allow_public and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is open to others and the gateway has no authentication yet; "
                "use 127.0.0.1, or say allow_public: true (TRIDENT_ALLOW_PUBLIC=true) if you mean it"
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`; a name other than localhost is taken as public."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Return the TRIDENT_* names among the environment's that are no setting."""
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)
