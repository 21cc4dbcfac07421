"""Many messages of a stream in one answer: all that is there, as it is there, whatever headers were stored with it."""

from nats.js.api import StreamConfig

from octavo_cli.local_servers import NatsServer
from octavo_identity.copying import copy_last, copy_run
from octavo_shared.bus import Bus
from octavo_shared.messages.ledger import LedgerEvent

STREAM = "COPIED"


async def test_a_copy_has_what_the_stream_has(nats_server: NatsServer) -> None:
    async with Bus(nats_server.url, "copier") as bus:
        streams = bus.client.jetstream()
        await streams.add_stream(StreamConfig(name=STREAM, subjects=["copied.>"], allow_direct=True))
        try:
            headers = [None, {"Some": "header"}, {"Nats-Sequence": "7", "Nats-Subject": "forged"}, None]
            data = [b"", b"\r\nNats-Sequence: 9\r\n", b"data", bytes(range(256))]
            for number, (header, payload) in enumerate(zip(headers, data, strict=True), 1):
                await streams.publish(f"copied.{number % 3}", payload, headers=header)
            stored = {number: LedgerEvent(number, f"copied.{number % 3}", data[number - 1]) for number in range(1, 5)}
            assert await copy_run(bus, STREAM, 1, 4) == stored
            assert await copy_run(bus, STREAM, 2, 3) == {2: stored[2], 3: stored[3]}
            assert await copy_run(bus, STREAM, 4, 400) == {4: stored[4]}
            assert await copy_run(bus, STREAM, 5, 6) == {}
            last = await copy_last(bus, STREAM, ["copied.0", "copied.1", "copied.2", "copied.none"])
            assert last == {"copied.0": stored[3], "copied.1": stored[4], "copied.2": stored[2]}
            assert await copy_last(bus, STREAM, ["copied.none"]) == {}
            assert not bus.client._takers, "nothing is collected any more"
        finally:
            await streams.delete_stream(STREAM)
