"""Ships one record through `gateway-shim relay`: docs/SHIPPING.md walks through it.

    pip install -r requirements.txt
    python ship.py 127.0.0.1:7501
    python ship.py unix:/run/custody/relay.sock spool/relay.secret
"""

import pathlib
import sys
import tempfile
import time

import grpc
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "proto"


def stubs():
    """Compiles the published protos; a real gateway does this once, when it is built."""
    out = tempfile.mkdtemp()
    files = [str(PROTOS / "custody/v1" / f"{name}.proto") for name in ("options", "record", "relay")]
    import grpc_tools

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(
        ["protoc", f"-I{PROTOS}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    )
    if code != 0:
        sys.exit("failed to compile the protos")
    sys.path.insert(0, out)
    from custody.v1 import record_pb2, relay_pb2, relay_pb2_grpc

    return record_pb2, relay_pb2, relay_pb2_grpc


def main(target, secret=None):
    record_pb2, relay_pb2, relay_pb2_grpc = stubs()
    call = record_pb2.Call(
        phase=record_pb2.PHASE_COMPLETE,
        mode=record_pb2.MODE_RELAXED,
        client_name="ship.py",
        client_version="1",
        server="example",
        tool="echo",
        method="tools/call",
        decision=record_pb2.DECISION_ALLOWED,
        rule="example",
        started_at=time.time_ns() // 1000,
        duration_us=1500,
        outcome=record_pb2.OUTCOME_OK,
        request_bytes=120,
        response_bytes=80,
    )
    request = relay_pb2.PutRequest(record=record_pb2.Record(call=call))
    # Over a Unix socket the relay asks for what stands in a file of its folder, which programs in a sandbox cannot read.
    shows = [("authorization", "Bearer " + pathlib.Path(secret).read_text().strip())] if secret else []
    # Over a Unix socket gRPC would call the host by the socket's path, which HTTP/2 servers in Rust refuse.
    with grpc.insecure_channel(target, options=[("grpc.default_authority", "localhost")]) as channel:
        relay = relay_pb2_grpc.RelayStub(channel)
        try:
            put = relay.Put(request, timeout=10, metadata=shows)
        except grpc.RpcError as error:
            again = error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            sys.exit(f"{error.code().name}: {error.details()} ({'try again later' if again else 'do not try again'})")
        print(f"{put.gateway.hex()}/{put.epoch.hex()}/{put.number}")
        # Many records go over one stream; their names come in the same order.
        for put in relay.Ship(iter([request, request]), timeout=10, metadata=shows):
            print(f"{put.gateway.hex()}/{put.epoch.hex()}/{put.number}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["127.0.0.1:7501"]))
