"""``octavo up`` and ``octavo demo``: the whole system on this machine."""

import asyncio
import os
import secrets
from pathlib import Path

import typer

from octavo_cli.client import Client
from octavo_cli.local_base import cache_folder, prepared_base
from octavo_cli.processes import script
from octavo_cli.stopping import until_told
from octavo_cli.supervisor import FleetPlan, LocalFleet
from octavo_shared.messages.keys import Role
from octavo_shared.permissions import BusRole, inbox_prefix

_PASSED_ON = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OCTAVO_LOG_LEVEL")

_HOW_TO = """
Octavo is up. Its data and logs are in {folder}, the admin key is in
{admin_key_file}, and the command line is {command}.

  export OCTAVO_GATEWAY_URL={url}
  export OCTAVO_KEY={key}

curl:
  curl {url}/v1/chat/completions -H "Authorization: Bearer $OCTAVO_KEY" -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}], "max_tokens": 32}}'

Python, with the openai client:
  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  print(client.chat.completions.create(model="{model}", max_tokens=32,
        messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)

Python, straight onto NATS, as a client that may do nothing else there (pip install 'nats-py[nkeys]'):
  import asyncio, json, nats
  async def main():
      bus = await nats.connect("{nats}", inbox_prefix="{inbox_prefix}",
                               nkeys_seed="{seed_file}")
      inbox = bus.new_inbox()
      answers = await bus.subscribe(inbox)
      body = {{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}], "max_tokens": 32}}
      await bus.publish("{subject}", json.dumps(body).encode(), reply=inbox,
                        headers={{"Authorization": "Bearer {key}"}})
      async for message in answers.messages:
          print(message.data.decode())
          if (message.headers or {{}}).get("octavo-final"):
              break
      await bus.close()
  asyncio.run(main())

Push an adapter of your own:  {command} push {tenant}/diary ./peft-directory
Ctrl-C stops everything.
"""


def demo_here() -> int:
    """Run the demo; returns its exit code."""
    from octavo_cli.demo.run import run_demo

    return run_demo()


async def up_here(folder: Path | None, base: Path | None, num_workers: int, port: int) -> None:
    """Start everything, print how to talk to it, keep it running until told to stop, then stop everything."""
    running = _run(folder or cache_folder() / "up", base, num_workers, port)
    try:
        await until_told(running, lambda: typer.echo("stopping", err=True))
    except asyncio.CancelledError:
        typer.echo("stopped", err=True)


async def _run(folder: Path, base: Path | None, num_workers: int, port: int) -> None:
    environ = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    base_dir = base or await prepared_base(lambda line: typer.echo(line, err=True))
    plan = FleetPlan(folder.resolve(), base_dir.resolve(), num_workers, port, environ=environ)
    async with LocalFleet(plan, lambda line: typer.echo(line, err=True)) as fleet:
        typer.echo(await asyncio.to_thread(_how_to, fleet))
        await fleet.watch()


def _how_to(fleet: LocalFleet) -> str:
    from octavo_shared import subjects

    # A tenant of this start's own: a key's text is kept nowhere, so an old one could not be shown again.
    tenant = f"local-{secrets.token_hex(3)}"
    with Client(fleet.gateway_url, fleet.admin_key) as admin:
        admin.create_tenant(tenant)
        key = admin.create_key(tenant, "me", Role.OWNER).key
    with Client(fleet.gateway_url, key) as client:
        model = client.models()[0]
    return _HOW_TO.format(
        folder=fleet.plan.folder,
        admin_key_file=fleet.admin_key_file,
        command=script("octavo"),
        url=fleet.gateway_url,
        nats=fleet.nats_url,
        inbox_prefix=inbox_prefix(BusRole.CLIENT),
        seed_file=fleet.seed_file(BusRole.CLIENT),
        key=key,
        model=model,
        tenant=tenant,
        subject=subjects.GENERATE,
    )
