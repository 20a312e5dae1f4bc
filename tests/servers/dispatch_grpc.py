"""A gRPC server, and its client: dispatch_grpc.py serve PORT | ask PORT AUTHORITY"""

import sys
import threading
from concurrent import futures

import grpc


def double(request, context):
    context.set_trailing_metadata((("x-trailer", "seen"),))
    return request * 2


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as it was asked")


def chat(requests, context):
    for request in requests:
        yield request.upper()


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    methods = {
        "Double": grpc.unary_unary_rpc_method_handler(double),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("trial.Trial", methods),))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == int(port)
    server.start()
    server.wait_for_termination()


def ask(port, authority):
    options = (("grpc.default_authority", authority),)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        reply, call = channel.unary_unary("/trial.Trial/Double").with_call(b"ab", timeout=30)
        assert reply == b"abab", reply
        assert ("x-trailer", "seen") in [tuple(pair) for pair in call.trailing_metadata()], call.trailing_metadata()
        try:
            channel.unary_unary("/trial.Trial/Fail")(b"", timeout=30)
            raise SystemExit("it did not fail")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
            assert error.details() == "as it was asked", error
        # One message goes after the answer to the one before has come: nothing is held back.
        turn = threading.Semaphore(1)

        def words():
            for word in (b"a", b"b", b"c" * 100_000):
                assert turn.acquire(timeout=30)
                yield word

        heard = []
        for answer in channel.stream_stream("/trial.Trial/Chat")(words(), timeout=60):
            heard.append(answer)
            turn.release()
        assert heard == [b"A", b"B", b"C" * 100_000], heard
        print("done")


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    ask(sys.argv[2], sys.argv[3])
